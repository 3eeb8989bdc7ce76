"""Evaluation of a model on cross-view protocols, with bootstrap intervals over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip.clips import hr_tensor, load_crops, lr_tensor, unit_range
from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.catalog import protocol_tracklets
from s3clip.model import S3Clip
from s3clip_runtime.inference.clips import spread_indices
from s3clip_runtime.inference.ranking import (
    RankingResult,
    bootstrap_interval,
    cosine_distance,
    evaluate_ranking,
)

RANKS = (1, 5, 10)


class Metric(TypedDict):
    """A figure in percent and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class ProtocolResult(TypedDict):
    """What one protocol measured."""

    queries: int
    gallery: int
    rank1: Metric
    rank5: Metric
    rank10: Metric
    map: Metric
    map_xfd: float


@torch.no_grad()
def embed_tracklets(model: S3Clip, tracklets: Sequence[Tracklet], *, device: str) -> NDArray[np.float32]:
    """Unit embeddings float32 (N, D). LR tracklets pass the super-resolver, HR ones skip it (A9)."""
    model.eval()
    rows = []
    for tracklet in tqdm(tracklets, desc="embed", unit="tracklet", leave=False):
        crops = load_crops(tracklet, spread_indices(len(tracklet)))
        if tracklet.hr:
            frames = unit_range(hr_tensor(crops).to(device))
        else:
            frames = model.enhance(unit_range(lr_tensor(crops).to(device)))
        platform = torch.tensor([tracklet.platform], device=device)
        rows.append(model(frames.unsqueeze(0), platform)[0].cpu().numpy())
    return np.stack(rows).astype(np.float32)


def evaluate(model: S3Clip, protocols: Sequence[Protocol], *, device: str) -> dict[str, ProtocolResult]:
    """Rank-1/5/10 and mAP of every protocol. Each tracklet is embedded once."""
    tracklets = protocol_tracklets(protocols)
    rows = embed_tracklets(model, tracklets, device=device)
    vectors = dict(zip((t.name for t in tracklets), rows, strict=True))
    return {protocol.name: _evaluate_protocol(protocol, vectors) for protocol in protocols}


def rank_protocol(protocol: Protocol, vectors: dict[str, NDArray[np.float32]]) -> RankingResult:
    """Rank the gallery for every query; same identity in the same camera does not count (method.md 8.1)."""
    query = np.stack([vectors[t.name] for t in protocol.query])
    gallery = np.stack([vectors[t.name] for t in protocol.gallery])
    return evaluate_ranking(
        cosine_distance(query, gallery),
        np.array([t.identity for t in protocol.query]),
        np.array([t.identity for t in protocol.gallery]),
        np.array([t.camera for t in protocol.query]),
        np.array([t.camera for t in protocol.gallery]),
    )


def _evaluate_protocol(protocol: Protocol, vectors: dict[str, NDArray[np.float32]]) -> ProtocolResult:
    result = rank_protocol(protocol, vectors)
    first = result.first_hit_rank[result.valid]
    rank1, rank5, rank10 = (_metric((first <= rank).astype(np.float64)) for rank in RANKS)
    return ProtocolResult(
        queries=int(result.valid.sum()),
        gallery=len(protocol.gallery),
        rank1=rank1,
        rank5=rank5,
        rank10=rank10,
        map=_metric(result.ap[result.valid]),
        map_xfd=100 * float(result.map_xfd),
    )


def _metric(values: NDArray[np.float64]) -> Metric:
    low, high = bootstrap_interval(values)
    return Metric(value=100 * float(values.mean()), low=100 * low, high=100 * high)


def results_table(results: dict[str, ProtocolResult]) -> str:
    """A plain table: one row a protocol, intervals in brackets, both overall means (A28)."""
    lines = [
        f"{'protocol':<20}{'queries':>8}{'Rank-1':>20}{'Rank-5':>20}{'Rank-10':>20}{'mAP':>20}{'mAP-xfd':>9}"
    ]
    for name, row in results.items():
        cells = "".join(
            f"{_cell(metric):>20}" for metric in (row["rank1"], row["rank5"], row["rank10"], row["map"])
        )
        lines.append(f"{name:<20}{row['queries']:>8}{cells}{row['map_xfd']:>9.1f}")
    simple = float(np.mean([row["map"]["value"] for row in results.values()]))
    weighted = float(
        np.average(
            [row["map"]["value"] for row in results.values()],
            weights=[row["queries"] for row in results.values()],
        )
    )
    lines.append(f"overall mAP: {simple:.1f} (mean of protocols), {weighted:.1f} (weighted by queries)")
    return "\n".join(lines)


def _cell(metric: Metric) -> str:
    return f"{metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]"
