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
    Timed,
    Trial,
    Verdict,
    bits_of,
    dynamic_faults,
    fastest,
    half_graph,
    opener,
    settle,
    time_points,
    write_columns,
)
from s3clip_calib.front import Point
from s3clip_calib.layers import find_layers
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
    forms,
    pictures,
)
from s3clip_runtime.inference.manifest import PLAIN, Role, Target

PICTURE_CLIPS: Final = 4
"""LR clips whose super-resolved pictures are compared: 32 pictures."""


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
        self._enhance: dict[str, Path] | None = None

    def make(self, target: Target) -> Verdict:
        """Make a target's graphs and prove them.

        Raises:
            BackendError: it cannot run on this machine.
        """
        if target in (ORT, OPENVINO):
            return self._for_cpu(target)
        found = self._studies[bits_of(target)]
        points = [point for point in found.allowed if point.layers]

        def write(point: Point) -> tuple[str, Mapping[Role, Path]]:
            path = self._fresh(f"encode.{target.precision}.onnx")
            onnx.save(half_graph(self._trial.file("encode", BASES[target]), found, point), path)
            return found.method, {"encode": path}

        return settle(self._trial, target, points, write, [])

    def _for_cpu(self, target: Target) -> Verdict:
        found = self._studies["int8"]
        self.timed[target] = time_points(target, found, self._trial.tune, self._scratch)
        points, tried = fastest(self.timed[target]), []
        enhance = self._enhance_file(target)
        if target == OPENVINO and points:
            verdict = self._dynamic(points[0], enhance, tried)
            if verdict is not None:
                return verdict

        def write(point: Point) -> tuple[str, Mapping[Role, Path]]:
            path = self._fresh("encode.qdq.onnx")
            onnx.save(found.graph(point.layers), path)
            return found.method, {"encode": path, **enhance}

        return settle(self._trial, target, points, write, tried)
