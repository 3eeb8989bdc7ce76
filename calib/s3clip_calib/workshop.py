"""Makes the graphs of each target from the studies, times them where they run, and shows them to the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from s3clip_calib.candidates import (
    BASES,
    OPENVINO,
    ORT,
    Candidate,
    Timed,
    Trial,
    Verdict,
    base_precision,
    bits_of,
    dynamic_candidate,
    fastest,
    half_graph,
    opened,
    settle,
    time_points,
)
from s3clip_calib.front import Point
from s3clip_calib.methods import prepare
from s3clip_calib.race import race
from s3clip_calib.ranges import Bits
from s3clip_calib.samples import Sample
from s3clip_calib.study import Study
from s3clip_calib.super_resolution import (
    PLAIN_FORM,
    PictureRow,
    choose_form,
    compare_forms,
    int8_forms,
    pictures,
)
from s3clip_runtime.inference.manifest import PLAIN, Role, Target

RACED_CLIPS: Final = 4
"""Clips that forms of a graph are timed on; 32 pictures, where they are super-resolved ones."""


class Workshop:
    """One calibration's making of graphs.

    Args:
        trial: the draft, and what candidates are shown to.
        calibration: clips that gave the ranges.
        studies: of `encode`, by type of bits.
        scratch: a folder for what is only tried.

    Attributes:
        timed: points with their times, of targets that run here.
        encoders: of these, form of `encode` to its milliseconds.
        pictures: forms of `enhance` that were compared.
        forms: backend to the form of `enhance` that was taken.
    """

    def __init__(
        self, trial: Trial, calibration: Sequence[Sample], studies: Mapping[Bits, Study], scratch: Path
    ) -> None:
        self._trial = trial
        self._calibration = calibration
        self._studies = studies
        self._scratch = scratch
        self.timed: dict[Target, list[Timed]] = {}
        self.encoders: dict[Target, dict[str, float]] = {}
        self.pictures: list[PictureRow] = []
        self.forms: dict[str, str] = {}
        self._forms: dict[str, Path] = {}

    def make(self, target: Target) -> Verdict:
        """Make a target's graphs and prove them.

        Raises:
            BackendError: it cannot run on this machine.
        """
        found = self._studies[bits_of(target)]
        if target in (ORT, OPENVINO):
            return self._for_cpu(target, found)
        candidates = [self._half(target, found, point) for point in found.allowed if point.layers]
        return settle(self._trial, target, candidates, {}, [])

    def _half(self, target: Target, found: Study, point: Point) -> Candidate:
        def write() -> Path:
            graph = half_graph(self._trial.file("encode", BASES[target]), found, point)
            return self._trial.save(graph, f"encode.{target.precision}")

        return Candidate(found.method, point, write)

    def _for_cpu(self, target: Target, found: Study) -> Verdict:
        """The fastest of what is allowed; OpenVINO can also take scales anew in every run."""
        self.timed[target] = time_points(target, found, self._trial.tune, self._scratch)
        candidates = [self._static(found, point) for point in fastest(self.timed[target])]
        if target == OPENVINO:
            candidates.append(dynamic_candidate(self._trial, found, self._scratch))
        # Of each method the best: sets with fewer layers follow the fastest one of theirs.
        taken = self.encoders[target] = self._race(target, {o.method: o for o in reversed(candidates)})
        tried = [f"{o.method}: {'; '.join(o.point.faults)}" for o in candidates if o.point.faults]
        good = sorted((o for o in candidates if not o.point.faults), key=lambda one: taken[one.method])
        return settle(self._trial, target, good, self._enhance(target), tried)

    def _static(self, found: Study, point: Point) -> Candidate:
        def write() -> Path:
            return self._trial.save(found.graph(point.layers), "encode.int8")

        return Candidate(found.method, point, write)

    def _race(self, target: Target, candidates: Mapping[str, Candidate]) -> dict[str, float]:
        """Milliseconds of `encode` as it is and by each method."""
        files = {name: (candidate.write(), target) for name, candidate in candidates.items()}
        files[PLAIN_FORM] = (self._trial.file("encode", PLAIN), base_precision(target))
        with opened("encode", files) as sessions:
            return race(sessions, [sample.feed for sample in self._trial.tune[:RACED_CLIPS]])

    def _enhance(self, target: Target) -> dict[Role, Path]:
        """The int8 `enhance` that gains something on this backend and keeps its pictures; often none."""
        clips = [s.pixels for s in self._trial.tune if not s.clip.hr][:RACED_CLIPS]
        seen = [s.pixels for s in self._calibration if not s.clip.hr]
        if not clips or not seen:
            return {}
        plain = self._trial.file("enhance", PLAIN)
        if not self._forms:
            self._forms = self._written_forms(plain, seen)
        files = {PLAIN_FORM: (plain, base_precision(target))}
        files |= {form: (path, target) for form, path in self._forms.items()}
        with opened("enhance", files) as sessions:
            rows = compare_forms(target.backend, sessions, clips, pictures(onnx.load(plain), clips))
        self.pictures += rows
        form = self.forms[target.backend] = choose_form(rows).form
        return {} if form == PLAIN_FORM else {"enhance": self._forms[form]}

    def _written_forms(self, plain: Path, seen: Sequence[NDArray[np.uint8]]) -> dict[str, Path]:
        (prepared,) = prepare(onnx.load(plain), [{"crops": crops} for crops in seen], (None,))
        graphs = int8_forms(prepared)
        return {form: self._trial.save(graph, "enhance.int8") for form, graph in graphs.items()}
