"""Writing the synthetic world: tracklet folders for training and evaluation."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip.synthetic import camera, person
from s3clip.synthetic.backdrop import COURT
from s3clip.synthetic.camera import AERIAL_HEIGHT_PX, CameraConfig
from s3clip.synthetic.coding import through_h264
from s3clip.synthetic.person import sample_appearance
from s3clip.synthetic.scene import AERIAL_FEET, GROUND_FEET, Actor, Scene, Truth
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.spec import PLATFORMS

U8 = NDArray[np.uint8]

SPLITS = ("train", "test")
FIRST_TEST_IDENTITY = 1000
PEOPLE_PER_SCENE = {"ground": 6, "aerial": 10}
MIN_VISIBILITY = 0.3
"""Frames in which less of a person is seen are skipped."""

MIN_INSIDE = 0.75
MIN_BOX_ASPECT = 0.46
"""Narrower boxes are widened to this width / height, as detectors trained on people give them."""

MARKER = "world.json"
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class _Job:
    """One scene to write: who, where, and the seeds' path (split, platform, number)."""

    split: str
    camera: CameraConfig
    number: int
    identities: tuple[int, ...]


def dataset_cameras(seed: int, platform: str) -> list[CameraConfig]:
    """The cameras of one platform in the world `seed`: ground0, ground1, ... or aerial0, aerial1, ...

    The last one looks at a painted court, as the cameras of the videos do.
    """
    common = {
        "ground": CameraConfig("ground0", "ground", shake_px=0.4, crf=25, occluders=3),
        "aerial": CameraConfig(
            "aerial0",
            "aerial",
            person_height_px=AERIAL_HEIGHT_PX,
            shake_px=1.2,
            crf=23,
            noise=2.5,
            haze=0.08,
            occluders=4,
        ),
    }[platform]
    return [
        replace(
            common,
            name=f"{platform}{k}",
            seed=seed * 100 + k,
            haze=common.haze * (0.5 + 0.5 * k),
            paint=paint,
        )
        for k, paint in enumerate((None, None, COURT))
    ]


def write_dataset(
    root: Path,
    *,
    seed: int,
    train_identities: int,
    test_identities: int,
    tracklets_per_view: int = 2,
    frames: int = 12,
    progress: bool = True,
) -> None:
    """Write a cross-view data set of walking people, or do nothing if exactly it is there already.

    Layout: root/{train,test}/{ground,aerial}/IDENTITY/CAMERA_TRACKLET/000000.jpg with four digits each for
    identity and tracklet (the number of its scene). Training identities count from 0, test identities from
    1000. Crops went through H.264 and are JPEG files; their boxes are the true ones with a detector's errors.
    A tracklet has `frames` crops, or fewer (at least half) where the person was hidden. Nothing appears at
    `root` before all is written.

    Args:
        root: folder to create.
        seed: the world; equal arguments give equal pixels.
        train_identities: 1 to 1000.
        test_identities: 0 to 9000.
        tracklets_per_view: tracklets of each person on each platform.
        frames: crops of a tracklet.
        progress: show a bar on stderr.

    Raises:
        ConfigError: a number is out of range, or `root` holds something else.
    """
    _check_range("seed", seed, 0, 2**31 - 1)
    _check_range("train_identities", train_identities, 1, 1000)
    _check_range("test_identities", test_identities, 0, 9000)
    _check_range("tracklets_per_view", tracklets_per_view, 1, 100)
    _check_range("frames", frames, 1, 1000)
    parameters = {
        "seed": seed,
        "train_identities": train_identities,
        "test_identities": test_identities,
        "tracklets_per_view": tracklets_per_view,
        "frames": frames,
        **_difficulty(),
    }
    if _already_written(root, parameters):
        return
    splits = {
        "train": range(train_identities),
        "test": range(FIRST_TEST_IDENTITY, FIRST_TEST_IDENTITY + test_identities),
    }
    jobs = [
        job
        for split, people in splits.items()
        for platform in PLATFORMS
        for job in _jobs(seed, split, platform, np.asarray(people), tracklets_per_view)
    ]
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in splits:
        for platform in PLATFORMS:
            (partial / split / platform).mkdir(parents=True)
    for job in tqdm(jobs, desc="synthetic world", unit="scene", disable=not progress):
        _write_scene(partial, seed, job, frames)
    (partial / MARKER).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
    partial.rename(root)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"synthetic world: {name} must be {low} to {high}, not {value}; change it")


def _difficulty() -> dict[str, int | float | list[float]]:
    """The constants that change the pictures: a data set made with others is not the same."""
    return {
        "generator": 1,
        "wardrobe_size": person.WARDROBE_SIZE,
        "colour_jitter": person.COLOUR_JITTER,
        "colour_cast": camera.COLOUR_CAST,
        "aerial_height_px": list(AERIAL_HEIGHT_PX),
        "aerial_blur_px": camera.AERIAL_BLUR_PX,
    }


