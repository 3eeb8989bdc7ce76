"""How well the trackers keep persons apart, on videos whose truth is known; and pictures to check by eye.

    OMP_NUM_THREADS=1 python -m benchmarks.tracking scores
    OMP_NUM_THREADS=1 python -m benchmarks.tracking draw VIDEO --detector background --out FOLDER

The videos are the demo's, and longer drawn ones; "panned" is a window that sweeps and shakes over the same
video, as a drone's camera does. Detections are the truth, the truth with errors, and the background
detector's. HOTA, IDF1, MOTA and id switches are those of `trackers.eval`; boxes match from an IoU of 0.5.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from trackers.eval import evaluate_mot_sequence

from s3clip.synthetic import write_videos
from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.detection.boxes import clipped
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.network import NetworkDetector
from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.outputs.drawing import Label, draw_labels
from s3clip_runtime.streams.outputs.stored_pictures import stored_pictures
from s3clip_runtime.streams.reading.sources import SourceSpec
from s3clip_runtime.streams.tracking.tracker import ACTIVATION_SCORE, LOST_S, MIN_IOU, CameraTracker

DEMO = Path(__file__).parents[1] / "runtime" / "s3clip_runtime" / "demo"
DRAWN_SEED = 6
"""Other people and other scenes than the demo's."""

MISSED, JITTER, FALSE_ALARMS = 0.15, 0.05, 0.3
"""The truth with errors: share of missed persons, deviation of an edge over the box's side, and false
alarms a frame."""

PAN = (270, 480)
"""Height and width of the panned window."""

SHOWN_IOU = 0.3
"""A tracked box shows the person whom it overlaps most, from here on; else nobody."""

Boxes = NDArray[np.float32]


class Tracker(Protocol):
    """What is measured."""

    def update(self, frame: Frame, detections: Detections) -> list[Observation]: ...


@dataclass(frozen=True)
class Film:
    """A video with its truth: of each frame the ids (N,) and boxes float32 (N, 4), clipped to it."""

    name: str
    frames: list[Frame]
    ids: list[NDArray[np.int64]]
    boxes: list[Boxes]


class GreedyTracker:
    """The obvious tracker: each box goes on with the last box that it overlaps most, best pairs first."""

    def __init__(self) -> None:
        self._tracks: dict[int, tuple[float, Boxes]] = {}
        self._given = 0

    def update(self, frame: Frame, detections: Detections) -> list[Observation]:
        alive = {t: last for t, last in self._tracks.items() if frame.time_s - last[0] <= LOST_S}
        names, lasts = list(alive), np.array([box for _, box in alive.values()]).reshape(-1, 4)
        overlap = ious(lasts, detections.boxes)
        given: dict[int, int] = {}
        for pair in np.argsort(-overlap, axis=None, kind="stable"):
            row, column = np.unravel_index(pair, overlap.shape)
            if overlap[row, column] >= MIN_IOU and names[row] not in given.values():
                given.setdefault(int(column), names[row])
        for column, score in enumerate(detections.scores):
            if column not in given and score >= ACTIVATION_SCORE:
                self._given += 1
                given[column] = self._given
        self._tracks = alive | {t: (frame.time_s, detections.boxes[c]) for c, t in given.items()}
        return [Observation(t, detections.boxes[c], float(detections.scores[c])) for c, t in given.items()]


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "greedy IoU": GreedyTracker,
    "ByteTrack": lambda: CameraTracker("bytetrack"),
    "BoT-SORT": lambda: CameraTracker("botsort"),
}


def ious(one: Boxes, other: Boxes) -> NDArray[np.float64]:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inner = np.maximum(high - low, 0).prod(axis=2).astype(np.float64)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return np.asarray(inner / (areas[0][:, None] + areas[1][None] - inner))


def read_frames(video: Path, count: int | None = None) -> Iterator[Frame]:
    """The first `count` frames of a video, or all."""
    pictures = stored_pictures(SourceSpec("video", str(video), "ground"))
    for index, (image, fps) in enumerate(islice(pictures, count)):
        yield Frame("video", index, index / fps, image)


