"""Embedding in batches, protocols of camera pairs, figures by height, the challenge's CSV."""

from __future__ import annotations

import csv
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_run import tiny_tree
from worlds import write_block_world

from s3clip.clips import hr_tensor, load_crops, lr_tensor, unit_range
from s3clip.config import DataSettings, parse_config
from s3clip.datasets import Protocol, Tracklet, cross_view_protocols
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.evaluation import evaluate as evaluate_module
from s3clip.evaluation.evaluate import (
    RankedProtocol,
    embed_tracklets,
    evaluate,
    pair_protocols,
    rank_protocol,
    ranked,
)
from s3clip.evaluation.figures import height_buckets, heights_of, overall, protocol_result, results_table
from s3clip.evaluation.rerank import RerankSettings, rerank
from s3clip.evaluation.submission import SubmissionWriter, challenge_cases
from s3clip.loop import Interrupted
from s3clip.models.model import S3Clip, build_model
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.clips import consecutive_indices, spread_indices
from s3clip_runtime.inference.ranking import bootstrap_interval, cosine_distance, evaluate_ranking


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> S3Clip:
    torch.manual_seed(0)
    return build_model(parse_config(tiny_tree(tmp_path_factory.mktemp("none")), "test")).eval()


@pytest.fixture(scope="module")
def tracklets(tmp_path_factory: pytest.TempPathFactory) -> list[Tracklet]:
    """Two identities, each twice on both platforms, 19 frames: two whole clips and three frames."""
    root = write_block_world(tmp_path_factory.mktemp("long") / "blocks", train=0, test=2, frames=19)
    return protocol_tracklets(read_protocols(DataSettings(root=root)))


@torch.no_grad()
def embed_clip(model: S3Clip, tracklet: Tracklet, indices: list[int]) -> NDArray[np.float32]:
    """One clip alone, the obvious way."""
    crops = load_crops(tracklet, indices)
    frames = unit_range(hr_tensor(crops)) if tracklet.hr else model.enhance(unit_range(lr_tensor(crops)))
    vector: NDArray[np.float32] = model(frames[None], torch.tensor([tracklet.platform]))[0].numpy()
    return vector


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 19])
def test_consecutive_clips_hold_every_frame_once_and_repeat_the_last(count: int) -> None:
    clips = consecutive_indices(count)
    assert all(len(clip) == 8 for clip in clips)
    frames = [index for clip in clips for index in clip]
    assert frames[:count] == list(range(count))
    assert set(frames[count:]) <= {count - 1}
    assert len(frames) - count < 8


