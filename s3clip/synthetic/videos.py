"""Writing the demo videos: the same people before a ground and an aerial camera, and the truth about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from s3clip.synthetic.backdrop import COURT
from s3clip.synthetic.camera import AERIAL_HEIGHT_PX, CameraConfig
from s3clip.synthetic.coding import encode_h264
from s3clip.synthetic.person import sample_appearance
from s3clip.synthetic.scene import AERIAL_FEET, Actor, Scene
from s3clip_runtime.errors import ConfigError

FIRST_VIDEO_IDENTITY = 2000
"""People of the videos are in no data set of at most 1000 test identities."""

EMPTY_S = 1.0
"""The place is empty for so long, so that a background model can start."""

MIN_VISIBLE_S = 3.0
MIN_VISIBILITY = 0.2
"""People of whom less is seen have no line in the truth."""

MAX_PEOPLE = 12
GROUND_VIDEO_FEET = (0.76, 0.95)
"""Rows of the frame where people walk before the ground camera: near, so that most of their boxes are HR."""


def video_cameras(seed: int, fps: float) -> tuple[CameraConfig, CameraConfig]:
    """The ground and the aerial camera of the videos: still, with little motion in the background."""
    aerial_height = (0.95 * AERIAL_HEIGHT_PX[1], AERIAL_HEIGHT_PX[1])
    ground = CameraConfig(
        "ground",
        "ground",
        fps=fps,
        person_height_px=(212.0, 222.0),
        seed=seed * 100 + 50,
        crf=24,
        noise=1.2,
        occluders=1,
        paint=COURT,
    )
    aerial = CameraConfig(
        "aerial",
        "aerial",
        fps=fps,
        person_height_px=aerial_height,
        seed=seed * 100 + 51,
        crf=22,
        noise=1.2,
        haze=0.05,
        occluders=1,
        sway_px=0.3,
        paint=COURT,
    )
    return ground, aerial


def write_videos(out: Path, *, seed: int, identities: int, seconds: float, fps: float = 10) -> None:
    """Write ground.mp4, aerial.mp4 and their truth, ground.txt and aerial.txt.

    Videos are H.264, yuv420p, 360 x 640 pixels. Truth is MOT: frame (from 1), id, x, y, width, height, 1, 1,
    visibility; boxes are clipped to the frame. Ids are identity numbers from 2000, the same in both views.
    People enter one after the other and stay for three seconds or more. A video appears when it is complete.

    Args:
        out: folder, made if missing; files of these names are replaced.
        seed: the world; the same people as in `write_dataset` with this seed.
        identities: 1 to 12 people.
        seconds: length, at least 8.
        fps: frames a second, 1 to 60.

    Raises:
        ConfigError: a number is out of range.
    """
    if not 1 <= identities <= MAX_PEOPLE:
        raise ConfigError(f"videos: identities must be 1 to {MAX_PEOPLE}, not {identities}; change it")
    if seconds < 8:
        raise ConfigError(
            f"videos: seconds must be at least 8, not {seconds}; people need time to walk through"
        )
    if not 1 <= fps <= 60:
        raise ConfigError(f"videos: fps must be 1 to 60, not {fps}; change it")
    out.mkdir(parents=True, exist_ok=True)
    people = list(range(FIRST_VIDEO_IDENTITY, FIRST_VIDEO_IDENTITY + identities))
    for camera in video_cameras(seed, fps):
        rng = np.random.default_rng([seed, 41, camera.seed])
        stage = Scene(camera, int(rng.integers(2**31)))
        actors = _walks(rng, stage, seed, people, seconds)
        lines: list[str] = []
        partial = out / f".{camera.name}.partial"
        encode_h264(partial, _film(stage, actors, round(seconds * fps), lines), fps, camera.crf)
        partial.rename(out / f"{camera.name}.mp4")
        (out / f"{camera.name}.txt").write_text("".join(lines), encoding="ascii")


def _film(stage: Scene, actors: list[Actor], frames: int, lines: list[str]) -> Iterator[NDArray[np.uint8]]:
    """Frames one by one; their MOT lines are added to `lines` on the way."""
    for index in range(frames):
        picture, truths = stage.draw(actors, index)
        for truth in sorted(truths, key=lambda truth: truth.identity):
            if truth.visibility >= MIN_VISIBILITY:
                x, y, width, height = truth.box
                box = f"{x:.1f},{y:.1f},{width:.1f},{height:.1f}"
                lines.append(f"{index + 1},{truth.identity},{box},1,1,{truth.visibility:.2f}\n")
        yield picture


def _walks(rng: Generator, stage: Scene, seed: int, people: list[int], seconds: float) -> list[Actor]:
    """Everybody on a lane of their own, entering through the left or right border, spread over the video."""
    aerial = stage.camera.platform == "aerial"
    height, width = stage.camera.size
    first, last = AERIAL_FEET if aerial else GROUND_VIDEO_FEET
    lanes = rng.permutation(len(people))
    latest = seconds - MIN_VISIBLE_S - 2.0
    actors = []
    for turn, identity in enumerate(rng.permutation(people).tolist()):
        enter_s = EMPTY_S + (latest - EMPTY_S) * turn / max(1, len(people) - 1)
        lane = (int(lanes[turn]) + 0.5) / len(people)
        to_right = turn % 2 == 0
        foot_y = height * (first + (last - first) * lane)
        # Lanes near an edge of the frame bend towards its middle.
        slant = float(rng.uniform(0.05, 0.5)) * (1.0 if lane > 0.5 else -1.0)
        heading = slant if to_right else math.pi - slant
        margin = 0.5 * stage.scale_at(foot_y)
        foot = (-margin if to_right else width + margin, foot_y)
        phase = float(rng.uniform(0, 2 * math.pi))
        actors.append(Actor(identity, sample_appearance(seed, identity), foot, heading, phase, enter_s))
    return actors
