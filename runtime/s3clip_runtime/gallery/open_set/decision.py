"""Who it is, or nobody of the gallery: thresholds that were calibrated from data, and the decision by them.

A threshold is only good for what it was measured on: the platform of the query, that of the prototype it
found, and about the same height of the person. Without a measurement the answer is "uncalibrated".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Match
from s3clip_runtime.inference.evidence import Interval
from s3clip_runtime.inference.records import Record

EDGES_PX: Final = (32.0, 64.0, 128.0)
"""Heights between the buckets. From 128 px on a crop may be HR. Super-resolution starts from 64 px: lower
crops are enlarged before it, those below 32 px more than twice."""

ALL_HEIGHTS: Final = "all"
"""Name of the bucket that pools every height of a pair of platforms."""

Verdict = Literal["match", "unknown", "uncalibrated"]


class Bucket(Record):
    """Queries whose clip's median crop height is at least `low_px` and below `high_px` (None: any above)."""

    name: str
    low_px: NonNegativeFloat
    high_px: PositiveFloat | None

    def holds(self, height_px: float) -> bool:
        """Whether a query of this height (`Clip.height_px`) belongs here."""
        return self.low_px <= height_px and (self.high_px is None or height_px < self.high_px)


def height_buckets() -> tuple[Bucket, ...]:
    """All buckets of single heights, rising and without gaps."""
    lows, highs = (0.0, *EDGES_PX), (*EDGES_PX, None)
    return tuple(
        Bucket(name=f"{low:g}-{high:g} px" if high else f"{low:g} px and more", low_px=low, high_px=high)
        for low, high in zip(lows, highs, strict=True)
    )


def all_heights() -> Bucket:
    """The bucket that pools them."""
    return Bucket(name=ALL_HEIGHTS, low_px=0.0, high_px=None)


class Searches(Record):
    """What one threshold is, or would be, measured on.

    Attributes:
        query, gallery: platforms (`spec.PLATFORMS`) of the searching tracklets and of the prototypes.
        identities: people enrolled with this platform in one trial, the mean over trials.
        mated: searches, over all trials, by people who are enrolled; `mated_people` are in them.
        non_mated: searches by people who are not; `non_mated_people` are in them.
    """

    query: str
    gallery: str
    bucket: Bucket
    identities: NonNegativeFloat
    mated: NonNegativeInt
    mated_people: NonNegativeInt
    non_mated: NonNegativeInt
    non_mated_people: NonNegativeInt


class PairCalibration(Searches):
    """The thresholds of one pair of platforms and bucket, and how well they do. Every person counts the same.

    Attributes:
        threshold: a best match at or above is believed.
        growth_threshold: at least that; a best match at or above may become a prototype. May lie above 1,
            where nothing reaches it.
        growth_measured: whether it is measured (at a tenth of the target) or extrapolated.
        fpir: share of searches by strangers that match anybody at the threshold.
        fnir: share of searches by enrolled people whose best match is below it, or is somebody else.
        slope, intercept: of the logistic probability that the best match is right, by its score.
    """

    threshold: FiniteFloat
    growth_threshold: FiniteFloat
    growth_measured: bool
    fpir: Interval
    fnir: Interval
    slope: PositiveFloat
    intercept: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.growth_threshold < self.threshold:
            raise ValueError("growth_threshold must not be below threshold")
        return self

    def probability(self, score: float) -> float:
        """That a best match of this score is right, if half of those who search are enrolled."""
        logit = min(max(self.slope * score + self.intercept, -700.0), 700.0)  # exp must stay finite
        return 1 / (1 + exp(-logit))


class Refusal(Searches):
    """A pair and bucket that could not be calibrated. `reason` names what is missing and how much."""

    reason: str


