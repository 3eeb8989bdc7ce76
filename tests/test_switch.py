"""The switch point: the manifest's rule, and its measurement against loops in plain Python."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_switches import bucket, switch
from numpy.typing import NDArray
from tiny_bundle import HR_SCALE, LR_SCALE, edit_manifest, embedding_of, manifest_of, tokens_of
from tiny_bundle import write_tiny_bundle as write_tiny

import s3clip_runtime
from s3clip.clips import load_crops
from s3clip.config import DataSettings
from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip_export.switch.buckets import (
    MIN_PEOPLE,
    BothWays,
    bucket_edges,
    choose_height,
    measure_buckets,
)
from s3clip_export.switch.measure import CLIPS_AT_ONCE, data_of, embed_both_ways
from s3clip_export.switch.table import describe
from s3clip_runtime.errors import BundleError, ConfigError, DataError
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch

# The manifest


@pytest.mark.parametrize(
    ("max_height_px", "enhanced", "words"),
    [
        (None, [True, True, True, True], "of every height are"),
        (31.5, [True, True, False, False], "up to 31.5 px are"),
        (0, [False, False, False, False], "no clip is"),
    ],
)
def test_a_switch_is_kept_and_obeyed(
    tmp_path: Path, max_height_px: float | None, enhanced: list[bool], words: str
) -> None:
    folder = write_tiny(tmp_path / "bundle")
    measured = switch(max_height_px)
    write_manifest(folder, Bundle.open(folder).manifest.with_switch(measured))
    bundle = Bundle.open(folder)
    assert bundle.manifest.switch == measured
    assert [bundle.enhances(height) for height in (1, 31.5, 31.6, 500)] == enhanced
    assert words in measured.rule


def test_a_switch_without_intervals_of_its_cost_is_still_read(tmp_path: Path) -> None:
    """Bundles of schema 3 were written before there were any."""
    folder = write_tiny(tmp_path / "bundle")
    write_manifest(folder, manifest_of(folder).with_switch(switch(20)))
    written = json.loads((folder / "manifest.json").read_text())["switch"]
    for old in written["buckets"]:
        del old["ms_change"]
    edit_manifest(folder, switch=written)
    assert Bundle.open(folder).manifest.switch == switch(20)


def test_without_a_switch_all_heights_are_enhanced_and_older_runtimes_read_on(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle")
    assert Bundle.open(folder).enhances(1e9)
    written = json.loads((folder / "manifest.json").read_text())
    assert written["schema_version"] == 2
    assert "switch" not in written


def test_a_switch_has_a_schema_of_its_own(tmp_path: Path) -> None:
    """So that a runtime that knows no switch refuses the bundle by its version, instead of ignoring it."""
    folder = write_tiny(tmp_path / "bundle")
    write_manifest(folder, manifest_of(folder).with_switch(switch(20)))
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 3
    edit_manifest(folder, schema_version=2)
    with pytest.raises(BundleError, match="schema_version must be 3 for what it holds, found 2"):
        Bundle.open(folder)
    edit_manifest(folder, schema_version=3, switch=None)
    with pytest.raises(BundleError, match="schema_version must be 2 for what it holds, found 3"):
        Bundle.open(folder)


def test_the_bundle_of_the_demo_is_still_read() -> None:
    folder = Path(s3clip_runtime.__file__).parent / "demo" / "bundle"
    bundle = Bundle.open(folder)
    assert bundle.manifest.schema_version == 2
    assert bundle.enhances(100)


def test_a_clip_is_as_high_as_its_median_crop() -> None:
    crops = [np.zeros((height, 9, 3), np.uint8) for height in (10, 90, 20, 21, 22, 23, 24, 25)]
    assert Clip(tuple(crops), 0, hr=False).height_px == 22.5


# Buckets


def test_quantile_buckets_hold_about_the_same() -> None:
    heights = np.random.default_rng(0).normal(40, 12, 400).clip(10, 110)
    edges = bucket_edges(heights)
    counts = [((heights > low) & (heights <= high)).sum() for low, high in pairwise(edges)]
    assert len(counts) == 5
    assert sum(counts) == 400
    assert min(counts) > 60
    assert edges[1:-1] == [round(edge) for edge in edges[1:-1]]


def test_few_tracklets_are_one_bucket() -> None:
    assert bucket_edges(np.array([28.0] * 70)) == [0, 28]
    assert bucket_edges(np.array([28.0] * 400)) == [0, 28]


@pytest.mark.parametrize("wanted", [[0], [30, 20], [20, 20], [50], [float("nan")]])
def test_edges_that_do_not_rise_are_refused(wanted: list[float]) -> None:
    assert bucket_edges(np.array([10.0, 50.0]), [20, 30]) == [0, 20, 30, 50]
    with pytest.raises(
        ConfigError, match="--buckets must rise from above 0 to below the tallest LR tracklet of 50"
    ):
        bucket_edges(np.array([10.0, 50.0]), wanted)


def made_up_world(rng: np.random.Generator, people: int) -> tuple[list[Protocol], list[Tracklet], BothWays]:
    """LR tracklets of three aerial cameras and HR ones of a ground camera, with random embeddings."""
    tracklets, heights = [], []
    for person in range(people):
        for camera in ("a", "b", "c", "ground"):
            for number in range(int(rng.integers(0, 3))):
                height = 150 if camera == "ground" else int(rng.integers(15, 60))
                size = (height, 70)
                name = f"{person}{camera}{number}"
                tracklets.append(Tracklet(name, person, camera, 0, Path(), ("x",), (size,)))
                heights.append(height)
    lr = np.array([not t.hr for t in tracklets])
    centre = rng.normal(size=(people, 12))
    near = np.stack([centre[t.identity] for t in tracklets])
    without = (near + 1.2 * rng.normal(size=near.shape)).astype(np.float32)
    with_sr = np.where(lr[:, None], (near + 0.8 * rng.normal(size=near.shape)), without).astype(np.float32)
    ms = rng.random((2, len(tracklets))) + 1
    ground = [t for t in tracklets if t.camera == "ground"]
    aerial = [t for t in tracklets if t.camera != "ground"]
    protocols = [
        Protocol("ag", aerial, ground),
        Protocol("ga", ground, aerial),
        Protocol("aa", aerial, aerial),
    ]
    batch = np.arange(len(tracklets)) // 8
    both = BothWays(lr, np.array(heights, float), with_sr, without, ms[0], ms[1], batch)
    return protocols, tracklets, both


def slow_answers(
    protocol: Protocol, query: Tracklet, vectors: dict[str, NDArray[np.float32]]
) -> tuple[float, float] | None:
    """Rank-1 and average precision of one query, from a sorted list."""
    seen = [t for t in protocol.gallery if not (t.identity == query.identity and t.camera == query.camera)]
    unit = {name: vector / np.sqrt((vector**2).sum()) for name, vector in vectors.items()}
    order = sorted(seen, key=lambda t: -float(unit[t.name] @ unit[query.name]))
    right = [t.identity == query.identity for t in order]
    if not any(right):
        return None
    precisions = [sum(right[: i + 1]) / (i + 1) for i, hit in enumerate(right) if hit]
    return float(right[0]), sum(precisions) / len(precisions)


def test_buckets_equal_slow_loops() -> None:
    protocols, tracklets, both = made_up_world(np.random.default_rng(3), 12)
    edges = [0.0, 25.0, 40.0, 59.0]
    height = dict(zip((t.name for t in tracklets), both.heights_px, strict=True))
    found = measure_buckets(protocols, tracklets, both, edges)

    def vectors(limit: float) -> dict[str, NDArray[np.float32]]:
        return {
            t.name: both.with_sr[i] if not t.hr and height[t.name] <= limit else both.without_sr[i]
            for i, t in enumerate(tracklets)
        }

    for one, (low, high) in zip(found, pairwise(edges), strict=True):
        people: dict[int, list[tuple[float, float, float, float]]] = {}
        for protocol in protocols:
            for query in protocol.query:
                answers = [
                    t for t in protocol.gallery if t.identity == query.identity and t.camera != query.camera
                ]
                if any(not t.hr and low < height[t.name] <= high for t in (query, *answers)) and answers:
                    ours, theirs = (slow_answers(protocol, query, vectors(limit)) for limit in (high, low))
                    assert ours is not None
                    assert theirs is not None
                    people.setdefault(query.identity, []).append((*ours, *theirs))
        means = np.array([np.mean(rows, axis=0) for rows in people.values()]).mean(axis=0)
        held = [t for t in tracklets if not t.hr and low < height[t.name] <= high]
        assert (one.tracklets, one.people) == (len(held), len(people))
        assert one.queries == sum(map(len, people.values()))
        seen = (one.rank1_with, one.map_with, one.rank1_without, one.map_without)
        np.testing.assert_allclose(seen, means, atol=1e-6)
        assert one.map_change.value == pytest.approx(means[1] - means[3], abs=1e-6)
        assert one.map_change.low < one.map_change.value < one.map_change.high
        batches: dict[int, list[float]] = {}
        for i, tracklet in enumerate(tracklets):
            if tracklet in held:
                batches.setdefault(i // 8, []).append(both.with_ms[i] - both.without_ms[i])
        assert one.ms_change is not None
        added = np.mean([np.mean(batch) for batch in batches.values()])
        assert one.ms_change.value == pytest.approx(added)
        assert one.ms_change.low < one.ms_change.value < one.ms_change.high
    assert max(abs(b.map_change.value) for b in found) > 0.02  # there is something to see


def test_a_bucket_that_nobody_asks_for_is_refused() -> None:
    protocols, tracklets, both = made_up_world(np.random.default_rng(3), 12)
    with pytest.raises(DataError, match=r"one of the 0 LR tracklets above 59\.5 and up to 60 px"):
        measure_buckets(protocols, tracklets, both, [0, 59.5, 60])


HARM, MAYBE, GAIN = (-0.05, -0.01), (-0.02, 0.02), (0.01, 0.05)
USELESS = (-0.004, 0.004)


@pytest.mark.parametrize(
    ("changes", "height", "words"),
    [
        ((GAIN, GAIN, GAIN), None, "in the tallest bucket a gain of 0.5 points of mAP is not ruled out"),
        ((GAIN, MAYBE, MAYBE), None, "not ruled out"),
        (
            (GAIN, GAIN, HARM),
            40,
            "up to 40 px are super-resolved; above, a gain of 0.5 points of mAP is ruled out",
        ),
        ((GAIN, USELESS, USELESS), 20, "up to 20 px"),
        ((MAYBE, HARM, USELESS), 20, "up to 20 px"),
        ((HARM, GAIN, HARM), 40, "on (a taller one is)"),
        ((HARM, HARM, GAIN), None, "on (a gain is measured)"),
        ((USELESS, HARM, HARM), 0, "no clip is super-resolved; a gain of"),
    ],
)
def test_the_height_is_that_of_the_tallest_bucket_that_may_gain(
    changes: tuple[tuple[float, float], ...], height: float | None, words: str
) -> None:
    buckets = [
        bucket(low, high, change)
        for low, high, change in zip((0, 20, 40), (20, 40, 60), changes, strict=True)
    ]
    assert choose_height(buckets, 0.005) == height
    assert words in describe(switch(height, *buckets))


def test_a_handful_of_people_switches_nothing_off() -> None:
    for people, height in ((MIN_PEOPLE, 0.0), (MIN_PEOPLE - 1, None)):
        one = bucket(0, 40, HARM, people)
        assert choose_height([one], 0.005) == height
    assert "too few people to tell, give wider --buckets" in describe(switch(None, one))


def test_what_has_to_be_gained_is_a_choice() -> None:
    buckets = [bucket(0, 20, GAIN), bucket(20, 40, USELESS)]
    assert [choose_height(buckets, gain) for gain in (0.004, 0.0041, 0.06)] == [None, 20, 0]


# The measurement


def by_hand(clip: Clip, *, enhance: bool) -> NDArray[np.float64]:
    batch, scale = (lr_batch(clip.crops), LR_SCALE) if enhance else (hr_batch(clip.crops), HR_SCALE)
    return embedding_of(tokens_of(batch, scale), clip.platform)


def test_lr_tracklets_are_embedded_both_ways(tiny_world: Path, bundle_folder: Path) -> None:

    tracklets = protocol_tracklets(read_protocols(DataSettings(root=tiny_world)))
    with Embedder(Bundle.open(bundle_folder), device="cpu", threads=1) as embedder:
        both = embed_both_ways(embedder, tracklets)
    assert 0 < both.lr.sum() < len(tracklets) == 16
    for i, tracklet in enumerate(tracklets):
        crops = tuple(load_crops(tracklet, spread_indices(len(tracklet))))
        clip = Clip(crops, tracklet.platform, tracklet.hr)
        np.testing.assert_allclose(both.with_sr[i], by_hand(clip, enhance=not clip.hr), atol=2e-5)
        np.testing.assert_allclose(both.without_sr[i], by_hand(clip, enhance=False), atol=2e-5)
        assert both.heights_px[i] == (150 if clip.hr else 28)
        assert (both.with_ms[i] > 0) == (both.without_ms[i] > 0) == (not clip.hr)
    for number in np.unique(both.batch):  # one kind, and no more than go at once
        assert len(set(both.lr[both.batch == number])) == 1
        assert (both.batch == number).sum() <= CLIPS_AT_ONCE


def test_the_layout_of_the_data_is_that_of_the_run(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle")
    assert data_of(Bundle.open(folder), tmp_path, None).kind == "folder"
    edit_manifest(folder, training={"config": {"data": {"kind": "mars"}}})
    assert data_of(Bundle.open(folder), tmp_path, None).kind == "mars"
    assert data_of(Bundle.open(folder), tmp_path, "csv").kind == "csv"
