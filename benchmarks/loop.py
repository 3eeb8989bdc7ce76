"""What the loop around the graphs costs: per frame, per look at a tracklet, and in memory.

    python -m benchmarks.loop [VIDEO ...] [--bundle DIR] [--rounds 5]

Persons come from the MOT file beside a video, else from the background detector. Graphs run on one thread in
the thread that calls them, so their CPU time can be told from the loop's. "whole" is the real batcher with
gallery and JSON lines, less the graphs. Wall and CPU times are of one look, or of one frame.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Space
from s3clip_runtime.inference.backends import Session, TensorInfo
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.chain import HostChain
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import PLAIN, Role
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.sessions import open_session
from s3clip_runtime.inference.spec import CLIP_LENGTH, FRAME_SIZE, LR_SIZE, PATCHES, SR_SIZE
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.events import STEPS, EventMaker
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.outputs.json_lines import JsonLines
from s3clip_runtime.streams.outputs.outputs import Outputs
from s3clip_runtime.streams.outputs.stored_pictures import stored_pictures
from s3clip_runtime.streams.reading.sources import SourceSpec
from s3clip_runtime.streams.recognition.batcher import Batcher, seen_of
from s3clip_runtime.streams.tracking.quality import choose, crop_quality
from s3clip_runtime.streams.tracking.tracker import CameraTracker
from s3clip_runtime.streams.tracking.tracklets import TrackletBuilder, cut

ROLES: tuple[Role, ...] = ("enhance", "patchify", "encode")
DEMO = Path(__file__).parents[1] / "runtime" / "s3clip_runtime" / "demo"

FULL_WIDTH = 768
"""Token width of the full-size model: its hand-over between the graphs is measured without it."""

FULL_TRACKLET_MS = 700.0
"""A tracklet of the full-size model on two cores at its fastest (int8): the loop's share is stated of it."""

GALLERY_PEOPLE = 100
"""Identities that every look is compared with."""

RULES = Rules(threshold=0.6)

P = ParamSpec("P")
T = TypeVar("T")
_VIDEO = click.Path(path_type=Path, exists=True, dir_okay=False)


class Clocks:
    """Wall and CPU milliseconds of named parts."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def time(self, part: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run and note; what `work` gave."""
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        done = work(*args, **kwargs)
        cpu_ns, wall_ns = time.thread_time_ns() - cpu_ns, time.perf_counter_ns() - wall_ns
        self.note(part, wall_ns / 1e6, cpu_ns / 1e6)
        return done

    def note(self, part: str, wall_ms: float, cpu_ms: float) -> None:
        """One measurement."""
        self._rows[part].append((wall_ms, cpu_ms))

    def total(self) -> tuple[float, float]:
        """Wall and CPU of all that was noted."""
        every = [row for rows in self._rows.values() for row in rows]
        return sum(row[0] for row in every), sum(row[1] for row in every)

    def medians(self) -> dict[str, float]:
        """Wall of each part."""
        return {part: float(np.median([row[0] for row in rows])) for part, rows in self._rows.items()}

    def show(self, title: str) -> None:
        """A table."""
        print(f"\n{title:<34}{'n':>6}{'wall p50':>10}{'p95':>8}{'cpu p50':>9}{'p95':>8}  ms")
        for part, rows in self._rows.items():
            wall, cpu = np.quantile(np.array(rows), (0.5, 0.95), axis=0).T
            print(f"  {part:<32}{len(rows):>6}{wall[0]:>10.3f}{wall[1]:>8.3f}{cpu[0]:>9.3f}{cpu[1]:>8.3f}")


@dataclass(frozen=True)
class Timed:
    """A session whose runs are noted."""

    role: str
    inner: Session
    clocks: Clocks

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self.inner.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self.inner.outputs

    @property
    def device(self) -> str:
        return self.inner.device

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.clocks.time(self.role, self.inner.run, inputs)

    def close(self) -> None:
        self.inner.close()


