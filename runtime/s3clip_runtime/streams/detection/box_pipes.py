"""Where the bytes of JSON lines come from: standard input or a connected socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Protocol

TICK_S = 0.25
"""How often readers look whether they shall end."""

_CHUNK = 1 << 16


class Pipe(Protocol):
    """Where bytes come from."""

    def read(self) -> bytes | None:
        """Some bytes, none at the end, None if nothing came within `TICK_S`. Raises OSError."""

    def wake(self) -> None:
        """End a `read` of another thread at once, if that can be done."""

    def close(self) -> None:
        """End it."""


class StdinPipe:
    """`Pipe` of standard input."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> bytes | None:
        """See `Pipe.read`."""
        if not select.select([self._descriptor], [], [], TICK_S)[0]:
            return None
        return os.read(self._descriptor, _CHUNK)

    def wake(self) -> None:
        """It looks by itself every `TICK_S`."""

    def close(self) -> None:
        """It belongs to the process."""


class SocketPipe:
    """`Pipe` of a connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.settimeout(TICK_S)

    def read(self) -> bytes | None:
        """See `Pipe.read`."""
        try:
            return self._socket.recv(_CHUNK)
        except TimeoutError:
            return None

    def wake(self) -> None:
        """See `Pipe.wake`."""
        with contextlib.suppress(OSError):  # it may be closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Pipe.close`."""
        self._socket.close()
