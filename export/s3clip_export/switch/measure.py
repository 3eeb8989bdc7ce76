"""Embeds a test split both ways with the bundle's own graphs, and writes the switch that follows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3clip.clips import load_crops
from s3clip.config import DataSettings
from s3clip.datasets import Tracklet
from s3clip.datasets.catalog import is_synthetic, protocol_tracklets, read_protocols
from s3clip_export.proof.verify import choose_tracklets, restrict
from s3clip_export.switch.buckets import (
    BothWays,
    bucket_edges,
    choose_height,
    count_queries,
    measure_buckets,
)
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.backends.cuda import gpu
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.evidence import Switch
from s3clip_runtime.inference.manifest import Target

CLIPS_AT_ONCE = 8
"""As many as the embedder takes in one pass."""


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
        queries=count_queries(protocols, tracklets, both),
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
        np.zeros(count, np.int64),
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
        for number, rows in enumerate(parts):
            both.batch[rows] = number
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


def write_switch(bundle: Bundle, switch: Switch) -> None:
    """Write the manifest anew with the switch; after a crash there is the old one or the new one.

    Raises:
        BundleError: the folder cannot be written.
    """
    write_manifest(bundle.folder, bundle.manifest.with_switch(switch))


def data_of(bundle: Bundle, root: Path, kind: str | None) -> DataSettings:
    """Settings of a data set; without a kind the layout that the bundle's run was trained on, or folder."""
    config = bundle.manifest.training.get("config")
    trained = config.get("data") if isinstance(config, dict) else None
    own = trained.get("kind") if isinstance(trained, dict) else None
    return DataSettings.model_validate({"root": root, "kind": kind or own or "folder"})


def _clip(tracklet: Tracklet) -> Clip:
    crops = load_crops(tracklet, spread_indices(len(tracklet)))
    return Clip(tuple(crops), tracklet.platform, tracklet.hr)