class FullSizeArrays:
    """A session that computes nothing and hands out arrays of the full-size model's shapes."""

    device = "cpu"
    inputs: Mapping[str, TensorInfo] = {
        "tokens": TensorInfo((None, CLIP_LENGTH, PATCHES, FULL_WIDTH), np.dtype(np.float32))
    }
    outputs: Mapping[str, TensorInfo] = {}

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {
            "tokens": np.zeros((CLIP_LENGTH, PATCHES, FULL_WIDTH), np.float32),
            "picture": np.zeros((CLIP_LENGTH, *SR_SIZE, 3), np.uint8),
            "embedding": np.ones((CLIP_LENGTH, 1280), np.float32),
        }

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(next(iter(inputs.values())))
        return {name: array[:count] for name, array in self._arrays.items()}

    def close(self) -> None:
        """Nothing is open."""


def film_looks(video: Path, clocks: Clocks) -> list[Look]:
    """All looks at a video's persons; notes what its frames cost."""
    boxes = video.with_suffix(".txt")
    detector: Detector = MotDetector(boxes) if boxes.is_file() else BackgroundDetector()
    tracker = CameraTracker()
    builder = TrackletBuilder("film", 0, max_gap_s=1.0, max_seconds=10.0)
    looks: list[Look] = []
    for index, (image, fps) in enumerate(stored_pictures(SourceSpec("film", str(video), "ground"))):
        frame = Frame("film", index, index / fps, image)
        (found,) = clocks.time("detect", detector.detect, [frame])
        seen = clocks.time("track", tracker.update, frame, found)
        looks += clocks.time("collect: rate, cut, look", builder.add, frame, seen, 0)
        if seen:
            every = np.stack([one.box for one in seen])
            scores = np.array([one.score for one in seen], np.float32)
            clocks.time("  of it: rate all crops", crop_quality, image, every, scores)
            clocks.time("  of it: cut one crop", cut, image, every[0])
    return looks + builder.finish("end")


def time_parts(looks: Sequence[Look], bundle: Bundle, gallery: Gallery, embedder: Embedder) -> Clocks:
    """Each part of a look alone, called as the batcher calls it."""
    clocks = Clocks()
    maker = EventMaker("run", "bundle", bundle.manifest.embedding_space, with_embedding=False)
    steps_ms = dict.fromkeys(STEPS, 1.0)
    small, large = (np.empty((CLIP_LENGTH, *size, 3), np.uint8) for size in (LR_SIZE, FRAME_SIZE))
    full = HostChain({role: FullSizeArrays() for role in ROLES})
    rows, padded = [list(range(CLIP_LENGTH))], [[0, 1, 2, 3, 4, 5, 5, 5]]
    none, platform = large[:0], np.zeros(1, np.int64)
    recogniser = Recogniser(gallery, RULES)
    for look in looks:
        clocks.time("choose crops", choose, look.tracklet.qualities)
        clocks.time("prepare 8 crops to 64x32", lr_batch, look.clip.crops, small)
        clocks.time("prepare 8 crops to 256x128", hr_batch, look.clip.crops, large)
        vectors = embedder.embed([look.clip])
        (found,) = clocks.time("match", recogniser.recognise, [seen_of(look, vectors[0], "run")])
        now_unix_s = time.time()
        event = clocks.time(
            "event", maker.make, look, "used", vectors[0], found, steps_ms, now_unix_s=now_unix_s
        )
        clocks.time("JSON line", event.line)
        clocks.time("hand-over, 768 wide", full.embed, small, none, rows, platform)
        clocks.time("  the same of a padded clip", full.embed, small[:6], none, padded, platform)
    return clocks


def timed_embedder(bundle: Bundle, graphs: Clocks) -> Embedder:
    """An embedder on one thread whose graphs are timed."""
    embedder = Embedder(bundle, device="cpu", target=PLAIN, threads=1)
    embedder._chain.close()
    sessions = {role: Timed(role, open_session(bundle, role, PLAIN, "cpu", 1), graphs) for role in ROLES}
    embedder._chain = HostChain(sessions)
    return embedder


def through_batcher(looks: Sequence[Look], bundle: Bundle, gallery: Gallery, embedder: Embedder) -> None:
    """Looks from submission to their lines, as in a run."""
    maker = EventMaker("run", "bundle", bundle.manifest.embedding_space, with_embedding=False)
    outputs = Outputs({"events": JsonLines(Path("/dev/null"))}, [])
    batcher = Batcher(
        embedder, Recogniser(gallery, RULES), maker, outputs.sighting, enhances=lambda height: True
    )
    for look in looks:
        batcher.submit(look)
    batcher.start()
    batcher.finish()
    outputs.close()
    assert batcher.error is None


