"""Tracklets: ends, bounds, crops and their quality."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import best_indices
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.tracking.tracklets import TrackletBuilder, crop_quality, cut


def textured(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def see(track: int, *box: float, score: float = 0.9) -> Observation:
    return Observation(track, np.array(box, np.float32), score)


def builder(**changes: float) -> TrackletBuilder:
    settings = {"max_gap_s": 1.0, "max_seconds": 100.0} | changes
    return TrackletBuilder("gate", 1, max_gap_s=settings["max_gap_s"], max_seconds=settings["max_seconds"])


def test_tracklet_ends_after_the_gap_and_at_the_end_of_the_stream() -> None:
    build, image = builder(), textured(100, 100)
    for index in range(5):
        people = [see(1, 10, 10, 30, 60), see(2, 50, 10, 70, 60)]
        assert build.add(Frame("gate", index, index / 5, image), people) == []
    for index in range(5, 10):  # until 1.8: track 1 was last seen at 0.8
        assert build.add(Frame("gate", index, index / 5, image), [see(2, 50, 10, 70, 60)]) == []
    (first,) = build.add(Frame("gate", 10, 2.0, image), [see(1, 10, 10, 30, 60)])
    assert (first.camera, first.platform, first.track, first.seen) == ("gate", 1, 1, 5)
    assert (first.start_s, first.end_s) == (0.0, 0.8)
    np.testing.assert_allclose(first.times, np.arange(5) / 5)
    assert [one.track for one in build.expire(2.9)] == [2]
    (again,) = build.finish()
    assert (again.track, again.seen, again.start_s) == (1, 1, 2.0)
    assert build.finish() == []


def test_long_track_is_handed_out_in_pieces_that_lose_nothing() -> None:
    build, image = builder(max_seconds=2.0), textured(100, 100)
    pieces = []
    for index in range(50):
        pieces += build.add(Frame("gate", index, index / 10, image), [see(3, 10, 10, 30, 60)])
    pieces += build.finish()
    assert [piece.seen for piece in pieces] == [20, 20, 10]
    assert {piece.track for piece in pieces} == {3}
    np.testing.assert_allclose(np.concatenate([piece.times for piece in pieces]), np.arange(50) / 10)


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 300, 1000])
def test_thinning_keeps_the_best_of_even_spans(limit: int, count: int) -> None:
    """The score is the only difference between the frames, so the truth is known from the scores alone."""
    build = TrackletBuilder("gate", 0, max_gap_s=9, max_seconds=1e9, max_frames_kept=limit)
    scores = np.random.default_rng(count).permutation(count) / count
    image = textured(60, 40)
    for index, score in enumerate(scores):
        people = [see(1, 5, 5, 25, 45, score=float(score))]
        build.add(Frame("gate", index, float(index), image), people)
    (tracklet,) = build.finish()
    span = 1
    while -(-count // span) > limit:
        span *= 2
    best = [low + int(np.argmax(scores[low : low + span])) for low in range(0, count, span)]
    assert tracklet.times.tolist() == best
    assert tracklet.seen == count
    assert (tracklet.start_s, tracklet.end_s) == (0.0, count - 1.0)
    assert len(tracklet.crops) == len(tracklet.quality) == len(tracklet.boxes) == len(best) <= limit
    assert [id(crop) for crop in tracklet.clip().crops] == [
        id(tracklet.crops[i]) for i in best_indices(tracklet.quality)
    ]


@pytest.mark.parametrize(
    ("box", "size", "hr"),
    [
        ((3, 3, 9, 9), (6, 6), False),
        ((0, 0, 1000, 2000), (2000, 1000), True),
        ((-5, -5, 20, 30), (30, 20), False),
    ],
)
def test_one_frame_of_any_size_makes_a_clip(box: tuple[float, ...], size: tuple[int, int], hr: bool) -> None:
    image = textured(2000, 1000)
    build = builder()
    build.add(Frame("gate", 0, 0.0, image), [see(1, *box)])
    (tracklet,) = build.finish()
    clip = tracklet.clip()
    assert len(clip.crops) == 8
    assert all(crop.shape == (*size, 3) for crop in clip.crops)
    assert (clip.hr, clip.platform) == (hr, 1)


def test_crops_are_copies_of_the_touched_pixels() -> None:
    image = textured(50, 40)
    crop = cut(image, np.array([3.6, 4.2, 9.1, 20.0], np.float32))
    np.testing.assert_array_equal(crop, image[4:20, 3:10])
    assert crop.flags.c_contiguous
    assert crop.flags.owndata
    for box in ((39.9, 49.9, 40, 50), (45, 60, 50, 70), (-9, -9, -3, -3), (7, 7, 7, 7)):
        assert cut(image, np.array(box, np.float32)).shape[:2] == (1, 1)


def quality_of(
    image: NDArray[np.uint8], *boxes: tuple[float, ...], score: float = 0.9
) -> NDArray[np.float32]:
    return crop_quality(image, np.array(boxes, np.float32), np.full(len(boxes), score, np.float32))


def test_quality_orders_crops_as_people_would() -> None:
    sharp = textured(300, 300)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 12).astype(np.uint8)
    box = (100, 100, 140, 200)
    alone = quality_of(sharp, box)[0]
    assert quality_of(blurred, box)[0] < alone
    assert quality_of(sharp, (100, 100, 120, 150))[0] < alone  # smaller
    assert quality_of(sharp, (0, 100, 40, 200))[0] < alone  # cut by the border
    assert quality_of(sharp, (260, 200, 300, 300))[0] < alone
    assert quality_of(sharp, box, score=0.3)[0] < alone
    together = quality_of(sharp, box, (120, 100, 160, 200), (200, 10, 240, 110))
    assert together[0] == pytest.approx(alone / 2, rel=1e-5)  # half of it is covered
    assert together[2] == pytest.approx(quality_of(sharp, (200, 10, 240, 110))[0], rel=1e-5)


def test_quality_is_bounded() -> None:
    rng = np.random.default_rng(2)
    for image in (
        textured(200, 200),
        np.zeros((200, 200, 3), np.uint8),
        np.full((200, 200, 3), 255, np.uint8),
    ):
        corners = rng.uniform(-20, 220, (50, 2, 2)).astype(np.float32)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        quality = crop_quality(image, boxes, rng.uniform(0, 1, 50).astype(np.float32))
        assert quality.dtype == np.float32
        assert np.isfinite(quality).all()
        assert ((quality >= 0) & (quality <= 1)).all()
