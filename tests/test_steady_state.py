"""Day after day: what the looks of a run leave in memory, and how many threads compute."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detector_graphs import yolox_file
from street import Street
from test_batcher import person
from tiny_bundle import DIM, SPACE

from s3clip_runtime.cli.threads import plan_threads
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Space
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.streams.events import EventMaker, Sighting
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.outputs.json_lines import JsonLines
from s3clip_runtime.streams.outputs.outputs import Outputs
from s3clip_runtime.streams.recognition import latency
from s3clip_runtime.streams.recognition.batcher import Batcher
from s3clip_runtime.streams.status import OutputStatus

CHUNK = 8
KEPT = 64
"""Looks whose latencies are kept here, instead of 1024: a run's longest memory is full sooner."""

WARM_UP, EVENTS = 480, 480
GROWTH_BYTES = 100.0
"""An event's bound. Python keeps some freed objects for the next ones, 30 kB in all after some 1,000 events,
and none later. What could be kept of an event is larger: its row of latencies 250 bytes, its smallest
crop 600, its line 900."""

PEAK_BYTES = 600_000
"""Above the rest while events are made: the arrays of the graphs and a chunk's super-resolved crops."""


class Counted:
    """Lets the test wait for events."""

    def __init__(self) -> None:
        self.count = threading.Semaphore(0)

    def sighting(self, sighting: Sighting) -> None:
        self.count.release()

    def status(self) -> OutputStatus:
        return OutputStatus("counted", 0)

    def close(self) -> None:
        """Nothing is open."""


def pass_through(batcher: Batcher, counted: Counted, looks: list[Look], events: int) -> None:
    for number in range(events):
        batcher.submit(looks[number % len(looks)])
        if number % CHUNK == CHUNK - 1:
            for _ in range(CHUNK):
                assert counted.count.acquire(timeout=20)


def test_an_event_leaves_nothing_in_memory(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through batcher, graphs, gallery and file; LR and HR, crops of all sizes."""
    monkeypatch.setattr(latency, "KEPT", KEPT)
    looks = [person(track, height, live=False) for track, height in enumerate((20, 40, 55, 90, 130, 200))]
    counted = Counted()
    outputs = Outputs({"events": JsonLines(tmp_path / "events.jsonl"), "counted": counted}, [])
    maker = EventMaker("run", "tiny", SPACE, with_embedding=True, explain=True)
    with (
        Gallery.open(None, Space(SPACE, DIM)) as gallery,
        Embedder(Bundle.open(bundle_folder), device="cpu", threads=1) as embedder,
    ):
        for number, vector in enumerate(np.eye(DIM, dtype=np.float32)):
            gallery.enrol(f"person {number}", vector[None], platform=None, source="test")
        recogniser = Recogniser(gallery, Rules(threshold=0.9))
        batcher = Batcher(
            embedder, recogniser, maker, outputs.sighting, enhances=lambda height: True, latency_ms=20
        )
        batcher.start()
        tracemalloc.start()
        try:
            pass_through(batcher, counted, looks, WARM_UP)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            pass_through(batcher, counted, looks, EVENTS)
            _, peak = tracemalloc.get_traced_memory()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            batcher.finish()
            outputs.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == WARM_UP + EVENTS
    assert (after - before) / EVENTS < GROWTH_BYTES
    assert peak - before < PEAK_BYTES


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16])
def test_networks_together_ask_for_no_more_cpus_than_there_are(cpus: int) -> None:
    alone, both = (plan_threads(None, network=network, cpus=cpus) for network in (False, True))
    assert alone.embedder == cpus
    assert 1 <= both.detector <= both.embedder
    assert both.embedder + both.detector == max(cpus, 2)
    assert plan_threads(3, network=True, cpus=cpus) == plan_threads(3, network=False, cpus=cpus)
    assert plan_threads(3, network=True, cpus=cpus).embedder == 3


COUNT_THREADS = """
import json, os, sys, threading
from pathlib import Path
from s3clip_runtime.cli import run

native, readers = [], []
def count():
    while not done.wait(0.02):
        python = threading.active_count()
        native.append(len(os.listdir("/proc/self/task")) - python)
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                readers.append(len(os.listdir(f"/proc/{child}/task")))

done = threading.Event()
counter = threading.Thread(target=count)
counter.start()
try:
    run.main(sys.argv[1:], standalone_mode=False)
finally:
    done.set()
    counter.join()
    print(json.dumps([native, readers]))
"""


ONNXRUNTIME_THREADS = """
import os, onnxruntime
print([len(os.listdir("/proc/self/task")) - 1])
"""
"""Its import starts a thread that belongs to no pool."""


def counted(program: str, arguments: list[str], environment: dict[str, str]) -> list[Any]:
    """What a program prints last."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
@pytest.mark.parametrize("detector", ["background", "network"])
def test_a_run_has_the_threads_of_its_plan_and_no_others(
    street: Street, bundle_folder: Path, tmp_path: Path, detector: str
) -> None:
    """Threads that are not Python's are those of pools: ONNX Runtime's, and OpenCV's, OpenBLAS' and FFmpeg's
    if somebody lets them."""
    if detector == "network":
        detector = str(yolox_file(tmp_path / "net.onnx", (160, 160)))
    command = [f"gate={street.video}@ground", "--bundle", str(bundle_folder), "--detector", detector]
    command += ["--events", str(tmp_path / "events.jsonl"), "--device", "cpu"]
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    free = {name: value for name, value in os.environ.items() if name not in limits}
    native, readers = counted(COUNT_THREADS, command, free)
    (brought,) = counted(ONNXRUNTIME_THREADS, [], {**free, "OPENBLAS_NUM_THREADS": "1"})
    plan = plan_threads(None, network=detector != "background", cpus=usable_cpus())
    pools = 3 * (plan.embedder - 1) + (plan.detector - 1 if detector != "background" else 0)
    # A Python thread is in /proc for a moment longer than in Python's own list.
    assert np.quantile(native, 0.9) == pools + brought
    assert max(readers) == 2  # it decodes in one thread and hears its parent in another