def time_whole(looks: Sequence[Look], bundle: Bundle, gallery: Gallery, rounds: int) -> tuple[Clocks, Clocks]:
    """Looks through the real batcher to the last output: (loop a look, graphs a run)."""
    loop, graphs = Clocks(), Clocks()
    kinds = {"LR": [one for one in looks if not one.clip.hr], "HR": [one for one in looks if one.clip.hr]}
    with timed_embedder(bundle, graphs) as embedder:
        for _ in range(rounds):
            for kind, some in kinds.items():
                before = graphs.total()
                wall_s, cpu_s = time.perf_counter(), time.process_time()
                through_batcher(some, bundle, gallery, embedder)
                spent = 1e3 * (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s)
                inside = np.subtract(graphs.total(), before)
                wall_ms, cpu_ms = (np.subtract(spent, inside) / max(len(some), 1)).tolist()
                loop.note(f"whole, {kind} look ({len(some)} a round)", wall_ms, cpu_ms)
    return loop, graphs


def memory_growth(looks: Sequence[Look], bundle: Bundle, gallery: Gallery) -> tuple[float, float]:
    """Bytes that Python's allocators hold more after an event, and at most above the rest."""
    with Embedder(bundle, device="cpu", target=PLAIN, threads=1) as embedder:
        tracemalloc.start()
        held = []
        for _ in range(2):  # freed objects that Python keeps for the next ones fill up in the first
            for _ in range(3):
                through_batcher(looks, bundle, gallery, embedder)
            gc.collect()
            held.append(tracemalloc.get_traced_memory())
            tracemalloc.reset_peak()
        tracemalloc.stop()
    return (held[1][0] - held[0][0]) / (3 * len(looks)), held[1][1] - held[0][0]


def repeated_crops(looks: Sequence[Look]) -> float:
    """Share of an LR look's crops that it shows more than once."""
    counts = [len({crop.tobytes() for crop in one.clip.crops}) for one in looks if not one.clip.hr]
    return 1 - float(np.mean(counts)) / CLIP_LENGTH


@click.command()
@click.argument("videos", nargs=-1, type=_VIDEO)
@click.option("--bundle", "folder", type=click.Path(path_type=Path, exists=True), default=DEMO / "bundle")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def main(videos: tuple[Path, ...], folder: Path, rounds: int) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    frames = Clocks()
    films = videos or (DEMO / "ground.mp4", DEMO / "aerial.mp4")
    looks = [look for film in films for look in film_looks(film, frames)]
    bundle = Bundle.open(folder)
    space, dim = bundle.manifest.embedding_space, bundle.manifest.contract.embedding_dim
    with (
        Gallery.open(None, Space(space, dim)) as gallery,
        Embedder(bundle, device="cpu", target=PLAIN, threads=1) as embedder,
    ):
        enrol_people(gallery, dim)
        parts = time_parts(looks, bundle, gallery, embedder)
        loop, graphs = time_whole(looks, bundle, gallery, rounds)
        grown, peak = memory_growth(looks, bundle, gallery)
    heights = np.quantile([one.clip.height_px for one in looks], (0, 0.5, 1)).round()
    print(f"{cpu_name()}, one thread; {len(looks)} looks at persons of {heights} px (least, median, most)")
    frames.show("a frame")
    parts.show("a look, part by part")
    loop.show("a look, all but the graphs")
    graphs.show("a run of a graph, for comparison")
    for name, ms in loop.medians().items():
        print(f"{name}: {ms:.2f} ms, {100 * ms / FULL_TRACKLET_MS:.2f} % of {FULL_TRACKLET_MS:.0f} ms")
    print(f"crops of an LR look that repeat another of it: {100 * repeated_crops(looks):.1f} %")
    print(f"memory: {grown:+.0f} bytes an event, see tests/test_steady_state.py; peak {peak / 1e3:.0f} kB")


def enrol_people(gallery: Gallery, dim: int) -> None:
    """Random vectors, four a person."""
    vectors = np.random.default_rng(0).normal(size=(GALLERY_PEOPLE, 4, dim)).astype(np.float32)
    for number, rows in enumerate(vectors / np.linalg.norm(vectors, axis=2, keepdims=True)):
        gallery.enrol(f"person-{number}", rows, platform=None, source="drawn")


if __name__ == "__main__":
    main()
