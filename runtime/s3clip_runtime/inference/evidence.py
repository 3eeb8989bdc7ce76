"""What was measured of a bundle's graphs, as its manifest records it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
)

from s3clip_runtime.inference.records import Record


class Interval(Record):
    """A measured value and the ends of its 95 % confidence interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Proof(Record):
    """How close the graphs of one target came to the PyTorch model, and the bounds they had to hold.

    Attributes:
        target: name of the `Target`.
        device: where it was measured, with the GPU's name.
        stages: stage to its error when it is fed with the reference's own input. `frames`: share of clips
            whose frames the runtime would choose otherwise; `pixels`: largest difference of resized crops,
            of 1; the graphs: largest error as a share of the output's largest absolute value.
        cosine_mean: of PyTorch's and the graphs' embeddings; also their 1st percentile and minimum.
        max_abs_error: of embedding elements.
        top1_agreement: share of tracklets whose nearest neighbour is the same one; for `top10_agreement`
            the share of the ten nearest that both have.
        kendall_tau: mean rank correlation of all other tracklets' similarities, tau-b.
        rank1_change: the graphs' Rank-1 minus PyTorch's in [-1, 1], None where the data has no protocol.
        map_change: as `rank1_change` for mAP.
        bounds: figure to the value that it had to reach or stay below.
    """

    target: str
    device: str
    tracklets: PositiveInt
    crops: PositiveInt
    stages: dict[str, FiniteFloat]
    cosine_mean: FiniteFloat
    cosine_p1: FiniteFloat
    cosine_min: FiniteFloat
    max_abs_error: FiniteFloat
    top1_agreement: FiniteFloat
    top10_agreement: FiniteFloat
    kendall_tau: FiniteFloat
    rank1_change: Interval | None
    map_change: Interval | None
    bounds: dict[str, FiniteFloat]


class HeightBucket(Record):
    """LR tracklets whose clip's median crop height lies above `low_px` and at or below `high_px`.

    `with` and `without` compare two rules that differ in this bucket alone: super-resolution up to
    `high_px`, and up to `low_px`. Both hold for queries and gallery alike.

    Attributes:
        tracklets: LR ones of this height.
        people: identities with a query that the bucket touches: it or a right answer of it has this height.
        queries: those queries, of all protocols.
        rank1_with, rank1_without, map_with, map_without: means over these people, each the mean over the
            queries of one, in [0, 1].
        rank1_change, map_change: with minus without, with its bootstrap interval over people.
        ms_with, ms_without: time a tracklet takes, from its crops to its embedding.
        ms_change: with minus without, with its bootstrap interval over batches; None in a bundle that was
            measured before there was one.
    """

    low_px: NonNegativeFloat
    high_px: PositiveFloat
    tracklets: PositiveInt
    people: PositiveInt
    queries: PositiveInt
    rank1_with: FiniteFloat
    rank1_without: FiniteFloat
    map_with: FiniteFloat
    map_without: FiniteFloat
    rank1_change: Interval
    map_change: Interval
    ms_with: PositiveFloat
    ms_without: PositiveFloat
    ms_change: Interval | None = None


class Switch(Record):
    """Up to which height of a person super-resolution is worth its time, and how that was measured.

    Attributes:
        max_height_px: LR clips whose median crop height is above are not enhanced; 0: none is, None: all are.
        min_gain: gain of mAP in [0, 1] that had to be possible for super-resolution to stay on.
        data: name of the data set. `synthetic`: its crops were drawn by s3clip itself.
        tracklets, queries: of the whole measurement, HR ones included.
        target: name of the `Target` that ran. `device`: where, with the GPU's name.
        buckets: from the smallest heights to the tallest, without gaps.
    """

    max_height_px: NonNegativeFloat | None
    min_gain: FiniteFloat
    data: str
    synthetic: bool
    tracklets: PositiveInt
    queries: PositiveInt
    target: str
    device: str
    created: AwareDatetime
    buckets: Annotated[tuple[HeightBucket, ...], Field(min_length=1)]

    @property
    def rule(self) -> str:
        """Which LR clips are super-resolved, a clause for a sentence."""
        if self.max_height_px is None:
            return "LR clips of every height are super-resolved"
        if self.max_height_px == 0:
            return "no clip is super-resolved"
        return f"LR clips up to {self.max_height_px:g} px are super-resolved"


class Speed(Record):
    """How fast one target was on one machine.

    Attributes:
        target: name of the `Target`.
        device: where it ran.
        cpu: the processor's name, `cores` those that the process might use: all of them worked.
        gpu: name of the GPU; None on "cpu".
        lr_ms: median time from crops to embedding of one super-resolved tracklet, one a call; `hr_ms` of one
            that is not.
        measured: when.
    """

    target: str
    device: Literal["cpu", "cuda"]
    cpu: Annotated[str, StringConstraints(min_length=1)]
    cores: PositiveInt
    gpu: str | None
    lr_ms: Annotated[FiniteFloat, Field(gt=0)]
    hr_ms: Annotated[FiniteFloat, Field(gt=0)]
    measured: AwareDatetime
