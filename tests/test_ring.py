"""The ring of frames between two real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from s3clip_runtime.streams.reading.ring import SLOTS, RingReader, RingWriter, Shot

SIZES = ((48, 64), (120, 160), (31, 33))

WRITER = """
import json, sys, time
import numpy as np
from s3clip_runtime.streams.reading.ring import *
count, drop_oldest, sizes = json.loads(sys.argv[1])
ends = RingEnds(*json.loads(sys.argv[2]))
board = Board(ends.memory)
ring = RingWriter(ends, board, drop_oldest=drop_oldest, waiting=lambda: None)
for index in range(count):
    height, width = sizes[index // 50 % len(sizes)]
    ring.claim(height, width)[...] = index % 251
    ring.publish(height, width, Shot(index, 1, index / 10, 2.5, 7.0))
"""


@pytest.fixture
def ring() -> Iterator[RingReader]:
    before = len(os.listdir("/proc/self/fd"))
    reader = RingReader()
    yield reader
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before  # nothing leaks


def writer_for(reader: RingReader, *, drop_oldest: bool) -> RingWriter:
    return RingWriter(reader.ends, reader.board, drop_oldest=drop_oldest, waiting=lambda: None)


def put(writer: RingWriter, index: int, height: int = 4, width: int = 6) -> None:
    writer.claim(height, width)[...] = index
    writer.publish(height, width, Shot(index, 0, index / 10, 0.0, 0.0))


def start_writer(reader: RingReader, count: int, drop_oldest: bool) -> subprocess.Popen[bytes]:
    ends = reader.ends
    descriptors = [ends.memory, ends.ready_read, ends.ready_write, ends.free_read]
    sizes = [list(size) for size in SIZES]
    task = [f"[{count}, {str(drop_oldest).lower()}, {sizes}]", str(descriptors)]
    process = subprocess.Popen([sys.executable, "-c", WRITER, *task], pass_fds=descriptors)
    reader.child_has_started()
    return process


def read_all(reader: RingReader, pause_s: float = 0.0) -> list[int]:
    """Indices until the writer's end; every picture must be whole and of the right size."""
    seen = []
    while not reader.exhausted:
        taken = reader.take()
        if taken is None:
            time.sleep(1e-3)
            continue
        shot, picture = taken
        assert picture.shape[:2] == SIZES[shot.index // 50 % len(SIZES)]
        assert picture.min() == picture.max() == shot.index % 251, "torn"
        assert (shot.clock, shot.time_s, shot.ready_s, shot.decode_ms) == (1, shot.index / 10, 2.5, 7.0)
        seen.append(shot.index)
        time.sleep(pause_s)
    return seen


def test_files_lose_nothing_and_change_their_size(ring: RingReader) -> None:
    process = start_writer(ring, 400, drop_oldest=False)
    assert read_all(ring) == list(range(400))
    assert process.wait(10) == 0
    assert ring.board["overrun"] == 0


def test_live_frames_are_whole_in_order_and_every_lost_one_is_counted(ring: RingReader) -> None:
    process = start_writer(ring, 3000, drop_oldest=True)
    seen = read_all(ring, pause_s=0.0005)
    assert process.wait(10) == 0
    assert seen == sorted(set(seen))
    assert seen[-1] == 2999  # the newest is never the one that goes
    assert len(seen) < 3000
    assert len(seen) + ring.board["overrun"] == 3000


def test_a_writer_that_is_killed_leaves_only_whole_pictures(ring: RingReader) -> None:
    process = start_writer(ring, 10**9, drop_oldest=True)
    while ring.take() is None:
        time.sleep(1e-3)
    threading.Timer(0.1, process.kill).start()
    seen = read_all(ring)
    assert process.wait(10) < 0
    assert len(seen) > 1


def test_newest_frames_stay(ring: RingReader) -> None:
    writer = writer_for(ring, drop_oldest=True)
    for index in range(10):
        put(writer, index)
    assert ring.waits()
    kept = [taken[0].index for _ in range(SLOTS) if (taken := ring.take()) is not None]
    assert kept == list(range(10 - SLOTS, 10))
    assert ring.take() is None
    assert not ring.waits()
    assert ring.board["overrun"] == 10 - SLOTS
    ring.child_has_started()


def test_a_taken_picture_is_its_own_memory(ring: RingReader) -> None:
    writer = writer_for(ring, drop_oldest=True)
    put(writer, 7)
    taken = ring.take()
    assert taken is not None
    for index in range(SLOTS + 1):
        put(writer, index)
    np.testing.assert_array_equal(taken[1], np.full((4, 6, 3), 7))
    assert ring.discard() == SLOTS
    ring.child_has_started()


def test_an_absurd_size_is_refused(ring: RingReader) -> None:
    writer = writer_for(ring, drop_oldest=True)
    with pytest.raises(ValueError, match="20000 x 20000"):
        writer.claim(20000, 20000)
    ring.child_has_started()


def test_unknown_numbers_of_the_board(ring: RingReader) -> None:
    assert ring.board.known("lag_s") is None
    ring.board["lag_s"] = 0.25
    assert ring.board.known("lag_s") == 0.25
    ring.board["lag_s"] = None
    assert ring.board.known("lag_s") is None
    ring.child_has_started()
