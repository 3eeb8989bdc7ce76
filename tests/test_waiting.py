"""The queue before the embedder: what is shed, what replaces what, and that it never grows."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
from test_events import look

from s3clip_runtime.streams.looks import Look, Stage
from s3clip_runtime.streams.recognition.waiting import WaitingLooks


def of(camera: str, track: int, stage: Stage = "final", *, live: bool = True) -> Look:
    given = look(stage, "growing" if stage != "final" else "gone")
    return replace(given, tracklet=replace(given.tracklet, camera=camera, track=track), live=live)


def taken(queue: WaitingLooks, count: int = 100) -> list[tuple[str, int, Stage]]:
    queue.close()
    looks = [one.look for one in queue.take(count, 0.0)]
    return [(one.tracklet.camera, one.tracklet.track, one.stage) for one in looks]


def test_refinements_go_before_first_looks_and_those_before_finals() -> None:
    queue = WaitingLooks(limit=3)
    for track, stage in enumerate(("final", "refined", "first", "final", "final", "final")):
        queue.put(of("a", track, stage))  # type: ignore[arg-type]
    assert queue.shed() == {("a", "refined"): 1, ("a", "first"): 1, ("a", "final"): 1}
    assert [one.look.tracklet.track for one in queue.overdue()] == [0]  # the oldest final: told, not embedded
    assert queue.overdue() == []
    assert taken(queue) == [("a", 3, "final"), ("a", 4, "final"), ("a", 5, "final")]


def test_the_crowded_camera_sheds_its_own() -> None:
    """Sixteen cameras, one of which sends a hundred times as much: the others lose nothing."""
    rng = np.random.default_rng(0)
    queue, sent = WaitingLooks(limit=32), Counter[str]()
    order = [f"quiet-{i}" for i in range(15)] + ["crowd"] * 1500
    for track, position in enumerate(rng.permutation(len(order))):
        sent[order[position]] += 1
        queue.put(of(order[position], track))
    assert {camera for camera, _ in queue.shed()} == {"crowd"}
    left = Counter(camera for camera, _, _ in taken(queue))
    assert left == Counter({**{f"quiet-{i}": 1 for i in range(15)}, "crowd": 32 - 15})


def test_files_are_never_shed() -> None:
    queue = WaitingLooks(limit=2)
    for track in range(5):
        queue.put(of("file", track, live=False))
    queue.put(of("live", 0))
    assert queue.full
    assert queue.shed() == {("live", "final"): 1}
    assert len(taken(queue)) == 5


def test_a_newer_look_takes_the_place_and_the_age_of_an_older_one() -> None:
    queue = WaitingLooks()
    queue.put(of("a", 1, "first"))
    time.sleep(0.002)
    queue.put(of("a", 2, "final"))
    queue.put(of("a", 1, "refined"))  # nobody has seen the first one: this is the first now
    queue.put(of("a", 3, "refined"))
    queue.put(of("a", 3, "final"))
    assert taken(queue) == [("a", 1, "first"), ("a", 2, "final"), ("a", 3, "final")]
    assert queue.shed() == {}


def test_looks_at_a_file_do_not_replace_each_other() -> None:
    queue = WaitingLooks()
    queue.put(of("file", 1, "first", live=False))
    queue.put(of("file", 1, "final", live=False))
    assert taken(queue) == [("file", 1, "first"), ("file", 1, "final")]


def test_refinements_are_taken_last() -> None:
    queue = WaitingLooks()
    queue.put(of("a", 1, "refined"))
    queue.put(of("a", 2, "first"))
    queue.put(of("a", 3, "final"))
    assert [track for _, track, _ in taken(queue, 2)] == [2, 3]
    assert [track for _, track, _ in taken(queue)] == [1]


def test_a_lone_look_waits_no_longer_than_the_window() -> None:
    queue = WaitingLooks()
    began_s = time.monotonic()
    queue.put(of("a", 1))
    assert len(queue.take(8, 0.15)) == 1
    assert 0.14 < time.monotonic() - began_s < 1.0


def test_a_full_batch_does_not_wait() -> None:
    queue = WaitingLooks()

    def fill() -> None:
        for track in range(8):
            queue.put(of("a", track))

    threading.Timer(0.05, fill).start()
    began_s = time.monotonic()
    while not (batch := queue.take(8, 5.0)):
        assert time.monotonic() - began_s < 5
    assert len(batch) == 8
    assert time.monotonic() - began_s < 2.5


def test_nothing_to_do_is_an_empty_batch_after_a_tick() -> None:
    began_s = time.monotonic()
    assert WaitingLooks().take(8, 60.0) == []
    assert time.monotonic() - began_s < 2
