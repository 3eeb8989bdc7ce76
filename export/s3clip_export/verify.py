"""Proof that the exported graphs rank like the PyTorch model: the same real crops through both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s3clip.clips import load_crops
from s3clip.datasets import Tracklet
from s3clip.evaluation.evaluate import embed_tracklets
from s3clip.models.model import S3Clip
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.bundle import PLAIN, Bundle, Proof
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.spec import CLIP_LENGTH

BOUNDS = {"cosine_min": 0.99999, "max_abs_error": 1e-4, "top1_agreement": 0.99}
"""FP32 graphs: the cosine and the agreement must reach their bound, the error must stay below it."""


def choose_tracklets(tracklets: Sequence[Tracklet], count: int) -> list[Tracklet]:
    """At most `count` tracklets, evenly spread over the list, half of them HR where there are enough.

    Raises:
        DataError: fewer than two tracklets: a ranking needs a neighbour.
    """
    if len(tracklets) < 2:
        raise DataError(f"parity needs at least 2 tracklets, got {len(tracklets)}; give a larger --data")
    hr, lr = [t for t in tracklets if t.hr], [t for t in tracklets if not t.hr]
    wanted = min(len(hr), max(count // 2, count - len(lr)))
    return _spread(hr, wanted) + _spread(lr, min(len(lr), count - wanted))


def measure_parity(model: S3Clip, draft: Bundle, tracklets: Sequence[Tracklet]) -> Proof:
    """Embed every tracklet with PyTorch and with the runtime's own embedder on the CPU, and compare."""
    expected = embed_tracklets(model, tracklets, device="cpu")
    clips = [Clip(tuple(load_crops(t, spread_indices(len(t)))), t.platform, t.hr) for t in tracklets]
    with Embedder(draft, device="cpu") as embedder:
        found = embedder.embed(clips)
    cosine = np.sum(expected * found, axis=1)
    return Proof(
        target=str(PLAIN),
        device="cpu",
        tracklets=len(tracklets),
        crops=len(tracklets) * CLIP_LENGTH,
        stages={},
        cosine_mean=float(cosine.mean()),
        cosine_p1=float(np.percentile(cosine, 1)),
        cosine_min=float(cosine.min()),
        max_abs_error=float(np.abs(expected - found).max()),
        top1_agreement=_agreement(expected, found, 1),
        top10_agreement=_agreement(expected, found, 10),
        kendall_tau=float(np.mean(_taus(expected, found))),
        rank1_change=None,
        map_change=None,
        bounds=BOUNDS,
    )


def _agreement(expected: NDArray[np.float32], found: NDArray[np.float32], count: int) -> float:
    pairs = zip(_order(expected)[:, :count], _order(found)[:, :count], strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))


def _taus(expected: NDArray[np.float32], found: NDArray[np.float32]) -> list[float]:
    from scipy.stats import kendalltau

    pairs = zip(expected @ expected.T, found @ found.T, strict=True)
    return [float(kendalltau(np.delete(a, i), np.delete(b, i)).statistic) for i, (a, b) in enumerate(pairs)]


def broken_bounds(parity: Proof) -> list[str]:
    """What misses its bound, with both values; empty when the graphs may be shipped."""
    checks = {
        "cosine_min": parity.cosine_min >= BOUNDS["cosine_min"],
        "max_abs_error": parity.max_abs_error <= BOUNDS["max_abs_error"],
        "top1_agreement": parity.top1_agreement >= BOUNDS["top1_agreement"],
    }
    return [
        f"{name} is {getattr(parity, name):.8g}, bound {BOUNDS[name]:g}"
        for name, holds in checks.items()
        if not holds
    ]


def _order(vectors: NDArray[np.float32]) -> NDArray[np.intp]:
    """Of each tracklet the others, nearest first."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    order: NDArray[np.intp] = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
    return order


def _spread(items: Sequence[Tracklet], count: int) -> list[Tracklet]:
    return [items[i * len(items) // count] for i in range(count)]
