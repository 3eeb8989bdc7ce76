"""Simulated open-set searches: people are enrolled or strangers by chance, many times, and all search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import DataError

ROWS_AT_ONCE: Final = 256
"""Queries of one matrix product; bounds memory."""

_UNIT_TOLERANCE: Final = 1e-3

Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Looks:
    """n labelled tracklets. `person` and `camera` are numbers from 0; cameras of two platforms differ.

    Attributes:
        vectors: float32 (n, dim), rows of length 1.
        person, camera: (n,).
        platform: n names.
        height_px: float (n,), `Clip.height_px`.
        people: how many there are.
    """

    vectors: NDArray[np.float32]
    person: Ints
    platform: NDArray[np.str_]
    camera: Ints
    height_px: NDArray[np.float64]
    people: int

    @staticmethod
    def of(
        embeddings: NDArray[np.float32],
        people: Sequence[str],
        platforms: Sequence[str],
        cameras: Sequence[str],
        heights_px: Sequence[float],
    ) -> Looks:
        """Check and number them.

        Raises:
            DataError: the lengths differ, or a vector has not length 1.
        """
        lengths = {len(embeddings), len(people), len(platforms), len(cameras), len(heights_px)}
        if len(lengths) != 1 or not len(embeddings):
            raise DataError(
                "embeddings, people, platforms, cameras and heights must be of one length above 0, found "
                f"{sorted(lengths)}; give one of each for every tracklet"
            )
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= _UNIT_TOLERANCE))
        if len(wrong):
            raise DataError(
                f"embedding {wrong[0]} must have length 1, found {norms[wrong[0]]:.4g}; "
                "give the rows of Embedder.embed"
            )
        names, person = np.unique(np.asarray(people), return_inverse=True)
        places = [f"{platform}/{camera}" for platform, camera in zip(platforms, cameras, strict=True)]
        _, camera = np.unique(np.asarray(places), return_inverse=True)
        return Looks(
            embeddings.astype(np.float32),
            person.astype(np.intp),
            np.asarray(platforms),
            camera.astype(np.intp),
            np.asarray(heights_px, np.float64),
            len(names),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The best matches of S searches of one pair of platforms, of all trials.

    Attributes:
        look: (S,) number of the searching tracklet; `person` of its person, `found` of the best match's.
        score: float64 (S,) its cosine.
        mated: (S,) whether the searching person is enrolled.
        gallery: numbers of the people who have prototypes in some trial.
        identities: people enrolled in one trial, the mean over trials.
    """

    look: Ints
    person: Ints
    found: Ints
    score: NDArray[np.float64]
    mated: Bools
    gallery: Ints
    identities: float

    def within(self, chosen: Bools) -> Found:
        """Only the searches where `chosen` (S,) holds."""
        return Found(
            self.look[chosen],
            self.person[chosen],
            self.found[chosen],
            self.score[chosen],
            self.mated[chosen],
            self.gallery,
            self.identities,
        )


def draw_enrolled(people: int, identities: int, trials: int, seed: int) -> Bools:
    """Who is enrolled in which trial, (trials, people): `identities` of them, at random."""
    rng = np.random.default_rng(seed)
    enrolled = np.zeros((trials, people), bool)
    for row in enrolled:
        row[rng.permutation(people)[:identities]] = True
    return enrolled


def search_pair(looks: Looks, query: str, gallery: str, enrolled: Bools) -> Found | None:
    """Every tracklet of platform `query` searches, in every trial, the enrolled people's of `gallery`.

    Prototypes are all tracklets of the enrolled people on that platform, rounded to float16 as galleries
    store them. A query never finds itself, and of its own person only tracklets of other cameras, where the
    person has one there: the same camera minutes later shows the same light and background. An enrolled
    person without such a tracklet does not search in that trial.

    Returns:
        None where a platform has no tracklet or no search finds anybody.
    """
    rows = np.flatnonzero(looks.platform == query)
    columns = np.flatnonzero(looks.platform == gallery)
    if not len(rows) or not len(columns):
        return None
    columns = columns[np.argsort(looks.person[columns], kind="stable")]
    owners, starts = np.unique(looks.person[columns], return_index=True)
    present = enrolled[:, owners]
    stored = looks.vectors[columns].astype(np.float16).astype(np.float32)
    parts = []
    for low in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[low : low + ROWS_AT_ONCE]
        scores = looks.vectors[part] @ stored.T
        scores[_refused(looks, part, columns)] = -np.inf
        best = np.maximum.reduceat(scores, starts, axis=1)
        parts += list(_searches(looks, part, owners, best, present))
    look, found, score, mated = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(look):
        return None
    return Found(
        look,
        looks.person[look],
        found,
        score.astype(np.float64),
        mated,
        owners[present.any(axis=0)],
        float(present.sum(axis=1).mean()),
    )


def _refused(looks: Looks, rows: Ints, columns: Ints) -> Bools:
    """Which of the columns a query may not find, (rows, columns): itself, and its own person's own camera."""
    own = looks.person[rows][:, None] == looks.person[columns]
    other_camera = own & (looks.camera[rows][:, None] != looks.camera[columns])
    has_other = other_camera.any(axis=1, keepdims=True)
    itself = rows[:, None] == columns
    refused: Bools = itself | (own & ~other_camera & has_other)
    return refused


def _searches(
    looks: Looks, rows: Ints, owners: Ints, best: NDArray[np.float32], present: Bools
) -> Iterator[tuple[Ints, Ints, NDArray[np.float32], Bools]]:
    """Of each trial: tracklet, person found, score and whether it is mated.

    Args:
        best: (rows, owners), score of the nearest prototype of each owner that a query may find; -inf: none.
        present: (trials, owners), who is enrolled.
    """
    person = looks.person[rows]
    place = np.minimum(np.searchsorted(owners, person), len(owners) - 1)
    has_own = owners[place] == person
    own_score = best[np.arange(len(rows)), place]
    for there in present:
        scores = np.where(there, best, -np.inf)
        top = scores.argmax(axis=1)
        score = scores[np.arange(len(rows)), top]
        mated = has_own & there[place]
        valid = np.isfinite(score) & (~mated | np.isfinite(own_score))
        yield rows[valid], owners[top[valid]], score[valid], mated[valid]
