"""How many cameras a device sustains: the pipeline on more and more copies of one video.

The copies are files. They come as fast as they are decoded, and nothing is dropped; so the frames a second of
all together, divided by the rate of a camera, are the cameras that the device would follow. What a live
stream costs beyond decoding (network, reconnects, jitter) is not in it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from s3clip_runtime.bench.records import CamerasRow
from s3clip_runtime.bench.replay import Replayed, Task
from s3clip_runtime.doctor.machine import read_apart
from s3clip_runtime.errors import BackendError, ConfigError, SourceError
from s3clip_runtime.streams.detection.box_address import is_box_address

MOST: Final = 64
"""Cameras at which the search ends in any case."""

LEAST_FRAMES: Final = 2
"""Fewer give no rate."""

TIMEOUT_S: Final = 3600.0
"""Of one run."""


def check_task(task: Task, frame_rate: float) -> None:
    """Refuse what no run could do, before one is started.

    Raises:
        ConfigError: the frame rate is not above 0, or boxes would come from outside.
        SourceError: there is no such video.
    """
    if not 0 < frame_rate < math.inf:
        raise ConfigError(
            f"the frame rate must be above 0, found {frame_rate:g}; give what a camera sends, such as 7"
        )
    if is_box_address(task.detector):
        raise ConfigError(
            f"detector {task.detector.partition('?')[0]}: boxes from outside come at their sender's pace; "
            "give background, a network or a MOT file"
        )
    if not Path(task.video).is_file():
        raise SourceError(f"video {task.video}: no such file; give a video file")


def sustained_cameras(
    task: Task, frame_rate: float, *, tick: Callable[[int], None] | None = None
) -> Iterator[CamerasRow]:
    """Rows for 1, 2, 4, ... cameras up to the first that is not sustained, each from a process of its own.

    Args:
        task: its `cameras` is not used.
        frame_rate: frames a second of one camera.
        tick: called with the number of cameras before each run.

    Raises:
        ConfigError, SourceError: as `check_task`.
        BackendError: the run failed: a bad video or detector, or a library that died.
    """
    check_task(task, frame_rate)
    cameras = 1
    while cameras <= MOST:
        if tick is not None:
            tick(cameras)
        row = _row(_replayed(replace(task, cameras=cameras)), cameras, frame_rate)
        yield row
        if not row.sustained:
            return
        cameras *= 2


def camera_count(rows: Sequence[CamerasRow]) -> int:
    """Cameras that the best run's frames would do for."""
    return int(max(row.frames_per_s / row.frame_rate for row in rows))


def _replayed(task: Task) -> Replayed:
    command = [sys.executable, "-P", "-m", "s3clip_runtime.bench.replay", json.dumps(asdict(task))]
    answer = read_apart(command, TIMEOUT_S)
    if "error" in answer:
        raise BackendError(f"{task.cameras} cameras of {task.video}: {answer['error']}")
    found = Replayed(**answer)
    if found.frames < LEAST_FRAMES:
        raise SourceError(
            f"video {task.video}: {found.frames + 1} frames give no rate; take one of half a minute or more"
        )
    return found


def _row(found: Replayed, cameras: int, frame_rate: float) -> CamerasRow:
    rate = found.frames / found.seconds
    return CamerasRow(
        contender=found.contender,
        cameras=cameras,
        frame_rate=frame_rate,
        frames_per_s=rate,
        sustained=rate >= cameras * frame_rate,
        cores_used=found.cores_used,
        dropped=found.dropped,
    )
