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
from s3clip_runtime.inference.bundle import Bundle, Parity
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.spec import CLIP_LENGTH

BOUNDS = {"worst_cosine": 0.99999, "max_abs_error": 1e-4, "top1_agreement": 0.99}
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


def measure_parity(model: S3Clip, draft: Bundle, tracklets: Sequence[Tracklet]) -> Parity:
    """Embed every tracklet with PyTorch and with the runtime's own embedder on the CPU, and compare."""
    expected = embed_tracklets(model, tracklets, device="cpu")
    clips = [Clip(tuple(load_crops(t, spread_indices(len(t)))), t.platform, t.hr) for t in tracklets]
    with Embedder(draft, device="cpu") as embedder:
        found = embedder.embed(clips)
    cosine = np.sum(expected * found, axis=1)
    return Parity(
        crops=len(tracklets) * CLIP_LENGTH,
        tracklets=len(tracklets),
        worst_cosine=float(cosine.min()),
        mean_cosine=float(cosine.mean()),
        max_abs_error=float(np.abs(expected - found).max()),
        top1_agreement=float(np.mean(_nearest(expected) == _nearest(found))),
        bounds=BOUNDS,
    )


def broken_bounds(parity: Parity) -> list[str]:
    """What misses its bound, with both values; empty when the graphs may be shipped."""
    checks = {
        "worst_cosine": parity.worst_cosine >= BOUNDS["worst_cosine"],
        "max_abs_error": parity.max_abs_error <= BOUNDS["max_abs_error"],
        "top1_agreement": parity.top1_agreement >= BOUNDS["top1_agreement"],
    }
    return [
        f"{name} is {getattr(parity, name):.8g}, bound {BOUNDS[name]:g}"
        for name, holds in checks.items()
        if not holds
    ]


def _nearest(vectors: NDArray[np.float32]) -> NDArray[np.intp]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.intp] = similarity.argmax(axis=1)
    return nearest


def _spread(items: Sequence[Tracklet], count: int) -> list[Tracklet]:
    return [items[i * len(items) // count] for i in range(count)]
