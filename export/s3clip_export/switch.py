"""The switch point: up to which height of a person super-resolution is worth its time, measured.

A bundle's own graphs embed every LR tracklet of a data set both ways. One rule is sought, "super-resolve up
to a height", for queries and gallery alike, so a bucket of heights is judged by two rankings that differ in
it alone: with the rule's height at its top, and at its bottom. From the tallest bucket down super-resolution
is switched off while even the upper end of its gain's interval stays below what it has to bring; the first
bucket in which it may bring that much ends the search. Super-resolution everywhere, the paper's method, so
stays unless it is measured to be wrong. As the order of these tests is fixed and the first that fails ends
them, the level of each is the level of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip.clips import load_crops
from s3clip.config import DataSettings
from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.catalog import is_synthetic, protocol_tracklets, read_protocols
from s3clip.evaluation.evaluate import rank_protocol
from s3clip_export.proof.verify import choose_tracklets, restrict
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.backends.cuda import gpu
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import HeightBucket, Interval, Switch, Target
from s3clip_runtime.inference.ranking import paired_bootstrap

MIN_PEOPLE = 20
"""A bucket with fewer is never switched off: the bootstrap of a handful of people is too sure of itself."""

BUCKET_TRACKLETS = 40
MOST_BUCKETS = 5

CLIPS_AT_ONCE = 8
"""As many as the embedder takes in one pass."""


@dataclass(frozen=True, slots=True)
class BothWays:
    """Every tracklet's embedding with and without super-resolution; an HR one's are the same.

    Attributes:
        lr: bool (N,).
        heights_px: float64 (N,), median crop height of the clip.
        with_sr, without_sr: float32 (N, D).
        with_ms, without_ms: float64 (N,), what a tracklet took; 0 of HR ones.
    """

    lr: NDArray[np.bool_]
    heights_px: NDArray[np.float64]
    with_sr: NDArray[np.float32]
    without_sr: NDArray[np.float32]
    with_ms: NDArray[np.float64]
    without_ms: NDArray[np.float64]

    def up_to(self, height_px: float) -> NDArray[np.float32]:
        """float32 (N, D) under the rule that LR tracklets up to this height are super-resolved."""
        return np.where((self.lr & (self.heights_px <= height_px))[:, None], self.with_sr, self.without_sr)


@dataclass(frozen=True, slots=True)
class _Answers:
    """Per query of all protocols that has an answer, in one order for every rule.

    Attributes:
        person: int64 (Q,).
        hit, ap: float64 (Q,), 1 where the first rank is right, and the average precision.
    """

    person: NDArray[np.int64]
    hit: NDArray[np.float64]
    ap: NDArray[np.float64]


def measure_switch(
    bundle: Bundle,
    data: DataSettings,
    *,
    device: str = "auto",
    target: Target | None = None,
    edges_px: Sequence[float] = (),
    count: int | None = None,
    min_gain: float,
) -> Switch:
    """Embed a test split both ways, rank it, and choose the height.

    Args:
        bundle: whose graphs run.
        data: whose test split is used.
        device, target: as of `Embedder`.
        edges_px: rising heights between the buckets; none: quantiles of the LR tracklets.
        count: about how many tracklets, of whole identities; None: all.
        min_gain: gain of mAP in [0, 1] that must be possible for super-resolution to stay on.

    Raises:
        ConfigError: the edges do not rise from above 0.
        DataError: the data has no LR tracklet or no query with an answer, a bucket has no query to measure
            it by, or the data cannot be read.
        BackendError: the target cannot run on the device.
    """
    protocols = read_protocols(data)
    tracklets = protocol_tracklets(protocols)
    if count is not None:
        tracklets = choose_tracklets(protocols, count)
        protocols = restrict(protocols, tracklets)
    if not protocols:
        raise DataError(
            f"{data.root}: none of {len(tracklets)} tracklets can be ranked; take more --tracklets"
        )
    if all(t.hr for t in tracklets):
        raise DataError(
            f"{data.root}: a switch is about LR tracklets and the test split has none; give other data"
        )
    with Embedder(bundle, device=device, target=target) as embedder:
        both = embed_both_ways(embedder, tracklets)
        ran = str(embedder.target)
        where = embedder.device if embedder.device == "cpu" else f"{embedder.device} ({gpu().name})"
    edges = bucket_edges(both.heights_px[both.lr], edges_px)
    buckets = measure_buckets(protocols, tracklets, both, edges)
    return Switch(
        max_height_px=choose_height(buckets, min_gain),
        min_gain=min_gain,
        data=data.root.resolve().name,
        synthetic=is_synthetic(data),
        tracklets=len(tracklets),
        queries=len(_rank(protocols, tracklets, both.with_sr).person),
        target=ran,
        device=where,
        created=datetime.now(UTC),
        buckets=buckets,
    )


def embed_both_ways(embedder: Embedder, tracklets: Sequence[Tracklet]) -> BothWays:
    """Each tracklet's evaluation clip; LR ones twice."""
    count, dim = len(tracklets), embedder.contract.embedding_dim
    lr = np.array([not t.hr for t in tracklets])
    both = BothWays(
        lr,
        np.zeros(count),
        np.empty((count, dim), np.float32),
        np.empty((count, dim), np.float32),
        np.zeros(count),
        np.zeros(count),
    )
    order = np.argsort(~lr, kind="stable")  # batches of one kind, so that their times say something
    parts = [
        kind[low : low + CLIPS_AT_ONCE]
        for kind in (order[: lr.sum()], order[lr.sum() :])
        for low in range(0, len(kind), CLIPS_AT_ONCE)
    ]
    warm = [_clip(tracklets[i]) for i in parts[0]]
    for enhance in (True, False):  # the first run of a batch size prepares it, which is not what a look takes
        embedder.embed_looks(warm, enhance=[enhance and not clip.hr for clip in warm])
    with tqdm(total=count, desc=f"embed on {embedder.device}", unit="tracklet", leave=False) as bar:
        for rows in parts:
            clips = [_clip(tracklets[i]) for i in rows]
            both.heights_px[rows] = [clip.height_px for clip in clips]
            plain = embedder.embed_looks(clips, enhance=[False] * len(clips))
            both.with_sr[rows] = both.without_sr[rows] = plain.vectors
            if lr[rows[0]]:
                enhanced = embedder.embed_looks(clips, enhance=[True] * len(clips))
                both.with_sr[rows] = enhanced.vectors
                both.with_ms[rows] = (enhanced.enhance_ms + enhanced.embed_ms) / len(rows)
                both.without_ms[rows] = (plain.enhance_ms + plain.embed_ms) / len(rows)
            bar.update(len(rows))
    return both


