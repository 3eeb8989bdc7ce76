"""The page of a calibration: what was tried, what each layer costs, and what was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3clip_calib.candidates import Timed, Verdict
from s3clip_calib.ranges import Bits
from s3clip_calib.samples import Sample
from s3clip_calib.study import Study
from s3clip_calib.super_resolution import PictureRow
from s3clip_runtime.inference.manifest import Target


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


def render(evidence: Evidence) -> str:
    """The page, one HTML file with its pictures inside."""
    raise NotImplementedError
