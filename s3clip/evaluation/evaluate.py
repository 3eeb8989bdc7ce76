"""Evaluation of a model on cross-view protocols: embed every tracklet once, rank, measure."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from s3clip.clips import hr_tensor, load_crops, lr_tensor, unit_range
from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.catalog import protocol_tracklets
from s3clip.evaluation.figures import ProtocolResult, protocol_result
from s3clip.evaluation.rerank import RerankSettings, rerank
from s3clip.loop import Interrupted
from s3clip.models.model import S3Clip
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.clips import consecutive_indices, is_hr_frame, spread_indices
from s3clip_runtime.inference.ranking import (
    RankingResult,
    distance_blocks,
    evaluate_embeddings,
    evaluate_ranking,
)
from s3clip_runtime.inference.spec import CLIP_LENGTH, FRAME_SIZE

Clips = Literal["one", "all"]
"""`one`: the clip of `spread_indices`; `all`: consecutive clips over every frame, embeddings averaged."""

HrRule = Literal["tracklet", "frame"]
"""Which frames skip super-resolution: those of HR tracklets, as at run time, or every HR frame (A8)."""

CLIPS_PER_BATCH = 8
"""64 frames, which fills a GPU; on a CPU a batch is no faster than single clips, but no slower either."""

RERANKED_ROWS = 256
"""Queries whose re-ranked distances are handed on at once."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What is evaluated, and how.

    Attributes:
        device: a PyTorch device; None takes the run's own.
        clips: see `Clips`.
        rerank: parameters of the k-reciprocal re-ranking; None ranks by the cosine (method.md 8.1).
        pairs: further protocols, each QUERY_CAMERA:GALLERY_CAMERA.
        hr_rule: see `HrRule`.
    """

    device: str | None = None
    clips: Clips = "one"
    rerank: RerankSettings | None = None
    pairs: tuple[str, ...] = ()
    hr_rule: HrRule = "tracklet"


@dataclass(frozen=True)
class RankedProtocol:
    """A protocol with its embeddings and what its ranking measured.

    Attributes:
        query: float32 (Q, D). gallery: float32 (G, D). In the protocol's order.
        reranked: float32 (Q, G) distances in the place of the cosine's, or None.
    """

    protocol: Protocol
    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    reranked: NDArray[np.float32] | None
    result: RankingResult

    def distances(self, queries: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Distances of chosen queries: position in `queries` of the first, and float32 (B, G).

        A block is overwritten by the next one.
        """
        if self.reranked is None:
            yield from distance_blocks(self.query[list(queries)], self.gallery)
            return
        for first in range(0, len(queries), RERANKED_ROWS):
            yield first, self.reranked[list(queries[first : first + RERANKED_ROWS])]


def embed_tracklets(
    model: S3Clip,
    tracklets: Sequence[Tracklet],
    *,
    device: str,
    clips: Clips = "one",
    hr_rule: HrRule = "tracklet",
    stop: threading.Event | None = None,
) -> NDArray[np.float32]:
    """Unit embeddings float32 (N, D). LR frames pass the super-resolver, HR ones skip it (A9).

    Raises:
        Interrupted: `stop` was set; looked at before every batch.
    """
    model.eval()
    total = sum(1 if clips == "one" else math.ceil(len(t) / CLIP_LENGTH) for t in tracklets)
    sums: NDArray[np.float32] | None = None
    progress = tqdm(total=total, desc="embed", unit="clip", leave=False)
    with progress, ThreadPoolExecutor(1) as loader:
        load = partial(_load, hr_rule=None if model.direct else hr_rule)
        for batch in _load_ahead(_batches(tracklets, clips), load, loader):
            if stop is not None and stop.is_set():
                raise Interrupted(
                    f"stopped after {progress.n} of {total} clips were embedded; nothing was written, "
                    "the same command starts again"
                )
            vectors = _embed(model, batch, device)
            if sums is None:
                sums = np.zeros((len(tracklets), vectors.shape[1]), dtype=np.float32)
            np.add.at(sums, batch.rows, vectors)
            progress.update(len(vectors))
    if sums is None:
        raise ConfigError("an evaluation needs at least one tracklet, got none; check the data set")
    if clips == "all":
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    return sums


class _Batch(NamedTuple):
    """B clips of T frames.

    Attributes:
        rows: of their tracklets.
        platforms: int64 (B,).
        sharp: bool (B * T,), frames that skip super-resolution.
        high: uint8 (sharp frames, 3, 256, 128).
        low: uint8 (other frames, 3, 64, 32).
    """

    rows: list[int]
    platforms: Tensor
    sharp: Tensor
    high: Tensor
    low: Tensor


_Plan = list[tuple[int, Tracklet, list[int]]]


def _clips(tracklet: Tracklet, clips: Clips) -> list[list[int]]:
    count = len(tracklet)
    return [spread_indices(count)] if clips == "one" else consecutive_indices(count)


def _batches(tracklets: Sequence[Tracklet], clips: Clips) -> Iterator[_Plan]:
    """Row, tracklet and frames of some clips after the other: LR tracklets first, then HR ones.

    So nearly all batches need only one of the two ways into the encoder.
    """
    plan = (
        (row, tracklet, indices)
        for row, tracklet in sorted(enumerate(tracklets), key=lambda item: item[1].hr)
        for indices in _clips(tracklet, clips)
    )
    while batch := list(islice(plan, CLIPS_PER_BATCH)):
        yield batch