def bucket_edges(lr_heights_px: NDArray[np.float64], wanted: Sequence[float] = ()) -> list[float]:
    """Rising edges, from 0 to the tallest LR tracklet; a bucket reaches from above one to the next.

    Args:
        lr_heights_px: float64 (N,), N >= 1.
        wanted: inner edges; none: quantiles, at whole pixels.

    Raises:
        ConfigError: `wanted` does not rise from above 0 to below the tallest.
    """
    tallest = float(lr_heights_px.max())
    inner = list(wanted)
    if not inner:
        count = min(max(len(lr_heights_px) // BUCKET_TRACKLETS, 1), MOST_BUCKETS)
        quantiles = np.quantile(lr_heights_px, np.arange(1, count) / count)
        inner = sorted({float(edge) for edge in np.round(quantiles)} - {tallest})
    edges = [0.0, *inner, tallest]
    if not all(low < high for low, high in pairwise(edges)):  # so that NaN is refused too
        raise ConfigError(
            f"--buckets must rise from above 0 to below the tallest LR tracklet of {tallest:g} px, found "
            f"{','.join(f'{edge:g}' for edge in inner)}; give heights between them"
        )
    return edges


def measure_buckets(
    protocols: Sequence[Protocol], tracklets: Sequence[Tracklet], both: BothWays, edges_px: Sequence[float]
) -> tuple[HeightBucket, ...]:
    """Each bucket with the rule's height at its top against its bottom.

    Raises:
        DataError: a bucket has no LR tracklet, or none that a query asks with or for.
    """
    ranked = [_rank(protocols, tracklets, both.up_to(edge)) for edge in edges_px]
    buckets = []
    for (low, high), (without, with_sr) in zip(pairwise(edges_px), pairwise(ranked), strict=True):
        inside = both.lr & (both.heights_px > low) & (both.heights_px <= high)
        touched = _touched(protocols, {t.name for t, held in zip(tracklets, inside, strict=True) if held})
        if not touched.any():
            raise DataError(
                f"no query asks with or for one of the {inside.sum()} LR tracklets above {low:g} and up to "
                f"{high:g} px; give other --buckets"
            )
        hits = [_by_person(side.person[touched], side.hit[touched]) for side in (with_sr, without)]
        precisions = [_by_person(side.person[touched], side.ap[touched]) for side in (with_sr, without)]
        buckets.append(
            HeightBucket(
                low_px=low,
                high_px=high,
                tracklets=int(inside.sum()),
                people=len(hits[0]),
                queries=int(touched.sum()),
                rank1_with=float(hits[0].mean()),
                rank1_without=float(hits[1].mean()),
                map_with=float(precisions[0].mean()),
                map_without=float(precisions[1].mean()),
                rank1_change=_change(*hits),
                map_change=_change(*precisions),
                ms_with=float(both.with_ms[inside].mean()),
                ms_without=float(both.without_ms[inside].mean()),
            )
        )
    return tuple(buckets)


def choose_height(buckets: Sequence[HeightBucket], min_gain: float) -> float | None:
    """The tallest height that is super-resolved: 0 for none, None for all."""
    for bucket in reversed(buckets):
        if not is_useless(bucket, min_gain):
            return None if bucket is buckets[-1] else bucket.high_px
    return 0.0


def is_useless(bucket: HeightBucket, min_gain: float) -> bool:
    """Whether super-resolution is measured to bring less mAP than it has to, which includes that it harms."""
    return bucket.people >= MIN_PEOPLE and bucket.map_change.high < min_gain


def write_switch(bundle: Bundle, switch: Switch) -> None:
    """Write the manifest anew with the switch; after a crash there is the old one or the new one.

    Raises:
        BundleError: the folder cannot be written.
    """
    write_manifest(bundle.folder, bundle.manifest.with_switch(switch))


def _clip(tracklet: Tracklet) -> Clip:
    crops = load_crops(tracklet, spread_indices(len(tracklet)))
    return Clip(tuple(crops), tracklet.platform, tracklet.hr)


def _rank(
    protocols: Sequence[Protocol], tracklets: Sequence[Tracklet], rows: NDArray[np.float32]
) -> _Answers:
    vectors = dict(zip((t.name for t in tracklets), rows, strict=True))
    person, hit, ap = [], [], []
    for protocol in protocols:
        result = rank_protocol(protocol, vectors)
        person.append(np.array([t.identity for t in protocol.query])[result.valid])
        hit.append((result.first_hit_rank[result.valid] == 1).astype(np.float64))
        ap.append(result.ap[result.valid])
    return _Answers(np.concatenate(person), np.concatenate(hit), np.concatenate(ap))


def _touched(protocols: Sequence[Protocol], names: set[str]) -> NDArray[np.bool_]:
    """bool (Q,) over the queries of `_rank`: they, or a right answer of theirs, are among the names."""
    found = []
    for protocol in protocols:
        answers: dict[int, list[Tracklet]] = {}
        for tracklet in protocol.gallery:
            answers.setdefault(tracklet.identity, []).append(tracklet)
        for query in protocol.query:
            right = [t for t in answers.get(query.identity, ()) if t.camera != query.camera]
            if right:  # else it is not valid, and not ranked
                found.append(query.name in names or any(t.name in names for t in right))
    return np.array(found)


def _by_person(person: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each person's queries: they resemble each other, so people are what the bootstrap may draw."""
    _, rows = np.unique(person, return_inverse=True)
    means: NDArray[np.float64] = np.bincount(rows, weights=values) / np.bincount(rows)
    return means


def _change(with_sr: NDArray[np.float64], without: NDArray[np.float64]) -> Interval:
    change = paired_bootstrap(with_sr, without)
    return Interval(value=change.mean, low=change.low, high=change.high)


def data_of(bundle: Bundle, root: Path, kind: str | None) -> DataSettings:
    """Settings of a data set; without a kind the layout that the bundle's run was trained on, or folder."""
    config = bundle.manifest.training.get("config")
    trained = config.get("data") if isinstance(config, dict) else None
    own = trained.get("kind") if isinstance(trained, dict) else None
    return DataSettings.model_validate({"root": root, "kind": kind or own or "folder"})
