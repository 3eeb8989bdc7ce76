"""Tracks of walkers whose identity is known, under still and moving cameras, through gaps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from street import Street, write_street

from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.tracking.camera_motion import CameraMotion
from s3clip_runtime.streams.tracking.tracker import CameraTracker, Kind

IMAGE = np.zeros((360, 640, 3), np.uint8)
FPS = 8.0

both = pytest.mark.parametrize("kind", ["bytetrack", "botsort"])


def persons(index: int, seed: int) -> Detections:
    """Three walkers with some noise; the third comes at frame 10."""
    rng = np.random.default_rng(seed * 1000 + index)
    count = 3 if index >= 10 else 2
    left = np.array([20 + 6 * index, 500 - 5 * index, 300])[:count]
    top = np.array([30, 150, 240 - 3 * index / 2])[:count]
    boxes = np.stack([left, top, left + 20, top + 50], axis=1) + rng.normal(0, 1, (count, 4))
    return Detections(boxes.astype(np.float32), np.full(count, 0.8, np.float32))


def frame(index: int, time_s: float | None = None, image: NDArray[np.uint8] = IMAGE) -> Frame:
    return Frame("cam", index, index / FPS if time_s is None else time_s, image)


def one_person(*corners: float) -> Detections:
    return Detections(np.array([corners], np.float32), np.array([0.9], np.float32))


def as_rows(observations: list[Observation]) -> list[tuple[int, list[float]]]:
    return [(one.track, one.box.tolist()) for one in observations]


@both
def test_each_walker_keeps_one_id_and_its_own_box(kind: Kind) -> None:
    tracker = CameraTracker(kind, FPS)
    for index in range(40):
        found = persons(index, 1)
        seen = tracker.update(frame(index), found)
        wanted = [] if index == 0 else [1, 2, 3] if index >= 11 else [1, 2]
        assert sorted(one.track for one in seen) == wanted
        for one in seen:
            person = one.track - 1 if index >= 11 else int(np.abs(found.boxes - one.box).sum(axis=1).argmin())
            np.testing.assert_array_equal(one.box, found.boxes[person])
            assert one.score == np.float32(0.8)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    return write_street(tmp_path_factory.mktemp("street"), frames=150, walkers=7)


def street_boxes(path: Path) -> dict[int, list[tuple[int, list[float]]]]:
    """Walker and corners of each frame, from 0."""
    boxes: dict[int, list[tuple[int, list[float]]]] = {}
    for line in path.read_text().splitlines():
        number, walker, x, y, width, height = (int(field) for field in line.split(",")[:6])
        boxes.setdefault(number - 1, []).append((walker, [x, y, x + width, y + height]))
    return boxes


@both
def test_walkers_of_the_street_have_the_ids_of_their_order(kind: Kind, street: Street) -> None:
    """One frame goes to confirming a track; walkers enter one by one, so walker w is track w + 1."""
    tracker, boxes = CameraTracker(kind, 10), street_boxes(street.boxes)
    seen: dict[int, list[int]] = {}
    for index in range(street.frames):
        rows = boxes.get(index, [])
        found = np.array([corners for _, corners in rows], np.float32).reshape(-1, 4)
        scores = np.full(len(rows), 0.9, np.float32)
        for one in tracker.update(frame(index, index / 10), Detections(found, scores)):
            (walker,) = (walker for walker, corners in rows if corners == one.box.tolist())
            assert one.track == walker + 1
            seen.setdefault(walker, []).append(index)
    assert seen == {w: street.seen(w, street.frames)[1:] for w in range(street.walkers)}


@both
def test_ids_of_one_camera_do_not_depend_on_another(kind: Kind) -> None:
    alone = [CameraTracker(kind, FPS), CameraTracker(kind, FPS)]
    expected = [[as_rows(alone[k].update(frame(i), persons(i, k))) for i in range(30)] for k in (0, 1)]
    mixed = [CameraTracker(kind, FPS), CameraTracker(kind, FPS)]
    got: list[list[list[tuple[int, list[float]]]]] = [[], []]
    for index in range(30):
        for k in (1, 0):
            got[k].append(as_rows(mixed[k].update(frame(index), persons(index, k))))
    assert got == expected
    assert {track for rows in got[0] for track, _ in rows} == {1, 2, 3}


@both
def test_weak_detections_continue_a_track_but_start_none(kind: Kind) -> None:
    tracker = CameraTracker(kind, FPS)
    weak = np.float32(0.3)
    for index in range(10):
        found = persons(index, 1)
        scores = found.scores if index < 5 else np.full(2, weak)
        seen = tracker.update(frame(index), Detections(found.boxes, scores))
        assert len(seen) == (2 if index else 0)
    fresh = CameraTracker(kind, FPS)
    for index in range(10):
        found = persons(index, 1)
        assert fresh.update(frame(index), Detections(found.boxes, np.full(2, weak))) == []


@both
def test_lost_time_is_counted_in_seconds_at_any_rate(kind: Kind) -> None:
    box = one_person(100, 100, 130, 180)
    for fps in (5.0, 10.0, 30.0):
        for gap_s, kept in ((0.7, True), (1.3, False)):
            tracker = CameraTracker(kind, 10.0, lost_s=1.0)  # the stated rate may be wrong
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
            assert tracker.epoch == 0  # frames came all the time


@both
def test_single_false_alarm_is_no_track_and_empty_frames_are_fine(kind: Kind) -> None:
    tracker = CameraTracker(kind)
    first = one_person(10, 10, 30, 60)
    assert tracker.update(frame(0), first) == []
    assert tracker.update(frame(1), Detections.none()) == []
    assert tracker.update(frame(2), one_person(200, 10, 230, 60)) == []
    assert all(tracker.update(frame(i), Detections.none()) == [] for i in range(3, 40))


@both
def test_gap_starts_a_new_epoch_and_ids_are_never_given_twice(kind: Kind) -> None:
    tracker, time_s, given = CameraTracker(kind, 10, lost_s=1.0), 0.0, []
    for gap_s in (0.1, 0.9, 1.01, 0.1, 3600.0):
        time_s += gap_s - 0.1
        for _ in range(3):
            time_s += 0.1
            seen = tracker.update(frame(0, time_s), one_person(100, 100, 130, 180))
        given.append((tracker.epoch, [one.track for one in seen]))
    assert given == [(0, [1]), (0, [1]), (1, [2]), (1, [2]), (2, [3])]


@both
def test_other_picture_size_starts_a_new_epoch(kind: Kind) -> None:
    tracker, given = CameraTracker(kind, 10), []
    sizes = [(360, 640)] * 3 + [(720, 1280)] * 3 + [(360, 640)] * 3
    for index, size in enumerate(sizes):
        image = np.zeros((*size, 3), np.uint8)
        seen = tracker.update(frame(index, index / 10, image), one_person(100, 100, 130, 180))
        given.append((tracker.epoch, [one.track for one in seen]))
    assert given == [(e, ids) for e in range(3) for ids in ([], [e + 1], [e + 1])]


def landscape(seed: int) -> NDArray[np.uint8]:
    """A large ground with spots of all sizes, as nature has them."""
    rng, total = np.random.default_rng(seed), np.zeros((1000, 1300, 3))
    for cell in (4, 8, 16, 32, 64):
        spots = rng.normal(0, 25, (1000 // cell, 1300 // cell, 3))
        total += cv2.resize(spots, (1300, 1000), interpolation=cv2.INTER_CUBIC)
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def test_ids_survive_a_shaking_camera_with_botsort_and_only_with_it() -> None:
    """The same walk is filmed by a camera that jumps by up to 40 px a frame; persons are 20 px wide."""
    ground, rng = landscape(0), np.random.default_rng(1)
    corners = rng.integers(300, 340, (40, 2))
    ids: dict[Kind, list[set[int]]] = {"bytetrack": [set(), set(), set()], "botsort": [set(), set(), set()]}
    trackers = {kind: CameraTracker(kind, FPS) for kind in ids}
    for index, (x, y) in enumerate(corners.tolist()):
        boxes = persons(index, 1).boxes
        shifted = boxes - np.array([x, y, x, y], np.float32) + 300
        image = ground[y : y + 360, x : x + 640].copy()
        for left, top, right, bottom in shifted.astype(int):
            image[max(top, 0) : bottom, max(left, 0) : right] = (200, 30, 60)
        found = Detections(shifted, np.full(len(boxes), 0.8, np.float32))
        for kind, tracker in trackers.items():
            for one in tracker.update(frame(index, image=image), found):
                person = int(np.abs(shifted - one.box).sum(axis=1).argmin())
                ids[kind][person].add(one.track)
    assert [len(tracks) for tracks in ids["botsort"]] == [1, 1, 1]
    assert sum(len(tracks) for tracks in ids["bytetrack"]) > 10


def placed(x: float, y: float, degrees: float) -> NDArray[np.float64]:
    """Map (3, 3) from the ground to a picture at x, y that is turned about its centre."""
    turn = np.asarray(cv2.getRotationMatrix2D((x + 320, y + 180), degrees, 1.0), np.float64)
    turn[:, 2] -= np.array([x, y])
    return np.vstack([turn, [0, 0, 1]])


@pytest.mark.parametrize("size", [(360, 640), (720, 1280)])
def test_camera_motion_is_the_known_one_although_a_large_person_moves(size: tuple[int, int]) -> None:
    """A textured person over 40 % of the picture moves against the camera: masked, it does not count."""
    ground, texture = landscape(2), landscape(3)
    motion, last, none = CameraMotion(), None, np.zeros((0, 4), np.float32)
    scale = size[1] / 640
    for step in range(12):
        place = placed(200 + 12 * step, 200 + 5 * step, 1.5 * np.sin(step))
        place = np.diag([scale, scale, 1]) @ place
        image = np.asarray(cv2.warpAffine(ground, place[:2], (size[1], size[0])), np.uint8)
        box = np.array([[250 - 9 * step, 20, 510 - 9 * step, 360]], np.float32) * scale
        x1, y1, x2, y2 = box[0].astype(int)
        image[y1:y2, x1:x2] = texture[: y2 - y1, : x2 - x1]
        got = motion.update(image, box)
        if last is None:
            assert got is None
        else:
            assert got is not None
            true = (place @ np.linalg.inv(last))[:2]
            edges = np.array([[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]])
            assert np.abs((got - true) @ edges).max() < 1.5 * scale
        last = place
    motion.forget()
    assert motion.update(image, none) is None


def test_nothing_is_said_about_motion_without_texture() -> None:
    motion, none = CameraMotion(), np.zeros((0, 4), np.float32)
    for shape in ((360, 640, 3), (360, 640, 3), (1, 1, 3)):
        motion.forget()
        assert motion.update(np.zeros(shape, np.uint8), none) is None
        assert motion.update(np.zeros(shape, np.uint8), none) is None
    noise = np.random.default_rng(0).integers(0, 256, (2, 360, 640, 3)).astype(np.uint8)
    motion.forget()
    assert motion.update(noise[0], none) is None
    assert motion.update(noise[1], none) is None  # another scene: no motion explains it
