"""Tracks of walkers whose identity is known."""

from __future__ import annotations

import numpy as np

from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.tracking.tracker import CameraTracker

IMAGE = np.zeros((360, 640, 3), np.uint8)


def persons(index: int, seed: int) -> Detections:
    """Three walkers with some noise; the third comes at frame 10."""
    rng = np.random.default_rng(seed * 1000 + index)
    count = 3 if index >= 10 else 2
    left = np.array([20 + 6 * index, 500 - 5 * index, 300])[:count]
    top = np.array([30, 150, 240 - 3 * index / 2])[:count]
    boxes = np.stack([left, top, left + 20, top + 50], axis=1) + rng.normal(0, 1, (count, 4))
    return Detections(boxes.astype(np.float32), np.full(count, 0.8, np.float32))


def frame(index: int, time_s: float | None = None) -> Frame:
    return Frame("cam", index, index / 8 if time_s is None else time_s, IMAGE)


def as_rows(observations: list[Observation]) -> list[tuple[int, list[float]]]:
    return [(one.track, one.box.tolist()) for one in observations]


def test_each_walker_keeps_one_id_and_its_own_box() -> None:
    tracker = CameraTracker(8)
    for index in range(40):
        found = persons(index, 1)
        seen = tracker.update(frame(index), found)
        wanted = [] if index == 0 else [1, 2, 3] if index >= 11 else [1, 2]
        assert sorted(one.track for one in seen) == wanted
        for one in seen:
            person = one.track - 1 if index >= 11 else int(np.abs(found.boxes - one.box).sum(axis=1).argmin())
            np.testing.assert_array_equal(one.box, found.boxes[person])
            assert one.score == np.float32(0.8)


def test_ids_of_one_camera_do_not_depend_on_another() -> None:
    alone = [CameraTracker(8), CameraTracker(8)]
    expected = [[as_rows(alone[k].update(frame(i), persons(i, k))) for i in range(30)] for k in (0, 1)]
    mixed = [CameraTracker(8), CameraTracker(8)]
    got: list[list[list[tuple[int, list[float]]]]] = [[], []]
    for index in range(30):
        for k in (1, 0):
            got[k].append(as_rows(mixed[k].update(frame(index), persons(index, k))))
    assert got == expected
    assert {track for rows in got[0] for track, _ in rows} == {1, 2, 3}


def test_weak_detections_continue_a_track_but_start_none() -> None:
    tracker = CameraTracker(8)
    weak = np.float32(0.3)
    for index in range(10):
        found = persons(index, 1)
        scores = found.scores if index < 5 else np.full(2, weak)
        seen = tracker.update(frame(index), Detections(found.boxes, scores))
        assert len(seen) == (2 if index else 0)
    fresh = CameraTracker(8)
    for index in range(10):
        found = persons(index, 1)
        assert fresh.update(frame(index), Detections(found.boxes, np.full(2, weak))) == []


def test_lost_time_is_counted_in_seconds_at_any_rate() -> None:
    for fps in (5.0, 10.0, 30.0):
        for gap_s, kept in ((0.7, True), (1.3, False)):
            tracker = CameraTracker(10.0, lost_s=1.0)  # the stated rate may be wrong
            box = Detections(np.array([[100, 100, 130, 180]], np.float32), np.array([0.9], np.float32))
            time_s, index = 0.0, 0
            for _ in range(6):
                seen = tracker.update(frame(index, time_s), box)
                time_s, index = time_s + 1 / fps, index + 1
            assert [one.track for one in seen] == [1]
            end = time_s + gap_s
            while time_s < end:
                assert tracker.update(frame(index, time_s), Detections.none()) == []
                time_s, index = time_s + 1 / fps, index + 1
            tracker.update(frame(index, time_s), box)
            seen = tracker.update(frame(index + 1, time_s + 1 / fps), box)
            assert [one.track for one in seen] == ([1] if kept else [2]), (fps, gap_s)


def test_single_false_alarm_is_no_track_and_empty_frames_are_fine() -> None:
    tracker = CameraTracker()
    assert tracker.update(frame(0), Detections.none()) == []
    box = Detections(np.array([[10, 10, 30, 60]], np.float32), np.array([0.9], np.float32))
    assert tracker.update(frame(1), box) == []
    assert all(tracker.update(frame(i), Detections.none()) == [] for i in range(2, 40))
