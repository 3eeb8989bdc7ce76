"""The newest frames of one camera in memory that its child and the parent share.

Each slot belongs to one side at a time, and who may use it travels through two pipes: the child writes a
record into `ready` when a slot holds a frame, the parent writes the slot's number into `free` when it has
copied it. The child of a live stream that finds no free slot takes the oldest record back out of `ready`
itself: the kernel gives every record to exactly one of the two. So no picture is ever torn, nothing is
locked, a dead side can block nobody, and the pipes order the memory accesses on every processor.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.streams.frames import Clock

SLOTS = 4
"""Frames that wait: two bridge the jitter of a network, one is being written, one being copied."""

MAX_PICTURE_BYTES = 3 * 8192 * 8192
"""A larger picture is refused: a damaged header must not take the memory of the machine."""

FIELDS = (
    "promise_s",  # monotonic time until which the child will have given its next sign of life
    "newest_s",  # monotonic time of the newest decoded picture of this connection; 0 before the first
    "index",  # of the next frame
    "last_s",  # time_s of the newest frame
    "received",
    "overrun",
    "corrupt",
    "undecodable",
    "connections",
    "fps",
    "lag_s",
    "skew_s",
    "camera_clock",  # 1: times are the camera's own, 0: of arrival
    "height",
    "width",
    "faults",  # bits in the order of `FAULTS`
)
"""What the child tells by numbers: float64 each; NaN for unknown."""

CLOCKS: tuple[Clock, ...] = ("stream", "camera", "arrival")

_BOARD_BYTES = 4096
_RECORD = struct.Struct("=qqqqqqddd")  # slot, offset, height, width, index, clock, time_s, ready_s, decode_ms
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame in the ring, without its picture. `clock` is an index into CLOCKS."""

    index: int
    clock: int
    time_s: float
    ready_s: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class RingEnds:
    """Descriptors that the child needs."""

    memory: int
    ready_read: int
    ready_write: int
    free_read: int


class Board:
    """Numbers that the child writes and the parent reads; each is stored whole by one machine instruction."""

    def __init__(self, memory: int) -> None:
        self._values = np.frombuffer(mmap.mmap(memory, _BOARD_BYTES), np.float64, len(FIELDS))

    def __getitem__(self, name: str) -> float:
        return float(self._values[FIELDS.index(name)])

    def __setitem__(self, name: str, value: float | None) -> None:
        self._values[FIELDS.index(name)] = np.nan if value is None else value

    def known(self, name: str) -> float | None:
        """The number, or None."""
        value = self[name]
        return None if np.isnan(value) else value

    def add(self, name: str) -> None:
        """Count one more."""
        self._values[FIELDS.index(name)] += 1


