"""Ranges from other tracklets, and the walk from no layer to all, as `s3clip-calib` makes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.calibration.clips import Clips
from benchmarks.calibration.records import (
    Figures,
    LayerRow,
    MethodRow,
    PointRow,
    Setup,
    Stability,
    StabilityRow,
    StudyPart,
    Way,
)
from s3clip_calib.candidates import OPENVINO, ORT, bits_of, time_points
from s3clip_calib.fidelity import Fidelity, fidelity
from s3clip_calib.methods import Prepared
from s3clip_calib.notebook import Notebook
from s3clip_calib.observe import Observed, observe, total
from s3clip_calib.quantise import quantise
from s3clip_calib.ranges import Bits
from s3clip_calib.samples import embeddings
from s3clip_calib.sensitivity import embed
from s3clip_calib.study import Study, study
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.backends.openvino import openvino_problem
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import Target

COUNTS: Final = (8, 32, 128)
SEEDS: Final = (0, 1, 2)

OBSERVED_AT_ONCE: Final = 8
"""Clips: the statistics of a full-size one are 6 MB."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Some tracklets of the pool, by their places."""

    way: Way
    count: int
    seed: int
    rows: tuple[int, ...]


def measure_stability(clips: Clips, best: MethodRow) -> Stability:
    """Ranges from several choices, each measured on the same clips with all layers in int8.

    Args:
        clips: what is chosen from and measured on.
        best: whose method and smoothing all take.
    """
    assert best.method is not None
    assert best.method != "dynamic"
    one, size = clips.prepared_by(best.smoothing), len(clips.pool.tracklets)
    choices = _choices(clips, [count for count in COUNTS if count <= size])
    feeds, expected = [sample.feed for sample in clips.measured], embeddings(clips.measured)
    seen = _observed(clips, one, choices)
    rows = []
    for choice, observed in zip(tqdm(choices, desc="stability", unit="choice"), seen, strict=True):
        limits = replace(one, observed=observed).limits(best.method, "int8")
        found = fidelity(expected, embed(quantise(one.model, one.layers, limits, "int8"), feeds))
        rows.append(
            StabilityRow(way=choice.way, count=choice.count, seed=choice.seed, figures=Figures.of(found))
        )
    return Stability(
        measured=datetime.now(UTC),
        method=best.method,
        smoothing=best.smoothing,
        pool=size,
        left_out=tuple(count for count in COUNTS if count > size),
        rows=tuple(rows),
    )


def _choices(clips: Clips, counts: Sequence[int]) -> list[Choice]:
    found = []
    for seed in SEEDS:
        for count in counts:
            found.append(Choice("k-centre", count, seed, tuple(clips.pool.k_centre(count, seed))))
            found.append(Choice("random", count, seed, tuple(clips.pool.at_random(count, seed))))
    return found


def _observed(clips: Clips, one: Prepared, choices: Sequence[Choice]) -> list[dict[str, Observed]]:
    """Statistics of each choice. A clip is observed once, for all choices that hold it, and not kept."""
    sums: list[dict[str, Observed]] = [{} for _ in choices]
    wanted = sorted({row for choice in choices for row in choice.rows})
    with tqdm(desc="observe pool", total=len(wanted), unit="clip") as bar:
        for first in range(0, len(wanted), OBSERVED_AT_ONCE):
            rows = wanted[first : first + OBSERVED_AT_ONCE]
            feeds = [sample.feed for sample in clips.pool.samples(rows)]
            for row, seen in zip(rows, observe(one.model, one.layers, feeds), strict=True):
                for place, choice in enumerate(choices):
                    if row in choice.rows:
                        sums[place] = total([sums[place], seen]) if sums[place] else seen
                bar.update()
    return sums


def measure_study(
    clips: Clips, bits: Bits, setup: Setup, calibrated: Bundle | None, notes: Path, scratch: Path
) -> StudyPart:
    """Each layer alone and the walk; an hour at full size, and a killed one goes on where it was.

    Args:
        clips: whose tune half is measured on.
        bits: the type.
        setup: what the notes must be of.
        calibrated: the same bundle after `s3clip-calib`, to see which points it took.
        notes: file of what was measured so far.
        scratch: a folder for graphs.
    """
    feeds, expected = [sample.feed for sample in clips.tune], embeddings(clips.tune)
    key = hashlib.sha256(json.dumps([bits, setup.model_dump(mode="json")]).encode()).hexdigest()
    with Notebook(notes, key) as notebook:
        found = study(clips.prepared, bits, feeds, expected, len(clips.calibration), notebook)
        times = {
            str(target): [timed.ms for timed in time_points(target, found, clips.tune, scratch)]
            for target in (ORT, OPENVINO)
            if bits == "int8" and (target == ORT or openvino_problem("int8") is None)
        }
        part = _part(found, times, calibrated)
        notebook.finish()
    return part


def _part(found: Study, times: dict[str, list[float]], calibrated: Bundle | None) -> StudyPart:
    shapes = {layer.name: layer.shape for layer in found.prepared.layers}
    return StudyPart(
        measured=datetime.now(UTC),
        bits=found.bits,
        method=found.method,
        smoothing=found.prepared.smoothing,
        layers=tuple(
            LayerRow(
                layer=row.layer,
                shape=shapes[row.layer],
                operations=row.operations,
                figures=_finite(row.fidelity),
            )
            for row in found.rows
        ),
        points=tuple(
            PointRow(
                layers=point.layers,
                share=min(point.share, 1.0),
                figures=_finite(point.fidelity),
                faults=point.faults,
                ms={target: row[place] for target, row in times.items()},
            )
            for place, point in enumerate(found.points)
        ),
        taken={} if calibrated is None else _taken(found, calibrated),
    )


def _finite(found: Fidelity) -> Figures:
    figures = Figures.of(found)
    if figures is None:
        raise DataError("embeddings with layers in 8 bits must be finite, found NaN; check the bundle")
    return figures


def _taken(found: Study, calibrated: Bundle) -> dict[str, int]:
    """Targets of the calibrated bundle that took a point of this walk."""
    every = {layer.name for layer in found.prepared.layers}
    sets = [set(point.layers) for point in found.points]
    taken = {}
    for one in calibrated.manifest.calibrations:
        target = Target.parse(one.target)
        layers = every - set(one.kept.get("encode", ()))
        static = one.method == found.method and one.smoothing == found.prepared.smoothing
        if bits_of(target) == found.bits and static and layers in sets:
            taken[one.target] = sets.index(layers)
    return taken


def check_calibrated(bundle: Bundle, calibrated: Bundle, setup: Setup) -> None:
    """See that a calibrated bundle was made of this one, and not from clips that are measured on.

    Raises:
        ConfigError: it was not, or it has no calibration.
    """
    own, others = bundle.manifest.embedding_space, calibrated.manifest.embedding_space
    if own != others:
        raise ConfigError(
            f"--calibrated {calibrated.folder.name}: must be made of the bundle's own graphs, and has "
            "another embedding space; give what s3clip-calib made of a copy of the bundle"
        )
    if not calibrated.manifest.calibrations:
        raise ConfigError(
            f"--calibrated {calibrated.folder.name}: holds no calibration; run s3clip-calib on it"
        )
    measured = {*setup.tune, *setup.held}
    used = [name for one in calibrated.manifest.calibrations for name in one.tracklets if name in measured]
    if used:
        raise ConfigError(
            f"--calibrated {calibrated.folder.name}: its ranges come from {used[0]}, which is measured on; "
            "calibrate it on the same data with the same seed"
        )
