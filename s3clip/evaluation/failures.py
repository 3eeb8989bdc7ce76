"""The worst failures of a protocol as pictures: what was asked, what was found, and what should have been."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3clip.clips import load_crops
from s3clip.datasets import Tracklet
from s3clip.evaluation.evaluate import RankedProtocol
from s3clip.evaluation.figures import heights_of
from s3clip.models.model import S3Clip
from s3clip.pictures import side_by_side, super_resolved
from s3clip_runtime.inference.clips import spread_indices
from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.inference.spec import SR_SIZE

SHOWN_ENTRIES = 5
"""Gallery entries shown of a ranking."""

JPEG_QUALITY = 92


@dataclass(frozen=True)
class Shown:
    """A tracklet as pictures.

    Attributes:
        height: median native frame height in pixels.
        native: data URI of its frames, resized by a bicubic to the height of the super-resolved picture.
        enhanced: data URI of the same frames after super-resolution; None for HR, which skips it (A9).
    """

    name: str
    height: float
    native: str
    enhanced: str | None


@dataclass(frozen=True)
class Entry:
    """A gallery entry in a ranking: its rank from 1, its score, and whether it is the query's person."""

    shown: Shown
    rank: int
    score: float
    right: bool


@dataclass(frozen=True)
class Failure:
    """A query, the nearest entries, and the first match with its rank."""

    query: Shown
    nearest: list[Entry]
    match: Entry


class Photographer:
    """Makes pictures of tracklets, also through a model's super-resolver."""

    def __init__(self, model: S3Clip, device: str) -> None:
        self._model = model
        self._device = device

    def show(self, tracklet: Tracklet, frames: Sequence[int]) -> Shown:
        """Chosen frames side by side."""
        crops = load_crops(tracklet, frames)
        enhanced = (
            None
            if tracklet.hr or self._model.direct
            else _picture(super_resolved(self._model, crops, self._device))
        )
        native = _picture([resize_bicubic(crop, SR_SIZE) for crop in crops])
        return Shown(tracklet.name, float(heights_of([tracklet])[0]), native, enhanced)


def worst_failures(ranked: RankedProtocol, photographer: Photographer, count: int) -> list[Failure]:
    """At most `count` queries whose first match stands farthest back, worst first; none that succeeded."""
    first = ranked.result.first_hit_rank
    worst = [int(query) for query in np.argsort(-first, kind="stable")[:count] if first[query] > 1]
    rows = (row for _, block in ranked.distances(worst) for row in block)
    return [_failure(ranked, query, row, photographer) for query, row in zip(worst, rows, strict=True)]


def _failure(
    ranked: RankedProtocol, query: int, row: NDArray[np.float32], photographer: Photographer
) -> Failure:
    asked, gallery = ranked.protocol.query[query], ranked.protocol.gallery
    order = [
        int(g)
        for g in np.argsort(row, kind="stable")
        if (gallery[g].identity, gallery[g].camera) != (asked.identity, asked.camera)
    ]
    rank = next(i for i, g in enumerate(order, 1) if gallery[g].identity == asked.identity)

    def entry(place: int) -> Entry:
        found = order[place - 1]
        tracklet = gallery[found]
        # The cosine where it ranks; the re-ranked distance is no cosine and stays as it is.
        score = float(row[found]) if ranked.reranked is not None else -float(row[found])
        shown = photographer.show(tracklet, [len(tracklet) // 2])
        return Entry(shown, place, score, tracklet.identity == asked.identity)

    return Failure(
        query=photographer.show(asked, spread_indices(len(asked))),
        nearest=[entry(place) for place in range(1, min(SHOWN_ENTRIES, len(order)) + 1)],
        match=entry(rank),
    )


def _picture(frames: Sequence[NDArray[np.uint8]]) -> str:
    """Frames uint8 (h, w, 3) of one size, side by side, as a data URI."""
    file = io.BytesIO()
    Image.fromarray(side_by_side(frames)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