def _already_written(root: Path, parameters: dict[str, int | float | list[float]]) -> bool:
    """True if `root` is complete and of these parameters; False if there is nothing there."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER
    if not marker.is_file():
        raise ConfigError(
            f"{root} exists and has no {MARKER}, so it is no synthetic world; choose another folder"
        )
    found = json.loads(marker.read_text(encoding="utf-8"))
    for name in sorted(set(parameters) | set(found)):
        have, want = found.get(name), parameters.get(name)
        if have != want:
            raise ConfigError(
                f"{root} is a synthetic world with {name} {have}, but {want} is asked for; "
                "delete the folder or choose another"
            )
    return True


def _jobs(seed: int, split: str, platform: str, people: NDArray[np.int64], rounds: int) -> list[_Job]:
    """Everybody in one scene of each round, in shuffled company."""
    rng = np.random.default_rng([seed, 31, SPLITS.index(split), PLATFORMS.index(platform)])
    cameras = dataset_cameras(seed, platform)
    groups = [
        group
        for _ in range(rounds)
        for group in np.array_split(
            rng.permutation(people), max(1, math.ceil(len(people) / PEOPLE_PER_SCENE[platform]))
        )
        if len(group)
    ]
    return [
        _Job(split, cameras[int(rng.integers(len(cameras)))], number, tuple(group.tolist()))
        for number, group in enumerate(groups)
    ]


def _cast(
    rng: Generator, stage: Scene, seed: int, identities: tuple[int, ...], seconds: float
) -> list[Actor]:
    """Everybody somewhere on the stage, such that the middle of each walk is well inside the frame."""
    height, width = stage.camera.size
    rows = AERIAL_FEET if stage.camera.platform == "aerial" else GROUND_FEET
    slots = rng.permutation(len(identities))
    actors = []
    for slot, identity in zip(slots.tolist(), identities, strict=True):
        middle = (
            width * (0.12 + 0.76 * (slot + float(rng.uniform(0.1, 0.9))) / len(identities)),
            height * float(rng.uniform(*rows)),
        )
        phase, heading = (float(angle) for angle in rng.uniform(0, 2 * math.pi, 2))
        actor = Actor(identity, sample_appearance(seed, identity), middle, heading, phase)
        right, down = stage.velocity(actor)
        actors.append(replace(actor, foot=(middle[0] - right * seconds / 2, middle[1] - down * seconds / 2)))
    return actors


def _write_scene(root: Path, seed: int, job: _Job, frames: int) -> None:
    """Film one scene and cut its people out; film again with other paths while somebody was hidden too often.

    Raises:
        ConfigError: no cast was good enough in many attempts.
    """
    clip = frames + max(2, frames // 4)
    for attempt in range(_ATTEMPTS):
        key = [seed, 32, SPLITS.index(job.split), PLATFORMS.index(job.camera.platform), job.number, attempt]
        rng = np.random.default_rng(key)
        stage = Scene(job.camera, int(rng.integers(2**31)))
        actors = _cast(rng, stage, seed, job.identities, clip / job.camera.fps)
        filmed = [stage.draw(actors, index) for index in range(clip)]
        seen = {identity: _good_frames(filmed, identity)[:frames] for identity in job.identities}
        if all(len(good) >= math.ceil(frames / 2) for good in seen.values()):
            pictures = through_h264([picture for picture, _ in filmed], job.camera.fps, job.camera.crf)
            for identity in job.identities:
                name = f"{job.camera.name}_{job.number:04d}"
                folder = root / job.split / job.camera.platform / f"{identity:04d}" / name
                _write_tracklet(folder, pictures, seen[identity], rng)
            return
    raise ConfigError(
        f"{job.camera.name}: {len(job.identities)} people hide each other too often; use fewer occluders"
    )


def _good_frames(filmed: list[tuple[U8, list[Truth]]], identity: int) -> list[tuple[int, Truth]]:
    """Frame numbers and truths in which the person is seen well enough to be cut out."""
    return [
        (index, truth)
        for index, (_, truths) in enumerate(filmed)
        for truth in truths
        if truth.identity == identity and truth.visibility >= MIN_VISIBILITY and truth.inside >= MIN_INSIDE
    ]


def _write_tracklet(folder: Path, pictures: list[U8], seen: list[tuple[int, Truth]], rng: Generator) -> None:
    folder.mkdir(parents=True)
    for number, (index, truth) in enumerate(seen):
        top, bottom, left, right = detector_box(truth.box, pictures[index].shape[:2], rng)
        crop = cv2.cvtColor(pictures[index][top:bottom, left:right], cv2.COLOR_RGB2BGR)
        quality = int(rng.integers(85, 91))
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, quality])


def detector_box(
    box: tuple[float, float, float, float], frame_size: tuple[int, ...], rng: Generator
) -> tuple[int, int, int, int]:
    """The true box with a margin and a detector's errors: a few percent, seldom a gross one.

    Args:
        box: x, y, width, height in pixels.
        frame_size: (height, width).
        rng: source of the errors.

    Returns:
        top, bottom, left, right in whole pixels inside the frame, at least 6 x 3 pixels for boxes inside it.
    """
    x, y, width, height = box
    spread = 0.15 if rng.random() < 0.06 else 0.02
    shift_x, shift_y, grow_x, grow_y = rng.normal(0.0, spread, 4).tolist()
    tall = height * max(0.8, 1.06 + grow_y)
    wide = max(width * max(0.8, 1.08 + grow_x), tall * MIN_BOX_ASPECT)
    middle_x, middle_y = x + width / 2 + shift_x * wide, y + height / 2 + shift_y * tall
    top = min(max(0, round(middle_y - tall / 2)), frame_size[0] - 6)
    left = min(max(0, round(middle_x - wide / 2)), frame_size[1] - 3)
    bottom = min(frame_size[0], max(top + 6, round(middle_y + tall / 2)))
    right = min(frame_size[1], max(left + 3, round(middle_x + wide / 2)))
    return top, bottom, left, right
