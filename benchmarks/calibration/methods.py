"""Ways to compute `encode` beside each other: how well they rank, and how fast they are on this CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.calibration.clips import Clips
from benchmarks.calibration.naive import NAIVE, gate, quantise_naively, without_folder
from benchmarks.calibration.records import Engine, Figures, Kind, MethodRow, Methods, best_static
from s3clip_calib.candidates import OPENVINO, ORT, opened
from s3clip_calib.columns import write_int8
from s3clip_calib.fidelity import fidelity, ranking_changes
from s3clip_calib.front import faults_of
from s3clip_calib.methods import combinations
from s3clip_calib.quantise import quantise
from s3clip_calib.ranges import Bits
from s3clip_calib.run import Feed
from s3clip_calib.samples import embeddings, labels
from s3clip_calib.sensitivity import embed
from s3clip_calib.study import PRECISION_OF, bounds_of
from s3clip_runtime.bench.records import Spread
from s3clip_runtime.bench.rounds import Rounds, Samples, interleave
from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.gate import broken_bounds
from s3clip_runtime.inference.manifest import PLAIN, Calibration, CalibrationMethod, Precision, Target

BITS: Final[tuple[Bits, ...]] = ("int8", "fp8")
RACED_CLIPS: Final = 4
"""One a call, by turns."""

BF16: Final = Target("openvino", "bf16")
PLAIN_OPENVINO: Final = Target("openvino", "fp32")
"""No target of a bundle: what OpenVINO gains without fewer bits."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a row is made of.

    Attributes:
        files: engine to a file and how it is opened; embeddings are the first one's.
        timed: whether it runs in the race.
        gate: see `MethodRow`.
    """

    name: str
    kind: Kind
    precision: Precision
    files: Mapping[Engine, tuple[Path, Target]]
    method: CalibrationMethod | None = None
    smoothing: float | None = None
    layers: int | None = 0
    timed: bool = True
    gate: tuple[str, ...] | None = None


@dataclass
class Contest:
    """A measurement of all ways.

    Attributes:
        clips: what is measured on.
        scratch: a folder for graphs.
        rows: measured so far, without times. `racers`: those to be timed.
        refused: see `Methods`.
    """

    clips: Clips
    scratch: Path
    rows: list[MethodRow] = field(default_factory=list)
    racers: list[Way] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        samples = self.clips.measured
        self.feeds: list[Feed] = [sample.feed for sample in samples]
        self.expected = embeddings(samples)
        self.labels = labels(samples)
        self.layers = len(self.clips.prepared_by(None).layers)

    def show(self, way: Way) -> None:
        """Measure how one ranks; what no engine can run here is noted as refused."""
        engine, (path, target) = next(iter(way.files.items()))
        name = f"{way.name}, {engine}"
        try:
            with opened("encode", {name: (path, target)}) as sessions:
                found = [sessions[name].run(feed)["embedding"] for feed in self.feeds]
        except BackendError as error:
            self.refused[name] = without_folder(error, path.parent)
            return
        self.add(way, np.concatenate(found))
        if way.timed:
            self.racers.append(way)

    def add(self, way: Way, found: NDArray[np.float32]) -> None:
        """Note a row by its embeddings of the measured clips."""
        measured = fidelity(self.expected, found)
        figures = Figures.of(measured)
        changes = (None, None) if figures is None else ranking_changes(self.expected, found, self.labels)
        self.rows.append(
            MethodRow(
                name=way.name,
                kind=way.kind,
                precision=way.precision,
                method=way.method,
                smoothing=way.smoothing,
                layers=way.layers,
                figures=figures,
                rank1_change=changes[0],
                map_change=changes[1],
                faults=faults_of(measured, bounds_of(way.precision)),
                gate=way.gate,
                ms={},
            )
        )


def measure_methods(clips: Clips, calibrated: Bundle | None, rounds: int, scratch: Path) -> Methods:
    """Fill the table; half an hour at full size.

    Args:
        clips: what is measured on.
        calibrated: the same bundle after `s3clip-calib`.
        rounds: of the race.
        scratch: an empty folder.
    """
    contest = Contest(clips, scratch)
    for way in tqdm(list(_plain(clips.bundle, scratch, contest.layers)), desc="plain", unit="way"):
        contest.show(way)
    _show_static(contest)
    _show_best(contest)
    for way in tqdm(list(_mixed(calibrated, contest.layers)), desc="mixed", unit="way"):
        contest.show(way)
    _show_naive(contest)
    raced = race(contest, rounds)
    return Methods(
        measured=datetime.now(UTC),
        layers=contest.layers,
        rounds=rounds,
        foreign_load=raced.foreign_load,
        rows=tuple(_timed(row, raced.samples) for row in contest.rows),
        refused=contest.refused,
    )


def _plain(bundle: Bundle, scratch: Path, layers: int) -> Iterator[Way]:
    """Without ranges of any kind."""
    path, dynamic = bundle.file("encode", PLAIN), scratch / "dynamic.onnx"
    count = write_int8(path, dynamic)
    yield Way("float32", "plain", "fp32", {"onnxruntime": (path, PLAIN), "openvino": (path, PLAIN_OPENVINO)})
    yield Way("bfloat16", "plain", "bf16", {"openvino": (path, BF16)})
    name = "int8 weights, dynamic activations"
    yield Way(name, "plain", "int8", {"openvino": (dynamic, OPENVINO)}, "dynamic", layers=min(count, layers))


def _show_static(contest: Contest) -> None:
    """All layers by every method; fp8 is computed in float32 with rounded numbers, so it has no times."""
    every = [(bits, *way) for bits in BITS for way in combinations(bits)]
    for bits, method, smoothing in tqdm(every, desc="methods", unit="method"):
        one = contest.clips.prepared_by(smoothing)
        graph = quantise(one.model, one.layers, one.limits(method, bits), bits)
        count = len(one.layers)
        name = f"{bits}, {method}" + ("" if bits == "fp8" else f", {_smoothing_text(smoothing)}")
        way = Way(name, "static", PRECISION_OF[bits], {}, method, smoothing, count, timed=False)
        contest.add(way, embed(graph, contest.feeds))


def _smoothing_text(exponent: float | None) -> str:
    return "no smoothing" if exponent is None else f"smoothing {exponent:g}"


def _show_best(contest: Contest) -> None:
    """The best static row is timed for all of them, whose operators are the same, and shown to the gate."""
    best = best_static(contest.rows)
    assert best.method is not None
    assert best.method != "dynamic"
    one = contest.clips.prepared_by(best.smoothing)
    path = contest.scratch / "static.onnx"
    onnx.save(quantise(one.model, one.layers, one.limits(best.method, "int8"), "int8"), path)
    place = contest.rows.index(best)
    contest.rows[place] = best.model_copy(update={"gate": gate(contest.clips, path, contest.scratch)})
    contest.racers.append(Way(best.name, "static", "int8", _engines(path)))


def _mixed(calibrated: Bundle | None, layers: int) -> Iterator[Way]:
    """Targets of the calibrated bundle as they lie in it; those with float16 are for GPUs and not timed."""
    if calibrated is None:
        return
    proofs = {proof.target: proof for proof in calibrated.manifest.proofs}
    for one in calibrated.manifest.calibrations:
        target = Target.parse(one.target)
        if target.backend == "tensorrt":
            continue
        yield Way(
            f"best mixed, {target}",
            "mixed",
            target.precision,
            {_engine_of(target): (calibrated.file("encode", target), target)},
            one.method,
            one.smoothing,
            layers - _kept(one),
            timed=target.precision == "int8",
            gate=tuple(broken_bounds(proofs[one.target])),
        )


def _kept(calibration: Calibration) -> int:
    return len(calibration.kept.get("encode", ()))


def _engine_of(target: Target) -> Engine:
    return "openvino" if target.backend == "openvino" else "onnxruntime"


def _engines(path: Path) -> dict[Engine, tuple[Path, Target]]:
    return {"onnxruntime": (path, ORT), "openvino": (path, OPENVINO)}


def _show_naive(contest: Contest) -> None:
    for number, name in enumerate(tqdm(NAIVE, desc="naive", unit="way")):
        path = contest.scratch / f"naive-{number}.onnx"
        try:
            quantise_naively(name, contest.clips, path)
        except Exception as error:  # the quantiser has no errors of its own; one row must not cost the others
            contest.refused[name] = without_folder(error, contest.scratch)
            continue
        refused = gate(contest.clips, path, contest.scratch)
        contest.show(Way(name, "naive", "int8", _engines(path), "max", layers=None, gate=refused))


def race(contest: Contest, rounds: int) -> Rounds:
    """Time all racers by turns with all usable cores; names of the samples are row and engine."""
    inputs = contest.feeds[:RACED_CLIPS]
    with ExitStack() as stack:
        calls = {}
        for way in contest.racers:
            for engine, file in way.files.items():
                name = f"{way.name}, {engine}"
                try:
                    session = stack.enter_context(opened("encode", {name: file}))[name]
                    session.run(inputs[0])
                except BackendError as error:
                    contest.refused[name] = without_folder(error, file[0].parent)
                    continue
                calls[name] = partial(_run_next, session, cycle(inputs))
        with tqdm(desc="race", total=len(calls) * (rounds + 1), unit="call") as bar:

            def tick(_: str) -> None:
                bar.update()

            return interleave(calls, rounds, tick=tick)


def _run_next(session: Session, inputs: Iterator[Feed]) -> None:
    session.run(next(inputs))


def _timed(row: MethodRow, samples: Mapping[str, Samples]) -> MethodRow:
    """The row with its quartiles of a clip."""
    times = {}
    for engine in ("onnxruntime", "openvino"):
        taken = samples.get(f"{row.name}, {engine}")
        if taken is not None:
            low, median, high = map(float, np.quantile(taken.wall_ms, [0.25, 0.5, 0.75]))
            times[engine] = Spread(median=median, low=low, high=high)
    return row.model_copy(update={"ms": times})