class OpenSet(Record):
    """A calibration of one embedding space, as `space.open_set` holds it as JSON.

    Attributes:
        fpir: the target of every threshold.
        data: name of the folder of tracklets.
        tracklets, people: in it.
        identities: people enrolled in one trial. FPIR grows with them, see `warns`.
        trials, seed: of the random splits into enrolled people and strangers.
        pairs: what was calibrated; `refused`: what was not.
    """

    fpir: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    data: str
    created: AwareDatetime
    tracklets: PositiveInt
    people: PositiveInt
    identities: PositiveInt
    trials: PositiveInt
    seed: NonNegativeInt
    pairs: Annotated[tuple[PairCalibration, ...], Field(min_length=1)]
    refused: tuple[Refusal, ...]

    @staticmethod
    def of_json(text: str) -> OpenSet:
        """Read what `model_dump_json` wrote.

        Raises:
            GalleryError: it is damaged or of another version.
        """
        try:
            return OpenSet.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise GalleryError(
                f"the gallery's calibration must be one of this version, found {first['msg']!r} at "
                f"{'.'.join(map(str, first['loc'])) or 'its start'}; run s3clip-gallery calibrate again"
            ) from error

    def find(self, query: str, gallery: str | None, height_px: float) -> PairCalibration | None:
        """The calibration for one best match; None: there is none, and no other pair stands in for it.

        The bucket of the height goes first. Where it had too few searches, the pair's pooled entry counts,
        bucket `ALL_HEIGHTS`.

        Args:
            query: platform of the query.
            gallery: of the prototype that it found; None, not known: of the entries of this query platform
                that which has the highest threshold, the strictest.
            height_px: `Clip.height_px` of the query.
        """
        if gallery is None:
            names = {pair.gallery for pair in self.pairs}
            found = [pair for name in names if (pair := self.find(query, name, height_px)) is not None]
            return max(found, key=lambda pair: pair.threshold, default=None)
        own = [pair for pair in self.pairs if (pair.query, pair.gallery) == (query, gallery)]
        single = [pair for pair in own if pair.bucket.name != ALL_HEIGHTS and pair.bucket.holds(height_px)]
        pooled = [pair for pair in own if pair.bucket.name == ALL_HEIGHTS]
        return next(iter([*single, *pooled]), None)

    def warns(self, identities: int) -> str | None:
        """A sentence when a gallery of this many people is more than twice as large as the measured ones."""
        least = min(pair.identities for pair in self.pairs)
        if identities <= 2 * least:
            return None
        return (
            f"the gallery has {identities} identities and its thresholds were measured with {least:.0f}: the "
            f"share of strangers that match grows about in proportion, above {self.fpir:g}; calibrate again "
            f"with --identities {identities} on data of more people"
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Who it is, by the open-set rule.

    Attributes:
        verdict: match: `identity` it is. unknown: nobody of the gallery. uncalibrated: nobody can tell.
        identity: the best match where the verdict is match, else None.
        nearest: the best match, believed or not; None if the gallery is empty.
        score: cosine of the best match; -1.0, the lowest cosine, if the gallery is empty.
        threshold: what the score was held against; None where nothing was.
        probability: that the best match is right, if half of those who search are enrolled
            (`PairCalibration.probability`); None where this is not calibrated.
        runner_up: the second best identity, if there is one: a score close to `score` means doubt.
    """

    verdict: Verdict
    identity: str | None
    nearest: str | None
    score: float
    threshold: float | None
    probability: float | None
    runner_up: Match | None


def decide(
    matches: Sequence[Match],
    open_set: OpenSet | None,
    threshold: float | None,
    *,
    platform: str,
    height_px: float,
) -> Decision:
    """Open-set decision on the matches of one query, best first: match iff score >= threshold.

    The platforms of the query and of the best match's prototype name the threshold (`OpenSet.find`).

    Args:
        matches: of one query, the best first.
        open_set: the calibration; None: there is none.
        threshold: the operator's own, which goes before all calibrated ones; None: there is none.
        platform: of the query, one of `spec.PLATFORMS`.
        height_px: `Clip.height_px` of the query.

    Raises:
        GalleryError: the threshold is not in [-1, 1].
    """
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise GalleryError(f"the threshold must be a cosine in [-1, 1], found {threshold}; choose one there")
    if not matches:
        return Decision("unknown", None, None, -1.0, threshold, None, None)
    best = matches[0]
    runner_up = matches[1] if len(matches) > 1 else None
    pair = None if open_set is None else open_set.find(platform, best.platform, height_px)
    probability = None if pair is None else pair.probability(best.score)
    if threshold is None and pair is not None:
        threshold = pair.threshold
    if threshold is None:
        return Decision("uncalibrated", None, best.identity, best.score, None, None, runner_up)
    known = best.score >= threshold
    return Decision(
        verdict="match" if known else "unknown",
        identity=best.identity if known else None,
        nearest=best.identity,
        score=best.score,
        threshold=threshold,
        probability=probability,
        runner_up=runner_up,
    )
