"""The synthetic world: the same seed gives the same pixels, and what is written is what was promised."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip.synthetic import Actor, CameraConfig, Scene, sample_appearance, write_dataset, write_videos
from s3clip.synthetic.world import detector_box
from s3clip_runtime.errors import ConfigError

STREET = CameraConfig("ground0", "ground", occluders=0)
SQUARE = CameraConfig("aerial0", "aerial", person_height_px=(18.0, 32.0), occluders=0)


def actor(identity: int, foot: tuple[float, float], heading: float = 0.3) -> Actor:
    return Actor(identity, sample_appearance(5, identity), foot, heading, 0.7)


@pytest.mark.parametrize("camera", [STREET, SQUARE])
def test_a_frame_depends_on_the_seed_alone(camera: CameraConfig) -> None:
    actors = [actor(1, (200, 300)), actor(2, (400, 320))]
    stage = Scene(camera, 3)
    stage.draw(actors, 0)  # frames may be asked for in any order
    first, truths = stage.draw(actors, 4)
    again, truths_again = Scene(camera, 3).draw(actors, 4)
    other, _ = Scene(camera, 4).draw(actors, 4)
    np.testing.assert_array_equal(first, again)
    assert truths == truths_again
    assert np.abs(first.astype(int) - other).mean() > 2


@pytest.mark.parametrize("camera", [STREET, SQUARE])
def test_the_box_encloses_what_the_person_changed(camera: CameraConfig) -> None:
    stage = Scene(replace(camera, noise=0.0), 8)
    empty, _ = stage.draw([], 0)
    frame, truths = stage.draw([actor(1, (320, 300))], 0)
    x, y, width, height = truths[0].box
    changed = np.abs(frame.astype(int) - empty).max(axis=2) > 12
    # Only the shadow, which lies about the feet, may be outside: nothing above, most of it within.
    rows, _ = np.nonzero(changed)
    assert abs(rows.min() - y) <= 2
    inside = changed[int(y) : math.ceil(y + height), int(x) : math.ceil(x + width)]
    assert inside.mean() > 0.3
    assert inside.sum() > 0.5 * changed.sum()
    assert truths[0].visibility == 1.0


def test_who_stands_behind_is_hidden() -> None:
    behind, before = actor(1, (320, 300), 0.0), actor(2, (322, 325), 0.0)
    _, truths = Scene(STREET, 8).draw([before, behind], 0)
    visibility = {truth.identity: truth.visibility for truth in truths}
    assert visibility[2] == 1.0
    assert visibility[1] < 0.6


def test_who_leaves_the_frame_is_cut_off() -> None:
    _, truths = Scene(STREET, 8).draw([actor(1, (2, 320)), actor(2, (-300, 320))], 0)
    assert [truth.identity for truth in truths] == [1]
    assert truths[0].box[0] == 0.0
    assert 0.3 < truths[0].inside < 0.8


def test_views_of_one_person_differ_by_side() -> None:
    person = next(p for p in (sample_appearance(1, n) for n in range(99)) if p.carried == "backpack")
    pictures = []
    for heading in (-math.pi / 2, math.pi / 2, 0.0):
        walker = Actor(1, person, (320.0, 320.0), heading, 0.7)
        pictures.append(Scene(STREET, 8).draw([walker], 0)[0].astype(int))
    front, back, side = pictures
    for one, other in ((front, back), (front, side), (back, side)):
        assert (np.abs(one - other).max(axis=2) > 40).sum() > 500


def test_people_share_colours_but_are_not_the_same() -> None:
    people = [sample_appearance(1, identity) for identity in range(60)]
    assert len(set(people)) == 60
    looks = {(p.top, p.bottom, p.pattern, p.carried) for p in people}
    assert len(looks) > 50
    # The wardrobe is small: of 60 people many wear tops that differ by a little dye only.
    tops = np.array([p.top for p in people])
    near = np.abs(tops[:, None] - tops[None]).max(axis=2) < 30
    assert (near.sum(axis=1) > 3).mean() > 0.7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "world"
    write_dataset(root, seed=4, train_identities=6, test_identities=3, frames=4, progress=False)
    return root


def tracklets(root: Path, split: str, platform: str) -> dict[str, list[Path]]:
    """Identity folder name -> tracklet folders."""
    return {folder.name: sorted(folder.iterdir()) for folder in sorted((root / split / platform).iterdir())}


def heights_and_widths(root: Path, platform: str) -> NDArray[np.int64]:
    paths = root.glob(f"*/{platform}/*/*/*.jpg")
    return np.array([np.asarray(cv2.imread(str(path))).shape[:2] for path in paths])


def test_layout(world: Path) -> None:
    for platform in ("ground", "aerial"):
        train, test = tracklets(world, "train", platform), tracklets(world, "test", platform)
        assert list(train) == [f"{identity:04d}" for identity in range(6)]
        assert list(test) == ["1000", "1001", "1002"]
        for folders in (*train.values(), *test.values()):
            assert len(folders) == 2
            for folder in folders:
                camera, number = folder.name.split("_")
                assert camera in {f"{platform}{k}" for k in range(3)}
                assert len(number) == 4
                names = sorted(path.name for path in folder.iterdir())
                assert 2 <= len(names) <= 4
                assert names == [f"{index:06d}.jpg" for index in range(len(names))]


def test_crop_sizes(world: Path) -> None:
    ground, aerial = heights_and_widths(world, "ground"), heights_and_widths(world, "aerial")
    assert ((ground[:, 0] >= 128) & (ground[:, 1] >= 64)).mean() > 0.8
    # People of 12 to 40 px, and a detector's margin and errors.
    assert aerial[:, 0].min() >= 10
    assert aerial[:, 0].max() <= 50


def test_a_complete_world_is_left_alone_and_others_are_refused(world: Path, tmp_path: Path) -> None:
    arguments = {"seed": 4, "train_identities": 6, "test_identities": 3, "frames": 4}
    some = next(world.glob("train/ground/*/*/*.jpg"))
    before = some.stat().st_mtime_ns
    write_dataset(world, **arguments, progress=False)
    assert some.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="seed 4, but 5 is asked for"):
        write_dataset(world, **{**arguments, "seed": 5}, progress=False)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="no synthetic world"):
        write_dataset(tmp_path, **arguments, progress=False)


def test_an_interrupted_world_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "w"
    arguments = {"seed": 1, "train_identities": 2, "test_identities": 0, "frames": 2}
    call = f"write_dataset(pathlib.Path({str(root)!r}), **{ {**arguments, 'train_identities': 900}!r})"
    code = f"import pathlib; from s3clip.synthetic import write_dataset; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".w.partial/train/ground/*/*/*.jpg")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not root.exists()
    write_dataset(root, **arguments, progress=False)
    assert len(list(root.glob("train/*/*/*/*.jpg"))) == 2 * 2 * 2 * 2
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_detector_boxes_stay_inside_the_frame_and_near_the_truth() -> None:
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(500):
        size = rng.uniform((12, 6), (200, 80))
        x, y = rng.uniform(0, 640 - size[1]), rng.uniform(0, 360 - size[0])
        top, bottom, left, right = detector_box((x, y, size[1], size[0]), (360, 640), rng)
        assert 0 <= top < bottom <= 360
        assert 0 <= left < right <= 640
        inside = (min(right, x + size[1]) - max(left, x)) * (min(bottom, y + size[0]) - max(top, y))
        overlaps.append(inside / (size[0] * size[1]))
    assert np.median(overlaps) > 0.95
    assert 0.01 < np.mean(np.array(overlaps) < 0.85) < 0.1  # a gross error is rare, but there is one


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"platform": "sea"}, "platform 'sea'"),
        ({"name": "a_b"}, "without '_'"),
        ({"size": (361, 640)}, "must be even"),
        ({"person_height_px": (30.0, 20.0)}, "must rise"),
    ],
)
def test_camera_settings_are_checked(change: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        replace(STREET, **change)  # type: ignore[arg-type]  # wrong values are the point


def test_video_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        write_videos(tmp_path, seed=1, identities=3, seconds=4)
    with pytest.raises(ConfigError, match="identities must be 1 to 12"):
        write_videos(tmp_path, seed=1, identities=13, seconds=20)


def decoded(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


def share_found(frames: list[NDArray[np.uint8]], truth: NDArray[np.float64]) -> float:
    """Share of well visible true boxes that are at least a fifth foreground for OpenCV's subtractor."""
    model, found = cv2.createBackgroundSubtractorMOG2(detectShadows=True), []
    for index, frame in enumerate(frames):
        foreground = model.apply(frame) == 255
        if index < 10:
            continue
        assert foreground.mean() < 0.2  # the place itself is still
        for _, _, x, y, width, height, _, _, visibility in truth[truth[:, 0] == index + 1]:
            if visibility > 0.6:
                box = foreground[int(y) : math.ceil(y + height), int(x) : math.ceil(x + width)]
                found.append(box.mean() > 0.2)
    return float(np.mean(found))


@pytest.mark.slow
def test_videos(tmp_path: Path) -> None:
    write_videos(tmp_path, seed=6, identities=5, seconds=14)
    assert {path.name for path in tmp_path.iterdir()} == {
        "ground.mp4",
        "ground.txt",
        "aerial.mp4",
        "aerial.txt",
    }
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_400_000  # 20 s must stay below 2 MB
    for camera in ("ground", "aerial"):
        frames = decoded(tmp_path / f"{camera}.mp4")
        truth = np.loadtxt(tmp_path / f"{camera}.txt", delimiter=",")
        assert len(frames) == 140
        assert frames[0].shape == (360, 640, 3)
        identities, counts = np.unique(truth[:, 1], return_counts=True)
        assert identities.tolist() == list(range(2000, 2005))
        assert counts.min() >= 30  # three seconds
        left, top, width, height = truth[:, 2:6].T
        assert min(left.min(), top.min()) >= 0
        assert (left + width).max() <= 640
        assert (top + height).max() <= 360
        assert share_found(frames, truth) > 0.9
    assert 12 <= height[truth[:, 8] > 0.9].min() <= height.max() <= 40  # the aerial view comes last
