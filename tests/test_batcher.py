"""The thread that embeds: right vectors, honest reasons, nothing lost when it fails or has no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_events import look
from tiny_bundle import DIM, SPACE, write_tiny_bundle

from s3clip_runtime.errors import BackendError
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Space
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedded, Embedder
from s3clip_runtime.inference.spec import HR_MIN_SIZE
from s3clip_runtime.streams.events import STEPS, EventMaker, Sighting
from s3clip_runtime.streams.looks import FrameCost, Look
from s3clip_runtime.streams.recognition.batcher import LARGEST_BATCH, Batcher, LookEmbedder


@pytest.fixture(scope="module")
def embedder(bundle_folder: Path) -> Iterator[Embedder]:
    with Embedder(Bundle.open(bundle_folder), device="cpu", threads=1) as opened:
        yield opened


def person(track: int, height: int = 40, *, live: bool = True) -> Look:
    """A look at a person whose colour changes from frame to frame in a way of its own."""
    rng = np.random.default_rng(track)
    colours = rng.integers(0, 256, (8, 3), dtype=np.uint8)
    crops = tuple(np.full((height, height // 2, 3), colour, np.uint8) for colour in colours)
    given = look()
    tracklet = replace(given.tracklet, track=track, crops=crops)
    clip = Clip(crops, 1, hr=(height, height // 2) >= HR_MIN_SIZE)
    return replace(given, tracklet=tracklet, clip=clip, live=live)


def vector(sighting: Sighting) -> NDArray[np.float32]:
    assert sighting.embedding is not None
    return sighting.embedding


def recognise(
    embedder: LookEmbedder,
    looks: Sequence[Look],
    *,
    recogniser: Recogniser | None = None,
    enhances: Callable[[float], bool] | None = lambda height: True,
    latency_ms: float = 500,
    within_s: float | None = None,
    pictures: bool = False,
) -> tuple[list[Sighting], Batcher]:
    kept: list[Sighting] = []
    maker = EventMaker("run", "tiny", SPACE, with_embedding=False)
    batcher = Batcher(
        embedder, recogniser, maker, kept.append, enhances=enhances, latency_ms=latency_ms, pictures=pictures
    )
    for one in looks:
        batcher.submit(one)
    batcher.start()
    batcher.finish(within_s)
    return kept, batcher


def test_each_look_gets_the_vector_of_its_clip_and_its_matches(embedder: Embedder) -> None:
    looks = [person(track) for track in range(20)]
    truth = np.concatenate([embedder.embed([one.clip]) for one in looks])
    nearest = np.sort(truth @ truth[7])[-2]
    with Gallery.open(None, Space(SPACE, DIM)) as gallery:
        gallery.enrol("seven", truth[7:8], platform="ground", source="test")
        found, batcher = recognise(
            embedder, looks, recogniser=Recogniser(gallery, Rules(threshold=float(1 + nearest) / 2))
        )
    assert [one.event.track for one in found] == list(range(20))
    np.testing.assert_allclose([vector(one) for one in found], truth, atol=1e-6)
    assert [one.event.identity for one in found].count("seven") == 1
    assert found[7].event.identity == "seven"
    assert found[8].event.decision == "unknown"
    assert all(one.event.latency_ms["wait"] > 0 and one.event.latency_ms["embed"] > 0 for one in found)
    assert batcher.latency.quantiles()["total"].count == 20


def test_why_a_person_is_super_resolved_or_not(embedder: Embedder) -> None:
    looks = [person(1, 40), person(2, 60), person(3, 200)]
    found, _ = recognise(embedder, looks, enhances=lambda height: height <= 50, pictures=True)
    assert [one.event.enhancement for one in found] == ["used", "switch", "hr"]
    assert [one.event.enhanced for one in found] == [True, False, False]
    assert [one.pictures is None for one in found] == [False, True, True]
    plain = embedder.embed_looks([looks[1].clip], enhance=[False]).vectors[0]
    np.testing.assert_allclose(vector(found[1]), plain, atol=1e-6)
    off, batcher = recognise(embedder, looks, enhances=None)
    assert [one.event.enhancement for one in off] == ["off", "off", "hr"]
    assert (batcher.enhancing, batcher.enhance_reason) == (False, "turned off")


class Slow:
    """An embedder that needs a while for each clip, and more to super-resolve."""

    def __init__(self, clip_s: float, enhance_s: float) -> None:
        self.clip_s, self.enhance_s = clip_s, enhance_s
        self.batches: list[int] = []

    def embed_looks(
        self, clips: Sequence[Clip], *, enhance: Sequence[bool], pictures: bool = False
    ) -> Embedded:
        self.batches.append(len(clips))
        time.sleep(self.clip_s * len(clips) + self.enhance_s * sum(enhance))
        vectors = np.tile(np.eye(DIM, dtype=np.float32)[0], (len(clips), 1))
        return Embedded(vectors, (None,) * len(clips), 1000 * self.enhance_s * sum(enhance), 1.0)


def test_live_looks_that_miss_the_budget_lose_super_resolution_and_files_keep_it() -> None:
    live, batcher = recognise(Slow(0.001, 0.02), [person(track) for track in range(40)], latency_ms=30)
    reasons = [one.event.enhancement for one in live]
    first = reasons.index("budget")
    assert 16 <= first < 40
    assert set(reasons[first:]) == {"budget"}
    assert not batcher.enhancing
    stored = [person(track, live=False) for track in range(40)]
    files, batcher = recognise(Slow(0.001, 0.02), stored, latency_ms=30)
    assert {one.event.enhancement for one in files} == {"used"}
    assert batcher.enhancing


def test_batches_shrink_until_one_fits_half_the_budget() -> None:
    slow = Slow(0.02, 0.0)
    recognise(slow, [person(track, live=False) for track in range(24)], latency_ms=100)
    assert slow.batches[0] == LARGEST_BATCH
    assert set(slow.batches[1:]) == {2}


def test_what_cannot_be_embedded_in_time_is_told_without() -> None:
    slow = Slow(0.05, 0.0)
    looks = [person(track) for track in range(40)]
    began_s = time.monotonic()
    found, _ = recognise(slow, looks, within_s=0.6)
    assert time.monotonic() - began_s < 1.5
    decisions = [one.event.decision for one in found]
    assert len(found) == 40
    assert decisions.count("no_gallery") >= 8
    assert decisions.count("not_embedded") >= 20
    assert all(one.event.camera == "gate" and one.event.frames == 7 for one in found)


def test_an_embedder_that_fails_loses_no_person(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "nan", encode_weight=float("nan")))
    with Embedder(bundle, device="cpu", threads=1) as broken:
        found, batcher = recognise(broken, [person(track) for track in range(20)])
    assert isinstance(batcher.error, BackendError)
    assert "not finite" in str(batcher.error)
    assert [one.event.track for one in found] == list(range(20))
    assert {one.event.decision for one in found} == {"not_embedded"}


def test_the_steps_of_an_event_are_those_of_its_look(embedder: Embedder) -> None:
    given = replace(person(1), cost=FrameCost(1.0, 2000.0, 3.0, 4.0))
    (found,), _ = recognise(embedder, [given])
    steps = found.event.latency_ms
    assert (steps["decode"], steps["detect"], steps["track"]) == (1.0, 3.0, 4.0)
    assert 2000 <= steps["wait"] < 3000
    assert steps["total"] == pytest.approx(sum(steps[step] for step in STEPS), abs=0.5)


def test_under_pressure_no_person_is_lost_and_nobody_waits_for_long() -> None:
    """A slow machine and many people: who cannot be embedded in time is told without."""
    kept: list[Sighting] = []
    maker = EventMaker("run", "tiny", SPACE, with_embedding=False)
    batcher = Batcher(Slow(0.5, 0.0), None, maker, kept.append, enhances=None, latency_ms=500)
    batcher.submit(person(0))
    batcher.start()
    while batcher.latency.quantiles() == {}:
        time.sleep(0.01)
    for track in range(1, 80):
        batcher.submit(person(track))
    assert 15 <= batcher.waiting.limit <= 20
    assert len(batcher.waiting) <= 20
    batcher.finish(0.6)
    assert sorted(one.event.track for one in kept) == list(range(80))
    assert [one.event.decision for one in kept].count("no_gallery") in (2, 3)
