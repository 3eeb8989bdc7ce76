"""The open connections of the page: never more than a fixed number, and the slow ones go first."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

MAX_HEAD = 16384
"""Bytes of a request line with all headers. Browsers send below 2 KB."""

HEAD_WITHIN_S = 10.0
"""A client that has not sent its request by then is cut off, however steadily it trickles."""


class TooLarge(Exception):
    """The head of a request is longer than `MAX_HEAD`."""


class Connections:
    """Counts connections; when all places are taken, a new one takes that of the one that waits longest.

    Only clients that have not yet sent their request can lose their place, so a hundred that send nothing
    cannot keep out one that asks.

    Args:
        limit: places.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, None] = {}  # oldest first
        self._answered: set[socket.socket] = set()

    def admit(self, client: socket.socket) -> bool:
        """Give a place to a new connection; False if all are taken by clients that are being answered."""
        with self._lock:
            if len(self._waiting) + len(self._answered) >= self._limit:
                if not self._waiting:
                    return False
                slowest = next(iter(self._waiting))
                del self._waiting[slowest]
                hang_up(slowest)
            self._waiting[client] = None
            return True

    def asked(self, client: socket.socket) -> bool:
        """The request is complete; False if the place was lost meanwhile."""
        with self._lock:
            if client not in self._waiting:
                return False
            del self._waiting[client]
            self._answered.add(client)
            return True

    def left(self, client: socket.socket) -> None:
        """The connection is closed; it may have lost its place before."""
        with self._lock:
            self._waiting.pop(client, None)
            self._answered.discard(client)

    def hang_up_all(self) -> None:
        """End all of them: their threads find closed connections."""
        with self._lock:
            for client in (*self._waiting, *self._answered):
                hang_up(client)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until all have left; False at the time-out."""
        until = time.monotonic() + timeout_s
        while len(self) and time.monotonic() < until:
            time.sleep(0.01)
        return not len(self)

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._answered)


def hang_up(client: socket.socket) -> None:
    """Shut a connection down in both directions, so that whoever reads or writes it wakes up."""
    with contextlib.suppress(OSError):  # it may be gone already
        client.shutdown(socket.SHUT_RDWR)


def read_head(client: socket.socket) -> bytes:
    """Request line and headers up to and with the empty line, and what came with them.

    Raises:
        TooLarge: more than `MAX_HEAD` bytes.
        TimeoutError: it was not complete within `HEAD_WITHIN_S`.
        ConnectionError: the client left before.
    """
    until = time.monotonic() + HEAD_WITHIN_S
    head = bytearray()
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        client.settimeout(left_s)
        piece = client.recv(4096)
        if not piece:
            raise ConnectionError
        head += piece
        if len(head) > MAX_HEAD:
            raise TooLarge
    return bytes(head)
