"""Finding and recognising persons side by side: does either slow the other more than sharing the CPUs must?

    python -m benchmarks.side_by_side DETECTOR.onnx [--bundle DIR] [--rate 10]

One thread finds persons at a camera's rate, one embeds without pause: alone, then both, each with the threads
of a run's plan and with all CPUs. "cores" is the CPU time of the process over the wall time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.cli.threads import ThreadPlan, one_thread_for_pictures, plan_threads
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.spec import CLIP_LENGTH
from s3clip_runtime.streams.detection.choose import Choice, open_detectors
from s3clip_runtime.streams.frames import Frame

DEMO_BUNDLE = Path(__file__).parents[1] / "runtime" / "s3clip_runtime" / "demo" / "bundle"
FRAME = (360, 640)
CROP = (40, 18)
SECONDS = 4.0
Work = tuple[Callable[[], object], float]
"""What is called, and the least seconds from call to call."""

_PATH = click.Path(path_type=Path, exists=True)


def repeat(work: Callable[[], object], every_s: float, took_ms: list[float], stop: threading.Event) -> None:
    """Call again and again, at most once in `every_s`."""
    while not stop.is_set():
        began_s = time.perf_counter()
        work()
        spent_s = time.perf_counter() - began_s
        took_ms.append(1e3 * spent_s)
        stop.wait(max(every_s - spent_s, 0))


def measure(works: list[Work]) -> tuple[list[tuple[float, float]], float]:
    """((calls a second, median milliseconds) of each work, cores used), all works at once."""
    stop, took = threading.Event(), [list[float]() for _ in works]
    threads = [
        threading.Thread(target=repeat, args=(work, every_s, rows, stop))
        for (work, every_s), rows in zip(works, took, strict=True)
    ]
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return [(len(rows) / wall_s, float(np.median(rows))) for rows in took], cpu_s / wall_s


def compare(detector_file: Path, bundle: Bundle, plan: ThreadPlan, rate: float) -> None:
    """A line for each of: detector alone, embedder alone, both."""
    rng = np.random.default_rng(0)
    frame = Frame("gate", 0, 0.0, rng.integers(0, 256, (*FRAME, 3), np.uint8))
    clip = Clip(tuple(rng.integers(0, 256, (CLIP_LENGTH, *CROP, 3), np.uint8)), 0, hr=False)
    opened = open_detectors({"gate": Choice(str(detector_file))}, device="cpu", threads=plan.detector)
    with closing(opened) as detectors, Embedder(bundle, device="cpu", threads=plan.embedder) as embedder:
        find: Work = (lambda: detectors.of_camera("gate").detect([frame])), 1 / rate
        embed: Work = (lambda: embedder.embed([clip])), 0.0
        find[0](), embed[0]()
        for name, works in (("find", [find]), ("embed", [embed]), ("both", [find, embed])):
            rows, cores = measure(works)
            told = "   ".join(f"{each:6.1f}/s {median:7.1f} ms" for each, median in rows)
            print(f"{plan.detector} + {plan.embedder} threads  {name:<6} {told:<44} {cores:.2f} cores")


@click.command()
@click.argument("detector", type=_PATH)
@click.option("--bundle", type=_PATH, default=DEMO_BUNDLE)
@click.option("--rate", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Frames a second.")
def main(detector: Path, bundle: Path, rate: float) -> None:
    """Measure and print."""
    one_thread_for_pictures()
    cpus = usable_cpus()
    print(cpu_name())
    for plan in (plan_threads(None, network=True), ThreadPlan(cpus, cpus)):
        compare(detector, Bundle.open(bundle), plan, rate)


if __name__ == "__main__":
    main()
