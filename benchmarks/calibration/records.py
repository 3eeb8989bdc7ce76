"""What the measurement of calibration found, as it lies in its JSON file, which is made piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from s3clip_calib.fidelity import Fidelity
from s3clip_calib.ranges import Bits, Method
from s3clip_runtime.bench.records import Machine, Spread
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.evidence import Interval
from s3clip_runtime.inference.manifest import CalibrationMethod, Precision, Sha256
from s3clip_runtime.inference.records import Record, write_record

SCHEMA_VERSION: Final = 1

NAME: Final = "[a-z0-9]+(-[a-z0-9]+)*"
"""Regular expression of a report's name, which becomes a part of files' names."""

Engine = Literal["onnxruntime", "openvino"]
Kind = Literal["plain", "static", "naive", "mixed"]
Way = Literal["k-centre", "random"]

_CURE = "measure again with python -m benchmarks.calibration"


class Figures(Record):
    """`Fidelity` as a record."""

    cosine_mean: FiniteFloat
    cosine_min: FiniteFloat
    centred_mean: FiniteFloat
    centred_min: FiniteFloat
    top1_agreement: FiniteFloat
    kendall_tau: FiniteFloat

    @staticmethod
    def of(found: Fidelity) -> Figures | None:
        """None if a number is not finite: the embeddings are none."""
        numbers = asdict(found)
        return Figures(**numbers) if all(map(isfinite, numbers.values())) else None

    @property
    def fidelity(self) -> Fidelity:
        """Back again."""
        return Fidelity(**self.model_dump())


class MethodRow(Record):
    """One way to compute `encode`.

    Attributes:
        kind: "plain" without ranges; "static" all layers by chosen ranges; "naive" the quantiser's own way;
            "mixed" a target of a calibrated bundle.
        precision: whose bounds of the gate it is held to.
        method, smoothing: how its ranges were taken; None where that does not apply.
        layers: how many compute in 8 bits. None: all that the quantiser knows, of all kinds of operators.
        figures: beside float32 on the measured clips; None if embeddings are not finite.
        rank1_change, map_change: less float32's, in [-1, 1]; None without people seen by two cameras.
        faults: bounds that the figures miss.
        gate: what the whole gate refused; empty if it passed, None if it was not asked.
        ms: engine to milliseconds a clip with all usable cores; without those that were not timed.
    """

    name: str
    kind: Kind
    precision: Precision
    method: CalibrationMethod | None
    smoothing: FiniteFloat | None
    layers: NonNegativeInt | None
    figures: Figures | None
    rank1_change: Interval | None
    map_change: Interval | None
    faults: tuple[str, ...]
    gate: tuple[str, ...] | None
    ms: dict[Engine, Spread]


class Methods(Record):
    """All ways beside each other.

    Attributes:
        layers: that a calibration may put into 8 bits.
        rounds: of the race. `foreign_load`: share of the cores that other processes took meanwhile.
        refused: row and engine to the reason why it could not run here.
    """

    measured: AwareDatetime
    layers: PositiveInt
    rounds: PositiveInt
    foreign_load: FiniteFloat
    rows: tuple[MethodRow, ...]
    refused: dict[str, str]


def best_static(rows: Iterable[MethodRow]) -> MethodRow:
    """The static int8 row with the least loss; there must be one."""
    found = [row for row in rows if row.kind == "static" and row.precision == "int8"]
    return max(found, key=lambda row: -2.0 if row.figures is None else row.figures.centred_mean)


class StabilityRow(Record):
    """Ranges from one choice of tracklets. `seed` is of the choice."""

    way: Way
    count: PositiveInt
    seed: NonNegativeInt
    figures: Figures | None


class Stability(Record):
    """The same method with other tracklets.

    Attributes:
        method, smoothing: the one for all. Scales are moved by the same factors in all rows.
        pool: tracklets that there were to choose from.
        left_out: counts that the pool is too small for.
    """

    measured: AwareDatetime
    method: Method
    smoothing: FiniteFloat | None
    pool: PositiveInt
    left_out: tuple[PositiveInt, ...]
    rows: tuple[StabilityRow, ...]


class LayerRow(Record):
    """One layer alone in 8 bits; `operations` are its multiply-adds a clip."""

    layer: str
    shape: tuple[PositiveInt, ...]
    operations: PositiveInt
    figures: Figures


class PointRow(Record):
    """A point of the walk; `ms` has the targets that run here, median milliseconds of `encode` a clip."""

    layers: tuple[str, ...]
    share: Annotated[FiniteFloat, Field(ge=0, le=1)]
    figures: Figures
    faults: tuple[str, ...]
    ms: dict[str, PositiveFloat]


class StudyPart(Record):
    """What `s3clip_calib.study` found for one type of bits.

    Attributes:
        taken: target of the calibrated bundle to the place in `points` of what it took.
    """

    measured: AwareDatetime
    bits: Bits
    method: Method
    smoothing: FiniteFloat | None
    layers: tuple[LayerRow, ...]
    points: tuple[PointRow, ...]
    taken: dict[str, NonNegativeInt]


class Setup(Record):
    """What all pieces of a file must have in common.

    Attributes:
        encode: hash of the float32 encoder. `data`: name of the folder.
        calibration: tracklets that ranges come from, in the order of choice.
        tune, held: tracklets that all is measured on; methods of a calibration see the first ones alone.
        machine: where. `versions`: of packages that are not among the machine's.
    """

    bundle: str
    encode: Sha256
    data: str
    seed: NonNegativeInt
    calibration: tuple[str, ...]
    tune: tuple[str, ...]
    held: tuple[str, ...]
    machine: Machine
    versions: dict[str, str]


class CalibrationReport(Record):
    """Content of the file; parts that were not measured yet are None or empty.

    Attributes:
        name: part of the file's name. `about`: what weights and data are, sentences.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
    about: str
    setup: Setup
    methods: Methods | None = None
    stability: Stability | None = None
    studies: tuple[StudyPart, ...] = ()

    def with_part(self, part: Methods | Stability | StudyPart) -> CalibrationReport:
        """A copy in which this part took the place of an older one."""
        if isinstance(part, StudyPart):
            others = {study.bits: study for study in self.studies} | {part.bits: part}
            return self.model_copy(update={"studies": tuple(others[bits] for bits in sorted(others))})
        field = "methods" if isinstance(part, Methods) else "stability"
        return self.model_copy(update={field: part})


def begun(path: Path, name: str, about: str, setup: Setup) -> CalibrationReport:
    """The report of a file to go on with, or an empty one if there is no file.

    Args:
        path: of the file.
        name, about: see `CalibrationReport`; an empty `about` leaves what the file says.
        setup: now.

    Raises:
        ConfigError: the file was measured with another setup.
        DataError: it is no such report.
    """
    if not path.exists():
        return CalibrationReport(name=name, about=about, setup=setup)
    old = read(path)
    pairs = {key: (getattr(old.setup, key), getattr(setup, key)) for key in Setup.model_fields}
    other = [key for key, (before, now) in pairs.items() if before != now]
    if other:
        raise ConfigError(
            f"{path}: all pieces of a report must have the same setup, and {', '.join(other)} differ; "
            "remove the file or take another --name"
        )
    return old.model_copy(update={"about": about or old.about})


def write(path: Path, report: CalibrationReport) -> None:
    """Whole or not at all. Raises as `write_record`."""
    write_record(path, report)


def read(path: Path) -> CalibrationReport:
    """Read what `write` wrote.

    Raises:
        DataError: the file is missing, no report, or of another schema.
    """
    try:
        return CalibrationReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_CURE}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {faults}; {_CURE}") from error