def read_film(name: str, video: Path) -> Film:
    """A video and the MOT truth beside it."""
    frames = list(read_frames(video))
    rows = np.loadtxt(video.with_suffix(".txt"), delimiter=",", ndmin=2)
    of_frame = [rows[rows[:, 0] == frame.index + 1] for frame in frames]
    boxes = [np.concatenate([r[:, 2:4], r[:, 2:4] + r[:, 4:6]], axis=1).astype(np.float32) for r in of_frame]
    return Film(name, frames, [r[:, 1].astype(np.int64) for r in of_frame], boxes)


def panned(film: Film) -> Film:
    """The film through a window that sweeps by up to 10 and shakes by some 6 pixels a frame.

    Persons of whom less than half is in the window are not in the truth.
    """
    rng, size = np.random.default_rng(0), np.array(film.frames[0].image.shape[1::-1])
    room = size - PAN[::-1]
    frames, ids, boxes = [], [], []
    for frame, names, whole in zip(film.frames, film.ids, film.boxes, strict=True):
        sweep = room / 2 * (1 + 0.75 * np.sin(frame.index / np.array([6, 9]))) + rng.normal(0, 6, 2)
        x, y = np.clip(sweep, 0, room).astype(int).tolist()
        image = np.ascontiguousarray(frame.image[y : y + PAN[0], x : x + PAN[1]])
        moved = whole - np.array([x, y, x, y], np.float32)
        part = np.clip(moved, 0, np.tile(PAN[::-1], 2)).astype(np.float32)
        left = (part[:, 2:] - part[:, :2]).prod(axis=1) >= 0.5 * (moved[:, 2:] - moved[:, :2]).prod(axis=1)
        frames.append(replace(frame, image=image))
        ids.append(names[left])
        boxes.append(part[left])
    return Film(f"{film.name}, panned", frames, ids, boxes)


def true_detections(film: Film) -> list[Detections]:
    """The truth with full scores."""
    return [Detections(boxes, np.ones(len(boxes), np.float32)) for boxes in film.boxes]


def faulty_detections(film: Film) -> list[Detections]:
    """The truth with misses, moved edges, scores of 0.3 to 1 and false alarms."""
    rng, found = np.random.default_rng(1), []
    for frame, truth in zip(film.frames, film.boxes, strict=True):
        height, width = frame.image.shape[:2]
        seen = truth[rng.random(len(truth)) >= MISSED]
        sides = np.tile(seen[:, 2:] - seen[:, :2], 2)
        moved = seen + sides * rng.normal(0, JITTER, seen.shape)
        tall = rng.uniform(0.05, 0.3, (rng.poisson(FALSE_ALARMS), 1)) * height
        corner = rng.uniform(0, (width, height), (len(tall), 2))
        wrong = np.concatenate([corner, corner + tall * np.array([0.4, 1])], axis=1)
        scores = np.concatenate([rng.uniform(0.3, 1, len(seen)), rng.uniform(0.25, 0.6, len(wrong))])
        boxes = np.concatenate([moved, wrong]).astype(np.float32)
        found.append(clipped(boxes, scores.astype(np.float32), (height, width)))
    return found


def background_detections(film: Film) -> list[Detections]:
    """What moves."""
    detector = BackgroundDetector()
    return [detector.detect([frame])[0] for frame in film.frames]


def mot_lines(ids: Sequence[int], boxes: Sequence[Boxes], frame: int) -> str:
    """Lines of the MOT Challenge."""
    rows = zip(ids, boxes, strict=True)
    return "".join(
        f"{frame + 1},{name},{b[0]:.2f},{b[1]:.2f},{b[2] - b[0]:.2f},{b[3] - b[1]:.2f},1,1,1\n"
        for name, b in rows
    )


def purity(film: Film, tracked: list[list[Observation]]) -> float:
    """Share of all tracked boxes that show the person whom most boxes of their track show."""
    shown: dict[int, Counter[int]] = {}
    for ids, boxes, observations in zip(film.ids, film.boxes, tracked, strict=True):
        for one in observations:
            overlap = ious(one.box[None], boxes)[0]
            best = int(overlap.argmax()) if len(overlap) else -1
            person = int(ids[best]) if best >= 0 and overlap[best] >= SHOWN_IOU else -1
            shown.setdefault(one.track, Counter())[person] += 1
    most = sum(max((n for person, n in seen.items() if person >= 0), default=0) for seen in shown.values())
    return most / max(sum(map(len, tracked)), 1)


