"""Tracklets: ends, bounds, crops, and the looks that are taken at them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.inference.preprocess import hr_batch
from s3clip_runtime.streams.events import EventMaker
from s3clip_runtime.streams.frames import Clock, Frame, Observation
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.tracking.tracklets import MAX_CROP_PIXELS, TrackletBuilder, cut


def textured(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


IMAGE = textured(100, 100)


def see(track: int, *box: float, score: float = 0.9) -> Observation:
    return Observation(track, np.array(box, np.float32), score)


def walker(track: int, score: float = 0.9) -> Observation:
    """Somewhere inside the frame, alone on a lane of its own."""
    return see(track, 10 + 25 * (track % 3), 10, 30 + 25 * (track % 3), 60, score=score)


def frame(time_s: float, image: NDArray[np.uint8] = IMAGE, clock: Clock = "stream") -> Frame:
    return Frame("gate", 0, time_s, image, clock)


def builder(
    max_gap_s: float = 1.0, max_seconds: float = 100.0, first_frames: int = 8, kept: int = 64
) -> TrackletBuilder:
    return TrackletBuilder(
        "gate",
        1,
        max_gap_s=max_gap_s,
        max_seconds=max_seconds,
        first_frames=first_frames,
        max_frames_kept=kept,
    )


def facts(looks: list[Look]) -> list[tuple[str, str, str, int]]:
    """Key, stage, reason and observations of each look."""
    return [(look.tracklet.key, look.stage, look.reason, look.tracklet.seen) for look in looks]


def test_tracklet_ends_after_the_gap_and_at_the_end_of_the_stream() -> None:
    build = builder()
    for index in range(5):
        assert build.add(frame(index / 5), [walker(1), walker(2)], 0) == []
    assert build.open == 2
    looks: list[Look] = []
    for index in range(5, 10):  # until 1.8: track 1 was last seen at 0.8
        looks += build.add(frame(index / 5), [walker(2)], 0)
    assert facts(looks) == [("gate-2-0", "first", "growing", 8)]
    gone = build.add(frame(2.0), [walker(3)], 0)
    assert facts(gone) == [("gate-1-0", "final", "gone", 5)]
    first = gone[0].tracklet
    assert (first.camera, first.platform, first.track, first.part, first.epoch) == ("gate", 1, 1, 0, 0)
    assert (first.start_s, first.end_s) == (0.0, 0.8)
    np.testing.assert_allclose(first.times, np.arange(5) / 5)
    assert first.boxes.tolist() == [walker(1).box.tolist()] * 5
    assert facts(build.expire(2.9)) == [("gate-2-0", "final", "gone", 10)]
    assert facts(build.finish("end")) == [("gate-3-0", "final", "end", 1)]
    assert build.open == 0
    assert build.finish("end") == build.expire(9e9) == []


def test_looks_come_at_k_then_each_time_the_observations_have_doubled() -> None:
    for k in (1, 3, 8):
        build, looks = builder(first_frames=k), []
        for index in range(100):
            looks += build.add(frame(index / 10), [walker(7)], 0)
        looks += build.finish("stop")
        due = [k * 2**n for n in range(8) if k * 2**n <= 100]
        assert [look.tracklet.seen for look in looks] == [*due, 100]
        assert [look.stage for look in looks] == ["first", *["refined"] * (len(due) - 1), "final"]
        assert [look.reason for look in looks] == [*["growing"] * len(due), "stop"]
        assert [look.partial for look in looks] == [False] * len(due) + [True]
        for look in looks[:-1]:  # taken at once, of all that was seen so far
            assert look.tracklet.end_s == (look.tracklet.seen - 1) / 10
            seen = look.tracklet.seen
            assert len(look.tracklet.crops) == (seen if seen <= 64 else (seen + 1) // 2)


def test_long_track_is_handed_out_in_parts_that_lose_nothing() -> None:
    build, finals = builder(max_seconds=2.0), []
    for index in range(50):
        looks = build.add(frame(index / 10), [walker(3)], 0)
        assert build.open == 1
        finals += [look for look in looks if look.stage == "final"]
    finals += build.finish("end")
    wanted = [("gate-3-0", "long", 20), ("gate-3-1", "long", 20), ("gate-3-2", "end", 10)]
    assert [(look.tracklet.key, look.reason, look.tracklet.seen) for look in finals] == wanted
    times = np.concatenate([look.tracklet.times for look in finals])
    np.testing.assert_allclose(times, np.arange(50) / 10)


def test_person_who_left_before_the_cut_is_gone_and_not_long() -> None:
    build = builder(max_seconds=2.0)
    for index in range(19):
        build.add(frame(index / 10), [walker(3)], 0)
    looks = []
    for index in range(19, 40):
        looks += build.add(frame(index / 10), [], 0)
    assert facts(looks) == [("gate-3-0", "final", "gone", 19)]


@pytest.mark.parametrize("way", ["frame", "timer", "epoch"])
def test_persons_in_view_when_the_camera_falls_silent_are_lost(
    way: Literal["frame", "timer", "epoch"],
) -> None:
    build = builder()
    for index in range(5):
        build.add(frame(index / 10), [walker(1)] if index < 4 else [walker(2)], 0)
    if way == "frame":
        looks = build.add(frame(9.0), [walker(5)], 0)
    elif way == "timer":
        assert build.expire(1.2) == []
        looks = build.expire(1.5)
    else:  # another picture size: no time passes
        looks = build.add(frame(0.5), [walker(5)], 1)
    assert facts(looks) == [("gate-1-0", "final", "lost", 4), ("gate-2-0", "final", "lost", 1)]
    assert all(look.partial and look.tracklet.epoch == 0 for look in looks)
    assert build.open == (0 if way == "timer" else 1)
    if way == "epoch":
        assert [look.tracklet.epoch for look in build.finish("end")] == [1]


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 300, 1000])
def test_thinning_keeps_the_best_of_even_spans(limit: int, count: int) -> None:
    """The score is the only difference between the frames, so the truth is known from the scores alone."""
    build = builder(max_gap_s=9, max_seconds=1e9, kept=limit)
    scores = np.random.default_rng(count).permutation(count) / count
    for index, score in enumerate(scores):
        build.add(frame(float(index)), [walker(1, score=float(score))], 0)
    (look,) = build.finish("end")
    tracklet = look.tracklet
    span = 1
    while -(-count // span) > limit:
        span *= 2
    best = [low + int(np.argmax(scores[low : low + span])) for low in range(0, count, span)]
    assert tracklet.times.tolist() == best
    assert (tracklet.seen, tracklet.start_s, tracklet.end_s) == (count, 0.0, count - 1.0)
    assert len(tracklet.crops) == len(tracklet.qualities) == len(tracklet.boxes) == len(best) <= limit
    chosen = brute_force_choice([float(scores[index]) for index in best])
    assert [one.position for one in look.chosen] == chosen
    assert [id(crop) for crop in look.clip.crops] == [id(tracklet.crops[i]) for i in chosen]
    values = np.array([tracklet.qualities[i].value for i in chosen])
    np.testing.assert_allclose([one.weight for one in look.chosen], values / values.sum())


def brute_force_choice(worth: list[float]) -> list[int]:
    """One of each of eight equal spans of the crops, the best; crops that are too few are repeated."""
    count = len(worth)
    if count <= 8:
        return [min(i, count - 1) for i in range(8)]
    choice = []
    for number in range(8):
        span = [i for i in range(count) if number * count // 8 <= i < (number + 1) * count // 8]
        choice.append(max(span, key=lambda i: worth[i]))
    return choice


def test_growing_looks_share_their_crops_and_keep_what_they_showed() -> None:
    build, looks = builder(kept=8), []
    for index in range(33):
        looks += build.add(frame(index / 10, textured(100, 100, index)), [walker(1)], 0)
    (first, second, third) = looks
    shown = {id(crop) for crop in first.tracklet.crops}
    assert shown & {id(crop) for crop in second.tracklet.crops}  # no copies
    assert len(third.tracklet.crops) == 8
    for look in looks:
        for time_s, crop in zip(look.tracklet.times, look.tracklet.crops, strict=True):
            source = textured(100, 100, round(time_s * 10))
            np.testing.assert_array_equal(crop, cut(source, walker(1).box))


def test_the_explanation_in_the_event_is_the_choice_of_the_best() -> None:
    """Sizes, sharpness, cover, border and score all differ: the event names what brute force finds."""
    rng, build = np.random.default_rng(4), builder()
    for index in range(30):
        x, y, height = rng.uniform(0, 60), rng.uniform(0, 40), rng.uniform(20, 60)
        person = see(1, x, y, x + height / 2, min(y + height, 100), score=rng.uniform(0.4, 1))
        other = see(2, x + rng.uniform(5, 30), y, min(x + 50, 100), 90)
        build.add(frame(index / 10, textured(100, 100, index)), [person, other], 0)
    look = build.finish("end")[0]
    maker = EventMaker("run", "bundle", "space", with_embedding=False, explain=True)
    steps = dict.fromkeys(("decode", "detect", "track", "wait", "enhance", "embed", "match"), 0.0)
    event = maker.make(look, "off", np.zeros(4, np.float32), "no_gallery", steps, now_unix_s=0.0)
    assert event.chosen is not None
    tracklet = look.tracklet
    choice = brute_force_choice([quality.value for quality in tracklet.qualities])
    assert [one.time_s for one in event.chosen] == [round(float(tracklet.times[i]), 3) for i in choice]
    total = sum(tracklet.qualities[i].value for i in choice)
    for one, i in zip(event.chosen, choice, strict=True):
        quality = tracklet.qualities[i]
        assert one.weight == pytest.approx(quality.value / total, abs=1e-4)
        whole = 0.4 * one.size + 0.4 * one.sharp + 0.2 * one.score
        assert one.quality == pytest.approx(whole * (1 - 0.5 * one.cut) * (1 - one.covered), abs=2e-4)
        assert one.box == [round(edge, 1) for edge in tracklet.boxes[i].tolist()]
    assert len({round(one.weight, 3) for one in event.chosen}) > 4


@pytest.mark.parametrize(
    ("box", "size", "hr"),
    [
        ((3, 3, 9, 9), (6, 6), False),
        ((0, 0, 250, 500), (500, 250), True),
        ((-5, -5, 20, 30), (30, 20), False),
    ],
)
def test_one_frame_of_any_size_makes_a_clip(box: tuple[float, ...], size: tuple[int, int], hr: bool) -> None:
    build = builder()
    build.add(frame(0.0, textured(600, 300)), [see(1, *box)], 0)
    (look,) = build.finish("end")
    assert len(look.clip.crops) == 8
    assert all(crop.shape == (*size, 3) for crop in look.clip.crops)
    assert (look.clip.hr, look.clip.platform) == (hr, 1)


def test_clock_of_the_first_frame_is_told() -> None:
    build = TrackletBuilder("gate", 0, max_gap_s=1, max_seconds=9)
    build.add(frame(5.0, clock="arrival"), [walker(1)], 0)
    build.add(frame(5.1, clock="camera"), [walker(1), walker(2)], 0)
    looks = build.finish("lost")
    assert [look.tracklet.clock for look in looks] == ["arrival", "camera"]


def test_crops_are_copies_of_the_touched_pixels() -> None:
    image = textured(50, 40)
    crop = cut(image, np.array([3.6, 4.2, 9.1, 20.0], np.float32))
    np.testing.assert_array_equal(crop, image[4:20, 3:10])
    assert crop.flags.c_contiguous
    assert crop.flags.owndata
    for box in ((39.9, 49.9, 40, 50), (45, 60, 50, 70), (-9, -9, -3, -3), (7, 7, 7, 7)):
        assert cut(image, np.array(box, np.float32)).shape[:2] == (1, 1)


def test_large_crops_are_bounded_and_inference_sees_the_same() -> None:
    rng = np.random.default_rng(3)
    spots = rng.integers(0, 256, (108, 48, 3)).astype(np.uint8)
    image = np.kron(spots, np.ones((20, 20, 1), np.uint8))
    for box in ((0, 0, 960, 2160), (100, 300, 500, 1300), (0, 0, 960, 40), (0, 0, 256, 512)):
        whole = image[box[1] : box[3], box[0] : box[2]]
        crop = cut(image, np.array(box, np.float32))
        assert crop.shape[0] * crop.shape[1] <= MAX_CROP_PIXELS
        assert crop.shape[0] / crop.shape[1] == pytest.approx(whole.shape[0] / whole.shape[1], rel=0.02)
        assert (crop.shape == whole.shape) == (whole.shape[0] * whole.shape[1] <= MAX_CROP_PIXELS)
        assert np.abs(hr_batch([crop]).astype(int) - hr_batch([whole])).mean() < 2


def test_memory_of_a_tracklet_is_bounded_however_long_it_gets() -> None:
    image, build = np.zeros((2160, 960, 3), np.uint8), builder(max_seconds=1e9, kept=8)
    for index in range(40):
        looks = build.add(frame(index / 10, image), [see(1, 5, 5, 950, 2150)], 0)
    looks += build.finish("end")
    assert sum(crop.nbytes for crop in looks[-1].tracklet.crops) <= 8 * 3 * MAX_CROP_PIXELS
    assert looks[-1].clip.hr
