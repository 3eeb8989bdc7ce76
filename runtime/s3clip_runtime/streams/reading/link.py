"""What a child and its parent say to each other, beside the frames: one JSON message a packet.

The parent sends one `Task` and closes its end when the child shall go. The child sends `Message`s.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

from s3clip_runtime.streams.reading.addresses import Kind
from s3clip_runtime.streams.reading.options import CLOSE_S, Decode
from s3clip_runtime.streams.reading.ring import Board, RingEnds

Phase = Literal["connecting", "connected", "down", "failed", "ended"]

_LONGEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Task:
    """What a child shall read. It travels over a socket: argv and environment are open to everyone.

    Attributes:
        kind, url: from `SourceSpec`.
        open_timeout_s, read_timeout_s, decode, folder_fps: from `ReadOptions`.
        index: of the first frame.
        last_s: no frame time may be at or before it; 0 at the start.
        ring: descriptors.
    """

    kind: Kind
    url: str = field(repr=False)
    open_timeout_s: float
    read_timeout_s: float
    decode: Decode
    folder_fps: float
    index: int
    last_s: float
    ring: RingEnds

    def packet(self) -> bytes:
        """For the socket."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def of(packet: bytes) -> Task:
        """The reverse of `packet`."""
        values = json.loads(packet)
        return Task(**{**values, "ring": RingEnds(**values["ring"])})


@dataclass(frozen=True, slots=True)
class Message:
    """News from a child.

    Attributes:
        phase: where it stands; None if that did not change.
        reason: why it is down or failed.
        wait_s: until the next attempt.
        live: set when connected: false for files, also when one is behind an HTTP address.
        fps: that a file states.
        warning: what an operator should know.
    """

    phase: Phase | None = None
    reason: str = ""
    wait_s: float = 0.0
    live: bool | None = None
    fps: float | None = None
    warning: str = ""

    def packet(self) -> bytes:
        """For the socket."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def of(packet: bytes) -> Message:
        """The reverse of `packet`."""
        return Message(**json.loads(packet))


class Closing(Exception):
    """The parent wants this child to go."""


class Link:
    """The child's end of the control socket.

    When the parent closes its end or dies, `closing` is set; should the child still be there `CLOSE_S` later
    (FFmpeg waits for a network), the process ends at once.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.task = Task.of(control.recv(_LONGEST_BYTES))
        self.board = Board(self.task.ring.memory)
        self.closing = threading.Event()
        threading.Thread(target=self._wait_for_the_end, name="parent watch", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send news. Nobody may be there to hear it."""
        try:
            self._control.send(message.packet())
        except OSError:
            self.closing.set()

    def alive(self, within_s: float) -> None:
        """Give a sign of life and promise the next one within this many seconds.

        Raises:
            Closing: the parent has gone or wants an end.
        """
        self.board["promise_s"] = time.monotonic() + within_s
        if self.closing.is_set():
            raise Closing

    def rest(self, seconds: float) -> None:
        """Wait, alive. Raises `Closing`."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self.alive(within_s=5.0)
            self.closing.wait(min(left_s, 0.5))
        self.alive(within_s=5.0)

    def _wait_for_the_end(self) -> None:
        while self._control.recv(1):
            pass
        self.closing.set()
        time.sleep(CLOSE_S)
        os._exit(0)