def score(film: Film, detections: list[Detections], tracker: Tracker) -> str:
    """The numbers of one row of the table."""
    start = time.process_time()  # not the clock's: others may use the machine
    tracked = [tracker.update(frame, found) for frame, found in zip(film.frames, detections, strict=True)]
    ms = 1000 * (time.process_time() - start) / len(tracked)
    with tempfile.TemporaryDirectory() as folder:
        truth, result = Path(folder, "truth.txt"), Path(folder, "tracked.txt")
        rows = enumerate(zip(film.ids, film.boxes, strict=True))
        truth.write_text("".join(mot_lines(ids.tolist(), list(boxes), n) for n, (ids, boxes) in rows))
        lines = (
            mot_lines([one.track for one in seen], [one.box for one in seen], n)
            for n, seen in enumerate(tracked)
        )
        result.write_text("".join(lines))
        got = evaluate_mot_sequence(truth, result, ["CLEAR", "HOTA", "Identity"])
    shares = (got.HOTA.HOTA, got.Identity.IDF1, got.CLEAR.MOTA, purity(film, tracked))
    tracks = len({one.track for seen in tracked for one in seen})
    numbers = " ".join(f"{100 * share:7.1f}" for share in shares)
    return f"{numbers} {got.CLEAR.IDSW:8d} {tracks:7d} {ms:9.2f}"


def films(folder: Path, seconds: float) -> Iterator[Film]:
    """All videos of the table, one at a time."""
    write_videos(folder, seed=DRAWN_SEED, identities=12, seconds=seconds)
    for name in ("ground", "aerial"):
        for film in (
            read_film(f"demo {name}", DEMO / f"{name}.mp4"),
            read_film(name, folder / f"{name}.mp4"),
        ):
            yield film
            yield panned(film)


@click.group()
def main() -> None:
    """Trackers beside the truth, and on pictures."""


@main.command()
@click.option("--seconds", default=40.0, show_default=True, help="Of the drawn videos, 12 persons each.")
def scores(seconds: float) -> None:
    """Print the table."""
    print(f"{cpu_name()}; OpenCV with 1 thread; shares in %")
    cv2.setNumThreads(1)
    heads = ("HOTA", "IDF1", "MOTA", "purity")
    print(f"{'video':22} {'detections':10} {'tracker':10} {' '.join(f'{h:>7}' for h in heads)}", end=" ")
    print(f"{'switches':>8} {'tracks':>7} {'CPU ms':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for film in films(Path(folder), seconds):
            print(f"{film.name}: {len(film.frames)} frames, {len(set(np.concatenate(film.ids)))} persons")
            kinds = {"truth": true_detections(film), "faulty": faulty_detections(film)}
            if not film.name.endswith("panned"):
                kinds["background"] = background_detections(film)
            for kind, detections in kinds.items():
                for name, make in TRACKERS.items():
                    print(f"{film.name:22} {kind:10} {name:10} {score(film, detections, make())}", flush=True)


@main.command()
@click.argument("video", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--detector", "choice", default="background", show_default=True, help="background or FILE.onnx")
@click.option(
    "--tracker", type=click.Choice(["bytetrack", "botsort"]), default="bytetrack", show_default=True
)
@click.option("--frames", "count", default=100, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def draw(video: Path, choice: str, tracker: str, count: int, out: Path) -> None:
    """Write the first frames of VIDEO with ids, as 0000.jpg and on, to count id switches by eye."""
    detector: Detector = (
        BackgroundDetector() if choice == "background" else NetworkDetector(OrtSession(Path(choice)))
    )
    out.mkdir(parents=True, exist_ok=True)
    tracks = CameraTracker("botsort" if tracker == "botsort" else "bytetrack")
    given: set[int] = set()
    for frame in read_frames(video, count):
        seen = tracks.update(frame, detector.detect([frame])[0])
        labels = [Label(one.track, (*one.box.tolist(),), str(one.track)) for one in seen]
        picture = cv2.cvtColor(draw_labels(frame.image, labels), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(out / f"{frame.index:04d}.jpg"), picture)
        given |= {one.track for one in seen}
    detector.close()
    print(f"{out}: {count} frames, {len(given)} ids")


if __name__ == "__main__":
    main()
