"""The page of a calibration: what was tried, what each layer costs, and what was taken."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from s3clip_calib.candidates import BASES, Timed, Verdict, bits_of
from s3clip_calib.front import Point
from s3clip_calib.plots import LEAST_LOSS, check_installed, front_figure, sensitivity_figure
from s3clip_calib.ranges import Bits
from s3clip_calib.samples import Sample
from s3clip_calib.sensitivity import Sensitivity
from s3clip_calib.study import PRECISION_OF, Study, bounds_of
from s3clip_calib.super_resolution import LEAST_GAIN, LEAST_PSNR, PictureRow
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.inference.spec import PLATFORMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE: Final = "report.html.j2"

BLAMED: Final = 5
"""Layers that a refusal names."""

WORST: Final = 10
"""Layers in the table of the worst."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the page tells.

    Attributes:
        bundle: its name. `data`: of the data's folder. `seed`: of all choices. `cpu`: where it was measured.
        calibration: tracklets that gave the ranges, in the order of choice.
        tune: how many tracklets methods were chosen by; `held`: how many proved the choice.
        studies: what was found out, by type of bits.
        timed: points of the walk with their times, of the targets that run here.
        encoders: of these targets, form of `encode` to its milliseconds.
        pictures: forms of `enhance`; empty without LR tracklets.
        forms: backend to the form that was taken.
        verdicts: what became of each target.
        left_out: targets that could not be tried, with the reason.
    """

    bundle: str
    data: str
    seed: int
    cpu: str
    calibration: Sequence[Sample]
    tune: int
    held: int
    studies: Mapping[Bits, Study]
    timed: Mapping[Target, Sequence[Timed]]
    encoders: Mapping[Target, Mapping[str, float]]
    pictures: Sequence[PictureRow]
    forms: Mapping[str, str]
    verdicts: Sequence[Verdict]
    left_out: Mapping[Target, str]


@dataclass(frozen=True, slots=True)
class Taken:
    """A target that was taken, as the page tells it.

    Attributes:
        point, proof, held_out: of its verdict.
        way: how its activations get their ranges.
        layers: of `encode` that could be in 8 bits.
        times: form of `encode` to milliseconds a clip; empty if it was not timed here.
    """

    verdict: Verdict
    point: Point
    proof: Proof
    held_out: Proof
    way: str
    layers: int
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refused:
    """A target that was not taken, the layers that lose most, and milliseconds as in `Taken`."""

    verdict: Verdict
    blamed: Sequence[Sensitivity]
    times: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Layers:
    """One type of bits, as the page tells it.

    Attributes:
        bounds: figure of the walk to the value that it must reach.
        times: target to the milliseconds of each point; None where there are none.
        taken: point to the targets that took it.
        worst: numbers of layers in the graph, from 1, with the layers' rows: the largest loss first.
        shapes, operations: of all layers: of the weight, and the share of multiply-adds.
        front, sensitivity: pictures, data URIs.
    """

    bits: Bits
    study: Study
    bounds: Mapping[str, float]
    times: Mapping[Target, Sequence[float | None]]
    taken: Mapping[Point, Sequence[Target]]
    worst: Sequence[tuple[int, Sensitivity]]
    shapes: Mapping[str, tuple[int, ...]]
    operations: Mapping[str, float]
    front: str
    sensitivity: str


def check_report() -> None:
    """Find out before minutes of work.

    Raises:
        ConfigError: jinja2 or matplotlib is missing.
    """
    for module in ("jinja2", "matplotlib"):
        check_installed(module)


def render(evidence: Evidence) -> str:
    """The page, one HTML file with its pictures inside.

    Raises:
        ConfigError: jinja2 or matplotlib is missing.
    """
    check_report()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["decibels"] = _decibels
    template = environment.from_string(files("s3clip_calib").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        evidence=evidence,
        taken=list(_taken(evidence)),
        refused=list(_refused(evidence)),
        types=[_layers(evidence, bits) for bits in evidence.studies],
        backends=list(_super_resolution(evidence)),
        bases=BASES,
        platforms=PLATFORMS,
        least_psnr=LEAST_PSNR,
        least_gain=LEAST_GAIN,
        least_loss=LEAST_LOSS,
    )


def _taken(evidence: Evidence) -> Iterator[Taken]:
    for one in evidence.verdicts:
        if one.method is None or one.point is None or one.proof is None or one.held_out is None:
            continue
        study = evidence.studies[bits_of(one.target)]
        smoothing = study.prepared.smoothing
        way = one.method if smoothing is None else f"{one.method}, smoothing {smoothing:g}"
        if one.method == "dynamic":
            way = "dynamic: anew in every run"
        times = _times(evidence, one.target, one.point)
        yield Taken(one, one.point, one.proof, one.held_out, way, len(study.rows), times)


def _refused(evidence: Evidence) -> Iterator[Refused]:
    for one in evidence.verdicts:
        if one.point is None:
            rows = [row for _, row in _worst(evidence.studies[bits_of(one.target)])]
            yield Refused(one, rows[:BLAMED], _times(evidence, one.target, None))


def _times(evidence: Evidence, target: Target, taken: Point | None) -> Mapping[str, float]:
    """Milliseconds of the target's forms of `encode`; of its walk's points if no forms were timed."""
    if target in evidence.encoders:
        return evidence.encoders[target]
    found = {}
    for one in evidence.timed.get(target, ()):
        if one.ms is not None and not one.point.layers:
            found[str(BASES[target])] = one.ms
        elif one.ms is not None and one.point == taken:
            found[str(target)] = one.ms
    return found


def _worst(study: Study) -> list[tuple[int, Sensitivity]]:
    """Layers with their numbers, the largest loss first; one that is no number is the worst."""

    def loss(numbered: tuple[int, Sensitivity]) -> float:
        found = numbered[1].fidelity.loss
        return math.inf if math.isnan(found) else found

    return sorted(enumerate(study.rows, 1), key=loss, reverse=True)


def _layers(evidence: Evidence, bits: Bits) -> Layers:
    study = evidence.studies[bits]
    chosen = {
        one.target: one.point
        for one in evidence.verdicts
        if one.point is not None and bits_of(one.target) == bits
    }
    timed = {target: row for target, row in evidence.timed.items() if bits_of(target) == bits}
    times = {}
    for target, row in timed.items():
        known = {one.point.layers: one.ms for one in row}
        if any(ms is not None for ms in known.values()):
            times[target] = [known.get(point.layers) for point in study.points]
    taken: dict[Point, list[Target]] = {}
    for target, point in chosen.items():
        taken.setdefault(point, []).append(target)
    whole = sum(row.operations for row in study.rows)
    return Layers(
        bits,
        study,
        bounds_of(PRECISION_OF[bits]),
        times,
        taken,
        _worst(study)[:WORST],
        {layer.name: layer.shape for layer in study.prepared.layers},
        {row.layer: row.operations / whole for row in study.rows},
        _data_uri(front_figure(study, timed, chosen)),
        _data_uri(sensitivity_figure(study)),
    )


def _super_resolution(evidence: Evidence) -> Iterator[tuple[str, str, Sequence[PictureRow]]]:
    """Each backend's name, what was taken and why, and its forms."""
    rows: dict[str, list[PictureRow]] = {}
    for row in evidence.pictures:
        rows.setdefault(row.backend, []).append(row)
    for backend, (plain, *others) in rows.items():
        form = evidence.forms[backend]
        if form == plain.form:
            why = "; ".join(_shortfall(row, plain) for row in others) or "nothing else was tried"
            yield backend, f"left in higher precision because {why}", [plain, *others]
        else:
            row = next(row for row in others if row.form == form)
            gain = f"{row.ms:.2f} ms instead of {plain.ms:.2f} ms, {_decibels(row.psnr_db)}"
            yield backend, f"{form} taken: {gain}", [plain, *others]


def _shortfall(row: PictureRow, plain: PictureRow) -> str:
    """Why a form is not worth its file."""
    faults = []
    if not row.psnr_db >= LEAST_PSNR:
        faults.append(f"has {_decibels(row.psnr_db)}, must be at least {LEAST_PSNR:g} dB")
    if not row.ms <= plain.ms * LEAST_GAIN:
        faults.append(f"takes {row.ms:.2f} ms, must be at most {plain.ms * LEAST_GAIN:.2f} ms")
    return f"{row.form} {' and '.join(faults) or 'was not chosen'}"


def _decibels(psnr: float) -> str:
    return "equal pictures" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _data_uri(figure: Figure) -> str:
    """The figure as an SVG picture, equal for equal figures."""
    import matplotlib

    picture = io.BytesIO()
    # Ids of SVG parts come from this salt instead of chance.
    with matplotlib.rc_context({"svg.hashsalt": "s3clip-calib"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
