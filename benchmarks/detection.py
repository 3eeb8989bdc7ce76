"""A network detector on an annotated video: recall and precision, and milliseconds a frame of many cameras.

    python -m benchmarks.detection NETWORK VIDEO TRUTH [--cameras 4] [--tiles 2 2] [--frames 200]

NETWORK is an .onnx file or a folder of s3clip-export detector, TRUTH a MOT file of the video. The cameras of
the timing are the same video at different places.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import av
import click
import numpy as np

from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.streams.detection.choose import Choice, open_detectors
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.frames import Detections, Frame

MIN_IOU = 0.5
"""A box finds the person whom it overlaps most, if by this much and nobody better did."""

_PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("network", type=_PATH)
@click.argument("video", type=_PATH)
@click.argument("truth", type=_PATH)
@click.option("--cameras", type=click.IntRange(1), default=4, show_default=True)
@click.option("--tiles", type=(click.IntRange(1), click.IntRange(1)), metavar="ROWS COLUMNS", default=None)
@click.option("--frames", type=click.IntRange(1), default=200, show_default=True, help="Of the video.")
@click.option("--layout", default=None, help="Of an .onnx file, where it is not recognised.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(
    network: Path,
    video: Path,
    truth: Path,
    cameras: int,
    tiles: tuple[int, int] | None,
    frames: int,
    layout: str | None,
    device: str,
    threads: int,
) -> None:
    """Measure, and print the machine."""
    shown = read_frames(video, frames)
    names = [f"camera-{number}" for number in range(cameras)]
    choice = Choice(str(network), tiles, layout)
    print(f"{cpu_name()}, device {device}, {threads} threads; {video.name}, {len(shown)} frames")
    with closing(open_detectors(dict.fromkeys(names, choice), device=device, threads=threads)) as detectors:
        detector = detectors.of_camera(names[0])  # shared by all
        found = [detector.detect([seen_by(names[0], frame)])[0] for frame in shown]
        recall, precision = agreement(found, MotDetector(truth).detect(shown))
        print(f"recall {recall:.1%}, precision {precision:.1%} at IoU {MIN_IOU}")
        print("frames a call   ms a frame")
        for batch in sorted({1, min(4, cameras), cameras}):
            print(f"{batch:>13} {frame_ms(detector, shown, names, batch):>12.1f}")


def read_frames(video: Path, count: int) -> list[Frame]:
    """The first frames of a video."""
    frames = []
    with av.open(str(video)) as container:
        for index, picture in enumerate(container.decode(video=0)):
            if index == count:
                break
            image = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
            frames.append(Frame("video", index, index / 25, image))
    return frames


def seen_by(camera: str, frame: Frame) -> Frame:
    """The frame as another camera's."""
    return Frame(camera, frame.index, frame.time_s, frame.image)


def agreement(found: Sequence[Detections], truth: Sequence[Detections]) -> tuple[float, float]:
    """Share of persons that were found, and share of boxes that are persons."""
    right = sum(matches(one, true) for one, true in zip(found, truth, strict=True))
    persons, boxes = (sum(len(one.boxes) for one in many) for many in (truth, found))
    return right / max(persons, 1), right / max(boxes, 1)


def matches(found: Detections, truth: Detections) -> int:
    """Boxes that find a person; the surest choose first."""
    free = np.ones(len(truth.boxes), np.bool_)
    for box in found.boxes[np.argsort(-found.scores)]:
        if not free.any():
            break
        low, high = np.maximum(box[:2], truth.boxes[:, :2]), np.minimum(box[2:], truth.boxes[:, 2:])
        inner = np.maximum(high - low, 0).prod(axis=1)
        areas = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
        overlap = np.where(free, inner / (areas - inner), 0)
        best = int(np.argmax(overlap))
        free[best] &= overlap[best] < MIN_IOU
    return int((~free).sum())


def frame_ms(detector: Detector, frames: Sequence[Frame], names: Sequence[str], batch: int) -> float:
    """Milliseconds a frame of all cameras, `batch` frames a call; the first call is not counted."""
    step = max(1, len(frames) // len(names))
    rounds = [
        [seen_by(name, frames[(start + step * place) % len(frames)]) for place, name in enumerate(names)]
        for start in range(min(len(frames), 40))
    ]
    calls = [shown[low : low + batch] for shown in rounds for low in range(0, len(shown), batch)]
    detector.detect(calls[0])
    begin = time.perf_counter()
    for call in calls:
        detector.detect(call)
    return 1e3 * (time.perf_counter() - begin) / sum(map(len, calls))


if __name__ == "__main__":
    main()