def _load_ahead(
    plans: Iterable[_Plan], load: Callable[[_Plan], _Batch], loader: ThreadPoolExecutor
) -> Iterator[_Batch]:
    """The batches in order; the next one is decoded while the caller works on this one."""
    waiting = None
    for plan in plans:
        loading = loader.submit(load, plan)
        if waiting is not None:
            yield waiting.result()
        waiting = loading
    if waiting is not None:
        yield waiting.result()


def _load(plan: _Plan, *, hr_rule: HrRule | None) -> _Batch:
    """Read the frames; without a rule all of them skip super-resolution, for there is none."""
    crops = [crop for _, tracklet, indices in plan for crop in load_crops(tracklet, indices)]
    sharp = [
        hr_rule is None or (is_hr_frame(tracklet.sizes[i]) if hr_rule == "frame" else tracklet.hr)
        for _, tracklet, indices in plan
        for i in indices
    ]
    return _Batch(
        rows=[row for row, _, _ in plan],
        platforms=torch.tensor([tracklet.platform for _, tracklet, _ in plan]),
        sharp=torch.tensor(sharp),
        high=hr_tensor([crop for crop, high in zip(crops, sharp, strict=True) if high]),
        low=lr_tensor([crop for crop, high in zip(crops, sharp, strict=True) if not high]),
    )


@torch.no_grad()
def _embed(model: S3Clip, batch: _Batch, device: str) -> NDArray[np.float32]:
    frames = torch.empty(len(batch.sharp), 3, *FRAME_SIZE, device=device)
    sharp = batch.sharp.to(device)
    frames[sharp] = unit_range(batch.high.to(device))
    if len(batch.low):
        frames[~sharp] = model.enhance(unit_range(batch.low.to(device)))
    vectors = model(frames.reshape(-1, CLIP_LENGTH, *frames.shape[1:]), batch.platforms.to(device))
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array


def evaluate(
    model: S3Clip, protocols: Sequence[Protocol], *, device: str, stop: threading.Event | None = None
) -> dict[str, ProtocolResult]:
    """Rank-1/5/10 and mAP of every protocol. Each tracklet is embedded once.

    Raises:
        Interrupted: `stop` was set.
    """
    tracklets = protocol_tracklets(protocols)
    rows = embed_tracklets(model, tracklets, device=device, stop=stop)
    vectors = dict(zip((t.name for t in tracklets), rows, strict=True))
    return {
        protocol.name: protocol_result(
            protocol.query, len(protocol.gallery), rank_protocol(protocol, vectors)
        )
        for protocol in protocols
    }


def rank_protocol(protocol: Protocol, vectors: Mapping[str, NDArray[np.float32]]) -> RankingResult:
    """Rank the gallery for every query; same identity in the same camera does not count (method.md 8.1)."""
    return ranked(protocol, vectors).result


def ranked(
    protocol: Protocol,
    vectors: Mapping[str, NDArray[np.float32]],
    settings: RerankSettings | None = None,
) -> RankedProtocol:
    """Rank by the cosine, or re-rank; `vectors` are the embeddings by tracklet name."""
    query = np.stack([vectors[t.name] for t in protocol.query])
    gallery = np.stack([vectors[t.name] for t in protocol.gallery])
    labels = (
        np.array([t.identity for t in protocol.query]),
        np.array([t.identity for t in protocol.gallery]),
        np.array([t.camera for t in protocol.query]),
        np.array([t.camera for t in protocol.gallery]),
    )
    if settings is None:
        return RankedProtocol(protocol, query, gallery, None, evaluate_embeddings(query, gallery, *labels))
    distance = rerank(query, gallery, settings)
    return RankedProtocol(protocol, query, gallery, distance, evaluate_ranking(distance, *labels))


def pair_protocols(protocols: Sequence[Protocol], pairs: Iterable[str]) -> list[Protocol]:
    """One protocol for each QUERY_CAMERA:GALLERY_CAMERA, over all tracklets of `protocols`.

    Raises:
        ConfigError: a pair is written otherwise, names an unknown camera, or has no query with a match.
    """
    tracklets = protocol_tracklets(protocols)
    cameras = sorted({tracklet.camera for tracklet in tracklets})
    made = []
    for pair in dict.fromkeys(pairs):
        query, colon, gallery = pair.partition(":")
        if not colon or query not in cameras or gallery not in cameras:
            raise ConfigError(
                f"--pair {pair}: a pair is QUERY_CAMERA:GALLERY_CAMERA; the cameras are {', '.join(cameras)}"
            )
        protocol = Protocol(
            pair,
            [tracklet for tracklet in tracklets if tracklet.camera == query],
            [tracklet for tracklet in tracklets if tracklet.camera == gallery],
        )
        if not protocol.answerable:
            raise ConfigError(
                f"--pair {pair}: no person was seen by both cameras, or they are one camera, whose own "
                "matches do not count; choose another pair"
            )
        made.append(protocol)
    return made