class RingReader:
    """The parent's side; it makes the ring. Close it, or lose descriptors."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self._memory = os.memfd_create("s3clip-ring")
            undo.callback(os.close, self._memory)
            os.ftruncate(self._memory, _BOARD_BYTES)
            self.board = Board(self._memory)
            for name in ("fps", "lag_s", "skew_s"):
                self.board[name] = None
            self.ready, ready_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, self.ready)
            undo.callback(os.close, ready_write)
            free_read, self._free = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.pop_all()
        self.ends = RingEnds(self._memory, self.ready, ready_write, free_read)
        self._map = mmap.mmap(self._memory, _BOARD_BYTES)
        self.exhausted = False

    def child_has_started(self) -> None:
        """Close the ends that only the child uses, so that its death shows."""
        os.close(self.ends.ready_write)
        os.close(self.ends.free_read)

    def take(self) -> tuple[Shot, NDArray[np.uint8]] | None:
        """The oldest frame, its picture copied out as uint8 (h, w, 3) RGB; None when none waits.

        `exhausted` is set when none will come: the child is gone and every frame was taken.
        """
        try:
            record = os.read(self.ready, _RECORD.size)
        except BlockingIOError:
            return None
        if not record:
            self.exhausted = True
            return None
        slot, offset, height, width, *rest = _RECORD.unpack(record)
        size = height * width * 3
        if offset + size > len(self._map):
            self._map = mmap.mmap(self._memory, os.fstat(self._memory).st_size)
        picture = np.frombuffer(self._map, np.uint8, size, offset).reshape(height, width, 3).copy()
        with contextlib.suppress(BrokenPipeError):  # a child that is gone needs no slot
            os.write(self._free, bytes([slot]))
        return Shot(*rest), picture

    def waits(self) -> bool:
        """Whether `take` would give a frame."""
        ready = select.poll()
        ready.register(self.ready, select.POLLIN)
        return any(event & select.POLLIN for _, event in ready.poll(0))

    def discard(self) -> int:
        """Throw the waiting frames away; how many they were."""
        with contextlib.suppress(BlockingIOError):
            return len(os.read(self.ready, _RECORD.size * SLOTS)) // _RECORD.size
        return 0

    def close(self) -> None:
        """Give the memory back. The child must be gone or never have started."""
        del self.board  # its mapping holds a descriptor too
        self._map.close()
        for descriptor in (self._memory, self.ready, self._free):
            os.close(descriptor)


class RingWriter:
    """The child's side.

    Args:
        ends: from the reader.
        board: of the same ring.
        drop_oldest: take the oldest frame back when no slot is free (live); else wait for one (files).
        waiting: called at least twice a second while `claim` waits; raises to end the wait.
    """

    def __init__(
        self, ends: RingEnds, board: Board, *, drop_oldest: bool, waiting: Callable[[], None]
    ) -> None:
        self._ends = ends
        self._board = board
        self._drop_oldest = drop_oldest
        self._waiting = waiting
        self._map = mmap.mmap(ends.memory, _BOARD_BYTES)
        self._end = _BOARD_BYTES
        self._mine = list(range(SLOTS))
        self._places = [(0, 0)] * SLOTS  # offset and bytes of each slot

    def never_drop(self) -> None:
        """From now on wait for the reader."""
        self._drop_oldest = False

    def claim(self, height: int, width: int) -> NDArray[np.uint8]:
        """Memory for one picture, uint8 (height, width, 3). The same until `publish`.

        Raises:
            ValueError: the picture is larger than `MAX_PICTURE_BYTES`.
        """
        size = height * width * 3
        if not 0 < size <= MAX_PICTURE_BYTES:
            raise ValueError(f"a picture of {width} x {height} pixels is refused")
        while not self._mine:
            self._find_slot()
        slot = self._mine[-1]
        if self._places[slot][1] < size:
            self._grow(slot, size)
        return np.frombuffer(self._map, np.uint8, size, self._places[slot][0]).reshape(height, width, 3)

    def publish(self, height: int, width: int, shot: Shot) -> None:
        """Hand the claimed picture to the reader."""
        slot = self._mine.pop()
        offset = self._places[slot][0]
        record = _RECORD.pack(
            slot, offset, height, width, shot.index, shot.clock, shot.time_s, shot.ready_s, shot.decode_ms
        )
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: the child ends by itself
            os.write(self._ends.ready_write, record)

    def _find_slot(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._mine.extend(os.read(self._ends.free_read, SLOTS))
        if self._mine:
            return
        if self._drop_oldest:
            with contextlib.suppress(BlockingIOError):
                self._mine.append(_RECORD.unpack(os.read(self._ends.ready_read, _RECORD.size))[0])
                self._board.add("overrun")
                return
            time.sleep(1e-3)  # the reader has just taken it
        else:
            select.select([self._ends.free_read], [], [], 0.5)
        self._waiting()

    def _grow(self, slot: int, size: int) -> None:
        """Give the slot a new place behind all others; its old one lies idle, and sizes rarely change."""
        size = -(-size // _PAGE) * _PAGE
        self._places[slot] = (self._end, size)
        self._end += size
        os.ftruncate(self._ends.memory, self._end)
        self._map = mmap.mmap(self._ends.memory, self._end)
