"""A source whose frames a child process reads: the parent's part."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

from s3clip_runtime.errors import SourceError
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.reading.addresses import Kind, SourceSpec, refusal, scrub
from s3clip_runtime.streams.reading.backoff import Backoff
from s3clip_runtime.streams.reading.faults import faults_of_bits
from s3clip_runtime.streams.reading.link import Message, Task
from s3clip_runtime.streams.reading.options import TICK_S, ReadOptions
from s3clip_runtime.streams.reading.process import ChildProcess
from s3clip_runtime.streams.reading.ring import CLOCKS, Board, RingEnds, RingReader
from s3clip_runtime.streams.reading.standing import Standing
from s3clip_runtime.streams.status import DropCause, SourceStatus, State

_log = logging.getLogger(__name__)

_COUNTS = ("received", "overrun", "corrupt", "undecodable", "connections")


class ChildSource:
    """One camera, file or folder. A thread watches its child and replaces one that hangs or crashes.

    Frames and changes of state make `fileno` readable. `take` may be called from any one thread.
    """

    def __init__(self, spec: SourceSpec, kind: Kind, options: ReadOptions) -> None:
        self.spec = spec
        self._kind = kind
        self._options = options
        self._live = kind not in ("file", "folder")
        self._stated_fps: float | None = None
        self._lock = threading.Lock()  # over the ring and the counts
        self._ring: RingReader | None = None
        self._counts: dict[str, float] = dict.fromkeys((*_COUNTS, "restart"), 0)
        self._restarts = 0
        self._next_index, self._last_s = 0, 0.0
        self._standing = Standing(spec)
        self._finished = False
        self._error: SourceError | None = None
        self._closing = threading.Event()
        self._changed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._changed, select.EPOLLIN)
        self._thread = threading.Thread(target=self._watch_for_ever, name=f"camera {spec.name}", daemon=True)
        self._thread.start()

    @property
    def live(self) -> bool:
        """Frames arrive by the clock. An HTTP address may turn out to be a file once it is open."""
        return self._live

    @property
    def fps(self) -> float | None:
        """Frames a second as stated by a file, as measured for a stream; None while unknown."""
        if not self._live:
            return self._stated_fps
        with self._lock:
            measured = self._ring.board.known("fps") if self._ring else None
        return measured if self._standing.state is State.LIVE else None

    @property
    def ended(self) -> bool:
        """Every frame was handed out and none will come."""
        with self._lock:
            return self._finished and (self._ring is None or not self._ring.waits())

    @property
    def error(self) -> SourceError | None:
        """Why it could not be read (to its end); set when `ended` is."""
        return self._error

    def fileno(self) -> int:
        """Readable when a frame waits or the state changed, until `take` finds nothing. -1 when closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def take(self) -> Frame | None:
        """The oldest frame that waits, in memory of its own; None when there is none. Never blocks."""
        with self._lock:
            ring = self._ring
            taken = ring.take() if ring and not ring.exhausted else None
            if taken is None:
                if self._changed >= 0:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._changed)
                if ring and ring.exhausted:
                    self._unregister(ring)
                return None
        shot, image = taken
        return Frame(
            self.spec.name, shot.index, shot.time_s, image, CLOCKS[shot.clock], shot.ready_s, shot.decode_ms
        )

    def status(self) -> SourceStatus:
        """How it is doing now."""
        with self._lock:
            board = self._ring.board if self._ring else None
            counts = {
                name: int(value + (board[name] if board and name in _COUNTS else 0))
                for name, value in self._counts.items()
            }
            base = SourceStatus(
                self._standing.state,
                self._standing.since_unix_s,
                self._standing.reason,
                clock="stream" if not self._live else "arrival",
                received=counts["received"],
                drops=_drops(counts),
                reconnects=max(counts["connections"] - 1, 0),
                restarts=self._restarts,
            )
            return base if board is None else self._measured(base, board)

    def close(self) -> None:
        """End the child; at most about 2 s, also when it hangs. Calling it again does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join(2.5)
        if self._thread.is_alive():  # the kernel holds the child, e.g. in a driver
            _log.warning("camera %s: its reader cannot be ended; it is left behind", self.spec.name)
            return
        with self._lock:
            self._finished = True
            self._drop_ring()
            self._epoll.close()
            os.close(self._changed)
            os.close(self._wake)
            self._changed = -1

    def _measured(self, base: SourceStatus, board: Board) -> SourceStatus:
        height, width = int(board["height"]), int(board["width"])
        now = self._standing.state is State.LIVE and self._live
        return replace(
            base,
            fps=(board.known("fps") if now else None) if self._live else self._stated_fps,
            lag_s=board.known("lag_s") if now else None,
            clock="camera" if self._live and board["camera_clock"] else base.clock,
            clock_skew_s=board.known("skew_s") if self._live else None,
            size=(height, width) if height else None,
            faults=faults_of_bits(int(board["faults"])) if now else (),
        )

    def _watch_for_ever(self) -> None:
        backoff = Backoff()
        while not self._closing.is_set():
            began_s = time.monotonic()
            reason = self._live_one_child()
            if self._closing.is_set() or self._finished:
                return
            if not self._live:
                self._finish(f"{reason}; the file may be damaged, convert it")
                return
            wait_s = backoff.next_s(time.monotonic() - began_s)
            self._standing.told("down", f"{reason}; a new reader starts in {wait_s:.1f} s")
            self._judge()
            self._closing.wait(wait_s)

    def _live_one_child(self) -> str:
        """Start a child and watch it to its end; why it ended."""
        try:
            child = ChildProcess(self._task)
        except OSError as error:
            return f"no reader can be started ({error.strerror})"
        with self._lock:
            self._drop_ring()
            self._ring = child.ring
            self._epoll.register(child.ring.ready, select.EPOLLIN)
        reason = self._watch(child)
        self._next_index, self._last_s = int(child.ring.board["index"]), child.ring.board["last_s"]
        if not self._finished and not self._closing.is_set():
            self._restarts += 1
        return reason

    def _watch(self, child: ChildProcess) -> str:
        while True:
            child.wait(TICK_S, also=self._wake)
            for message in child.messages():
                self._hear(message)
            self._log_output(child)
            self._judge()
            if self._closing.is_set() or self._finished:
                if not child.end():
                    self._left_behind()
                return ""
            if (code := child.exit_code()) is not None:
                child.kill()
                self._log_output(child)
                return self._why_gone(child, code)
            if child.silent():
                if not child.kill():
                    self._left_behind()
                return "the reader hung and was ended"

    def _task(self, ends: RingEnds) -> Task:
        options = self._options
        url = os.path.abspath(self.spec.url) if self._kind in ("file", "folder") else self.spec.url
        return Task(
            kind=self._kind,
            url=url,
            open_timeout_s=options.open_timeout_s,
            read_timeout_s=options.read_timeout_s,
            decode=options.decode,
            folder_fps=options.folder_fps,
            index=self._next_index,
            last_s=self._last_s,
            ring=ends,
        )

    def _hear(self, message: Message) -> None:
        if message.warning:
            _log.warning("camera %s: %s", self.spec.name, scrub(message.warning, self.spec.url))
        if message.live is not None:
            self._live, self._stated_fps = message.live, message.fps
        if message.phase is None:
            return
        if message.phase == "ended" or (message.phase == "failed" and not self._live):
            self._finish(message.reason)
            return
        next_try = f"; next try in {message.wait_s:.1f} s" if message.wait_s else ""
        self._standing.told(message.phase, message.reason + next_try)

    def _finish(self, problem: str) -> None:
        if problem:
            self._error = refusal(self.spec, problem)
        self._standing.told("failed" if problem else "ended", problem)
        self._finished = True
        self._judge()
        os.eventfd_write(self._changed, 1)

    def _judge(self) -> None:
        newest_s = self._ring.board["newest_s"] if self._ring else 0.0
        if self._standing.judge(newest_s, self._live):
            os.eventfd_write(self._changed, 1)

    def _log_output(self, child: ChildProcess) -> None:
        for line in child.lines():
            _log.debug("camera %s: its reader says: %s", self.spec.name, scrub(line, self.spec.url))

    def _why_gone(self, child: ChildProcess, code: int) -> str:
        said = f": {scrub(child.last_line, self.spec.url)}" if child.last_line else ""
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the reader crashed ({how}{said})"

    def _left_behind(self) -> None:
        _log.warning("camera %s: the kernel does not let its reader end", self.spec.name)

    def _drop_ring(self) -> None:
        """Count what the old ring holds, and give it back."""
        if self._ring is None:
            return
        for name in _COUNTS:
            self._counts[name] += self._ring.board[name]
        self._counts["restart"] += 0 if self._closing.is_set() else self._ring.discard()
        self._unregister(self._ring)
        self._ring.close()
        self._ring = None

    def _unregister(self, ring: RingReader) -> None:
        with contextlib.suppress(FileNotFoundError):  # already done
            self._epoll.unregister(ring.ready)


def _drops(counts: Mapping[str, int]) -> dict[DropCause, int]:
    return {cause: counts[cause] for cause in cast("tuple[DropCause, ...]", get_args(DropCause))}
