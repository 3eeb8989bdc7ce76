"""How well a changed graph keeps what the unchanged one says: rankings of embeddings, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.evidence import Interval
from s3clip_runtime.inference.gate import (
    centred_cosines,
    cosines,
    kendall_tau,
    similarities,
    top_agreement,
)
from s3clip_runtime.inference.ranking import RankingResult, evaluate_embeddings, paired_bootstrap


@dataclass(frozen=True, slots=True)
class Fidelity:
    """N embeddings beside those of the float32 graph.

    Attributes:
        cosine_mean, cosine_min: of each clip's two embeddings.
        centred_mean, centred_min: the same after the mean of the float32 ones was taken from both.
        top1_agreement: share of clips whose nearest neighbour is the same one.
        kendall_tau: mean rank correlation of all others' similarities, tau-b.
    """

    cosine_mean: float
    cosine_min: float
    centred_mean: float
    centred_min: float
    top1_agreement: float
    kendall_tau: float

    @property
    def loss(self) -> float:
        """What the search makes small: 1 - `centred_mean`, which has no steps as rankings have."""
        return 1.0 - self.centred_mean


def fidelity(expected: NDArray[np.float32], found: NDArray[np.float32]) -> Fidelity:
    """Compare (N, D) embeddings; N >= 3, not all equal."""
    plain, centred = cosines(expected, found), centred_cosines(expected, found)
    ours, theirs = similarities(expected), similarities(found)
    return Fidelity(
        cosine_mean=float(plain.mean()),
        cosine_min=float(plain.min()),
        centred_mean=float(centred.mean()),
        centred_min=float(centred.min()),
        top1_agreement=top_agreement(ours, theirs, 1),
        kendall_tau=kendall_tau(ours, theirs),
    )


@dataclass(frozen=True, slots=True)
class Labels:
    """Who was seen by which camera, for N clips; None where no identity is known."""

    identities: tuple[str | None, ...]
    cameras: tuple[str, ...]


def ranking_changes(
    expected: NDArray[np.float32], found: NDArray[np.float32], labels: Labels
) -> tuple[Interval | None, Interval | None]:
    """Change of Rank-1 and mAP, with intervals, when every clip with an identity asks among all of them.

    Returns:
        None for both where no identity was seen by two cameras.
    """
    known = [i for i, identity in enumerate(labels.identities) if identity is not None]
    try:
        before, after = (_ranked(vectors[known], labels, known) for vectors in (expected, found))
    except DataError:
        return None, None
    valid = before.valid
    hits = [(one.first_hit_rank[valid] == 1).astype(np.float64) for one in (after, before)]
    return _interval(*hits), _interval(after.ap[valid], before.ap[valid])


def _ranked(vectors: NDArray[np.float32], labels: Labels, known: Sequence[int]) -> RankingResult:
    if not known:
        raise DataError("no clip has an identity; give labelled tracklets")
    people = np.unique([str(labels.identities[i]) for i in known], return_inverse=True)[1]
    cameras = np.unique([labels.cameras[i] for i in known], return_inverse=True)[1]
    return evaluate_embeddings(vectors, vectors, people, people, cameras, cameras)


def _interval(after: NDArray[np.float64], before: NDArray[np.float64]) -> Interval:
    change = paired_bootstrap(after, before)
    return Interval(value=change.mean, low=change.low, high=change.high)


def psnr(expected: NDArray[np.float32], found: NDArray[np.float32], peak: float) -> float:
    """Peak signal-to-noise ratio of two arrays of pictures in dB; infinite for equal ones."""
    error = float(np.mean((expected.astype(np.float64) - found.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))