def test_each_frame_may_decide_by_itself(model: S3Clip, tmp_path: Path) -> None:
    """A8's option, against one frame after the other."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    sizes = [(150, 70), (40, 20)] * 4
    for number, size in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.jpg")
    files = tuple(f"{number}.jpg" for number in range(len(sizes)))
    mixed = Tracklet("mixed", 0, "c", 1, folder, files, tuple(sizes))
    frames = []
    for index, size in enumerate(sizes):
        crop = load_crops(mixed, [index])
        with torch.no_grad():
            small = model.enhance(unit_range(lr_tensor(crop)))
        frames.append(unit_range(hr_tensor(crop)) if size[0] >= 128 else small)
    with torch.no_grad():
        expected = model(torch.cat(frames)[None], torch.tensor([1])).numpy()
    np.testing.assert_allclose(
        embed_tracklets(model, [mixed], device="cpu", hr_rule="frame"), expected, atol=1e-5
    )
    assert mixed.hr
    assert np.abs(embed_tracklets(model, [mixed], device="cpu") - expected).max() > 1e-4


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_embed_like_single_tracklets(
    model: S3Clip, tracklets: list[Tracklet], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "CLIPS_PER_BATCH", batch)
    mixed = tracklets[::-1][1::2] + tracklets[::2]  # HR and LR in any order
    assert {t.hr for t in mixed} == {True, False}
    expected = np.stack([embed_clip(model, t, spread_indices(len(t))) for t in mixed])
    np.testing.assert_allclose(embed_tracklets(model, mixed, device="cpu"), expected, atol=1e-5)


def test_all_clips_are_averaged_and_normalised(model: S3Clip, tracklets: list[Tracklet]) -> None:
    found = embed_tracklets(model, tracklets, device="cpu", clips="all")
    for row, tracklet in zip(found, tracklets, strict=True):
        parts = [[*range(8)], [*range(8, 16)], [16, 17, 18, 18, 18, 18, 18, 18]]
        mean = np.mean([embed_clip(model, tracklet, part) for part in parts], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_stop_ends_the_embedding_before_the_next_batch(
    model: S3Clip, tracklets: list[Tracklet], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, embedded, embed = threading.Event(), [], evaluate_module._embed

    def embed_and_stop(*words: object) -> object:
        embedded.append(words)
        stop.set()
        return embed(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate_module, "CLIPS_PER_BATCH", 2)
    monkeypatch.setattr(evaluate_module, "_embed", embed_and_stop)
    with pytest.raises(Interrupted, match="after 2 of 24 clips"):
        embed_tracklets(model, tracklets, device="cpu", clips="all", stop=stop)
    assert len(embedded) == 1


def test_results_are_those_of_the_ranking(model: S3Clip, tracklets: list[Tracklet]) -> None:
    protocols = cross_view_protocols(tracklets, Path())
    results = evaluate(model, protocols, device="cpu")
    vectors = vectors_of(tracklets, embed_tracklets(model, tracklets, device="cpu"))
    for protocol in protocols:
        one = rank_protocol(protocol, vectors)
        row = results[protocol.name]
        assert row["queries"] == one.valid.sum()
        assert row["rank1"]["value"] == pytest.approx(100 * one.cmc[0])
        assert row["rank5"]["value"] == pytest.approx(100 * one.cmc[min(4, len(one.cmc) - 1)])
        assert row["map"]["value"] == pytest.approx(100 * one.map)
        assert row["map_xfd"] == pytest.approx(100 * one.map_xfd)
        assert row["cmc"] == pytest.approx((100 * one.cmc).tolist())


def vectors_of(tracklets: list[Tracklet], rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return dict(zip((t.name for t in tracklets), rows, strict=True))


def made_up(
    name: str, identity: int, camera: str, heights: tuple[int, ...] = (40,), platform: int = 1
) -> Tracklet:
    """A tracklet without files."""
    files = tuple(f"{i}.jpg" for i in range(len(heights)))
    return Tracklet(name, identity, camera, platform, Path("none"), files, tuple((h, 20) for h in heights))


def test_camera_pairs() -> None:
    a = [made_up(f"a{i}", i, "aerial/a") for i in range(3)]
    b = [made_up(f"b{i}", i, "ground/b", platform=0) for i in range(1, 4)]
    c = [made_up("c9", 9, "ground/c", platform=0)]
    protocols = [Protocol("one", a, b), Protocol("two", b, [*a, *c])]
    (pair,) = pair_protocols(protocols, ["aerial/a:ground/b", "aerial/a:ground/b"])
    assert pair == Protocol("aerial/a:ground/b", a, b)
    for wrong in ("aerial/a", "aerial/a:nowhere", "x:ground/b", "aerial/a:ground/b:ground/c"):
        with pytest.raises(ConfigError, match=r"QUERY_CAMERA:GALLERY_CAMERA.*aerial/a, ground/b, ground/c"):
            pair_protocols(protocols, [wrong])
    for wrong in ("aerial/a:ground/c", "aerial/a:aerial/a"):
        with pytest.raises(ConfigError, match="no person was seen by both"):
            pair_protocols(protocols, [wrong])


def test_heights_are_medians_and_buckets_meet_without_gaps() -> None:
    heights = heights_of([made_up("a", 0, "c", (10, 200, 30)), made_up("b", 0, "c", (15, 16))])
    assert heights.tolist() == [30, 15.5]
    edges = np.array([0, 15.9, 16, 31.9, 32, 64, 127.5, 128, 5000])
    buckets = height_buckets(edges)
    assert [(low, high) for low, high, _ in buckets[:-1]] == [(0, 16), (16, 32), (32, 64), (64, 128)]
    inside = [edges[members].tolist() for _, _, members in buckets]
    assert inside == [[0, 15.9], [16, 31.9], [32], [64, 127.5], [128, 5000]]


def test_figures_by_height_are_those_of_the_bucket_alone() -> None:
    rng = np.random.default_rng(0)
    queries = [made_up(f"q{i}", i % 5, "a", (int(rng.integers(8, 200)),)) for i in range(60)]
    ids, others = np.array([t.identity for t in queries]), rng.integers(0, 4, 30)  # person 4: no match
    ranking = evaluate_ranking(rng.random((60, 30)), ids, others, np.zeros(60), np.ones(30))
    row = protocol_result(queries, 30, ranking)
    assert sum(bucket["queries"] for bucket in row["heights"]) == row["queries"] == 48
    for bucket in row["heights"]:
        high = bucket["high"] or np.inf
        chosen = [
            i for i, t in enumerate(queries) if bucket["low"] <= t.sizes[0][0] < high and t.identity != 4
        ]
        assert bucket["queries"] == len(chosen) > 0
        hits = (ranking.first_hit_rank[chosen] == 1).astype(float)
        assert bucket["rank1"] is not None
        assert bucket["map"] is not None
        assert bucket["rank1"]["value"] == pytest.approx(100 * hits.mean())
        assert bucket["map"]["value"] == pytest.approx(100 * ranking.ap[chosen].mean())
        low, high = bootstrap_interval(ranking.ap[chosen])
        assert (bucket["map"]["low"], bucket["map"]["high"]) == pytest.approx((100 * low, 100 * high))
    assert row["heights"][-1]["high"] is None
    empty = protocol_result(
        [made_up("q", 0, "a", (40,))], 1, evaluate_ranking(np.ones((1, 1)), [0], [0], [0], [1])
    )
    assert [bucket["queries"] for bucket in empty["heights"]] == [0, 0, 1, 0, 0]
    assert empty["heights"][0]["map"] is None


def test_both_overall_means() -> None:
    ids = np.arange(4)
    easy = evaluate_ranking(-np.eye(4), ids, ids, ids, ids + 9)
    hard = evaluate_ranking(np.eye(2), ids[:2], ids[:2], ids[:2], ids[:2] + 9)
    queries = [made_up("q", 0, "a")] * 4
    results = {"easy": protocol_result(queries, 4, easy), "hard": protocol_result(queries[:2], 2, hard)}
    means = overall(results)
    assert means["rank1"] == {"mean": 50, "weighted": pytest.approx(100 * 4 / 6)}
    assert means["map"] == {"mean": 75, "weighted": pytest.approx((4 * 100 + 2 * 50) / 6)}
    assert means["map_xfd"] == {"mean": (100 + 25) / 2, "weighted": pytest.approx((400 + 50) / 6)}
    table = results_table(results, {"a:b": results["hard"]})
    assert "overall mAP: 75.0 (mean of protocols), 83.3 (weighted by queries)" in table
    assert table.splitlines()[3].startswith("a:b ")


def ranked_case(name: str, seed: int, *, reranked: bool = False) -> RankedProtocol:
    """Six queries and nine gallery entries with names and ids out of order."""
    rng = np.random.default_rng(seed)
    query = [made_up(f"x/{i:04d}/cam_{9 - n}", i, f"a{n}") for n, i in enumerate([7, 3, 24, 3, 7, 10_001])]
    gallery = [
        made_up(f"y/{i:04d}/cam_{n}", i, f"g{n}") for n, i in enumerate([3, 7, 24, 3, 8, 7, 10_001, 9, 1])
    ]
    vectors = vectors_of([*query, *gallery], rng.normal(size=(15, 6)).astype(np.float32))
    assert len(vectors) == 15
    return ranked(Protocol(name, query, gallery), vectors, RerankSettings(k1=3, k2=2) if reranked else None)


@pytest.mark.parametrize("reranked", [False, True])
def test_submission(tmp_path: Path, reranked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "RERANKED_ROWS", 4)
    names = ("aerial_to_ground", "aerial_to_aerial")
    cases = [ranked_case(name, seed, reranked=reranked) for seed, name in enumerate(names)]
    path = tmp_path / "submission.csv"
    with SubmissionWriter(path) as writer:
        for case in cases:
            writer.add(case)
            assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["row_id", "case", "query_tracklet", "ranked_gallery_tracklets"]
    assert [row[0] for row in rows] == [str(i) for i in range(12)]
    assert [row[1] for row in rows] == ["1"] * 6 + ["3"] * 6
    order = ["0003_cam_6", "0003_cam_8", "0007_cam_5", "0007_cam_9", "0024_cam_7", "10001_cam_4"]
    assert [row[2] for row in rows] == order * 2
    for case, part in ((cases[0], rows[:6]), (cases[1], rows[6:])):
        distance = cosine_distance(case.query, case.gallery)
        if reranked:
            distance = rerank(case.query, case.gallery, RerankSettings(k1=3, k2=2))
        for row, number in zip(part, [3, 1, 4, 0, 2, 5], strict=True):
            entries = [f"{t.identity:04d}_{t.name.split('/')[-1]}" for t in case.protocol.gallery]
            pairs = sorted(zip(distance[number].tolist(), range(9), entries, strict=True))
            assert row[3].split(" ") == [name for _, _, name in pairs]


def test_submissions_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs one of the protocols aerial_to_ground"):
        challenge_cases([Protocol("cam:cam", [], [])])
    twice = [made_up("x/0001/cam_1", 1, "a"), made_up("y/0001/cam_1", 1, "b")]
    other = [made_up("z/0001/cam_2", 1, "c")]
    vectors = vectors_of([*twice, *other], np.eye(3, dtype=np.float32) + 1)
    case = ranked(Protocol("aerial_to_ground", other, twice), vectors)
    with (
        pytest.raises(DataError, match=r"0001_cam_1 stands for 2 tracklets"),
        SubmissionWriter(tmp_path / "a.csv") as writer,
    ):
        writer.add(case)
    assert not list(tmp_path.iterdir())
