"""The parent's side of one child process: start it, hear it, end it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from s3clip_runtime.streams.reading.link import Message, Task
from s3clip_runtime.streams.reading.options import CLOSE_S, START_S
from s3clip_runtime.streams.reading.ring import RingEnds, RingReader

_KILL_S = 1.0
_LONGEST_LINE = 2000
"""Characters of one line of foreign output that are kept."""


class ChildProcess:
    """One child with its ring. `end` it, then close the ring when its frames are taken.

    Args:
        task: makes the task for the ring's descriptors.

    Raises:
        OSError: no process, memory or descriptor is left.
    """

    def __init__(self, task: Callable[[RingEnds], Task]) -> None:
        with contextlib.ExitStack() as undo:
            self.ring = RingReader()
            undo.callback(self.ring.close)
            undo.callback(self.ring.child_has_started)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._control.close)
            undo.callback(theirs.close)
            ends = self.ring.ends
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "s3clip_runtime.streams.reading.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(
                    theirs.fileno(),
                    ends.memory,
                    ends.ready_read,
                    ends.ready_write,
                    ends.free_read,
                ),
                process_group=0,  # Ctrl-C goes to the parent alone
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # it decodes alone
            )
            undo.pop_all()
        theirs.close()
        self.ring.child_has_started()
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._control.setblocking(False)
        self._line = ""
        self.last_line = ""
        self.started_s = time.monotonic()
        self.ring.board["promise_s"] = self.started_s + START_S
        with contextlib.suppress(OSError):  # it is gone already: its exit tells
            self._control.send(task(ends).packet())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait(self, seconds: float, also: int) -> None:
        """Until there is news, the child ends, or descriptor `also` is readable."""
        poller = select.poll()
        for descriptor in (self._control.fileno(), self._output.fileno(), also):
            if descriptor >= 0:
                poller.register(descriptor, select.POLLIN)
        poller.poll(seconds * 1000)

    def messages(self) -> list[Message]:
        """What the child has said since the last call. At its end the control socket is closed."""
        heard: list[Message] = []
        while self._control.fileno() >= 0:
            try:
                packet = self._control.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # reset: it died with unread words
                packet = b""
            if not packet:
                self._control.close()
                break
            heard.append(Message.of(packet))
        return heard

    def lines(self) -> list[str]:
        """What the child, FFmpeg and GStreamer have printed since the last call; may hold secrets."""
        if self._output.closed:
            return []
        data = self._output.read(1 << 16)  # None: nothing now
        if data == b"":
            self._output.close()
        text = self._line + (data or b"").decode(errors="replace")
        *lines, rest = text.split("\n")
        self._line = rest[:_LONGEST_LINE]
        if lines and lines[-1].strip():
            self.last_line = lines[-1][:_LONGEST_LINE]
        return [line[:_LONGEST_LINE] for line in lines if line.strip()]

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it. Waits for a child that said goodbye."""
        if self._control.fileno() < 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(CLOSE_S)
        return self._process.poll()

    def silent(self) -> bool:
        """It broke its promise to give a sign of life."""
        return time.monotonic() > self.ring.board["promise_s"]

    def end(self) -> bool:
        """Let it say goodbye to its camera, then kill it; whether it is gone."""
        self._control.close()
        try:
            self._process.wait(CLOSE_S + 0.1)
        except subprocess.TimeoutExpired:
            return self.kill()
        return self._gone()

    def kill(self) -> bool:
        """End it at once; whether it is gone."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_S)
            return self._gone()
        return False

    def _gone(self) -> bool:
        self._control.close()
        if not self._output.closed:
            self.lines()
            self._output.close()
        return True
