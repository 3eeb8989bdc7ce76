"""Where JSON lines of boxes come in: standard input, or connections to a socket that we listen on.

Every connection is read by a thread of its own. Nothing that a sender does ends the program: what it sends
amiss is counted and said once, and a hopeless connection is dropped.
"""

from __future__ import annotations

import hmac
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from s3clip_runtime.streams.detection.box_address import BoxAddress
from s3clip_runtime.streams.detection.box_lines import MAX_LINE_BYTES, BadLine, LineCutter, parse_object
from s3clip_runtime.streams.detection.box_pipes import TICK_S, Pipe, SocketPipe, StdinPipe

_LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
"""When one more comes, the least useful one is dropped: who never sent a good line, else the most silent."""
FOUL = frozenset({"json", "form", "boxes", "huge", "token"})
"""Faults of a sender that does not speak the format; the others are well-formed lines that are not wanted."""
HOPELESS_LINES = 100
"""Foul lines in a row that end a connection."""
HOPELESS_BYTES = 8 * MAX_LINE_BYTES
"""Bytes without a line end that end a connection."""
TOKEN_S = 10.0
"""Within this time a connection must have sent its token, where one is asked for."""
JOIN_S = 2.0
QUIET_S = 10.0
"""Between two lines of the log about the same fault, whatever the number of connections."""


class _Connection:
    """One sender, read to its end by the thread that calls `serve`."""

    def __init__(self, number: int, pipe: Pipe, server: BoxServer) -> None:
        self.number = number
        self.last_good_s: float | None = None
        self.started_s = time.monotonic()
        self.dropped = threading.Event()
        self._pipe = pipe
        self._server = server
        self._trusted = server.address.token is None
        self._bad_in_row = 0
        self._told: set[str] = set()

    def end(self) -> None:
        """Called by another thread: let `serve` return soon."""
        self.dropped.set()
        self._pipe.wake()

    def serve(self) -> None:
        """Read lines until the sender ends, the server ends, or it is hopeless."""
        cutter = LineCutter()
        try:
            while not self._server.closing.is_set() and not self.dropped.is_set():
                data = self._pipe.read()
                if data is None:
                    self._check_token_time()
                    continue
                if not data:
                    if rest := cutter.rest():
                        self._take(rest)
                    return
                for line in cutter.feed(data):
                    self._take(line)
                    if self.dropped.is_set():
                        return
                if cutter.skipped > HOPELESS_BYTES:
                    self._drop("huge", f"{HOPELESS_BYTES} bytes without a line end")
        except OSError as error:
            if not self.dropped.is_set():
                self._complain("connection", error.strerror or "failed")
        finally:
            self._pipe.close()

    def _take(self, line: bytes | None) -> None:
        try:
            if line is None:
                raise BadLine("huge", f"a line of more than {MAX_LINE_BYTES} bytes")
            if not line.strip():
                return
            if self._trusted:
                self._server.hear(line)
            else:
                self._trusted = self._check_token(line)
        except BadLine as error:
            self._complain(error.kind, str(error))
            if error.kind in FOUL:
                self._bad_in_row += 1
                if not self._trusted or self._bad_in_row >= HOPELESS_LINES:
                    self._drop(error.kind, f"{self._bad_in_row} bad lines in a row")
                return
        self._bad_in_row = 0
        self.last_good_s = time.monotonic()

    def _check_token(self, line: bytes) -> bool:
        """Whether the first line is the right token; the line itself is never shown."""
        given, wanted = parse_object(line).get("token"), self._server.address.token
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), (wanted or "").encode()):
            raise BadLine("token", "the first line does not hold the token")
        return True

    def _check_token_time(self) -> None:
        if not self._trusted and time.monotonic() - self.started_s > TOKEN_S:
            self._drop("token", f"no token within {TOKEN_S:g} s")

    def _complain(self, kind: str, why: str) -> None:
        self._server.count(kind)
        if kind not in self._told:
            self._told.add(kind)
            self._server.say(kind, f"connection {self.number}: {why}")

    def _drop(self, kind: str, why: str) -> None:
        self._server.dropped += 1
        self._server.say(f"drop {kind}", f"connection {self.number} is dropped: {why}")
        self.dropped.set()


class BoxServer:
    """Reads lines from standard input or from all who connect.

    Args:
        address: where.
        hear: takes one line of a trusted sender; may wait; raises BadLine. Called by several threads.
        descriptor: of standard input.

    Attributes:
        closing: is set when it ends.
        refused: kind of fault to its number.
        dropped: connections that were dropped.

    Raises:
        SourceError: the address cannot be listened on.
    """

    def __init__(self, address: BoxAddress, hear: Callable[[bytes], None], descriptor: int = 0) -> None:
        self.address = address
        self.hear = hear
        self.closing = threading.Event()
        self.refused: Counter[str] = Counter()
        self.dropped = 0
        self._said_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._connections: dict[_Connection, threading.Thread] = {}
        self._made = 0
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        if address.stdin:
            self._start(StdinPipe(descriptor))
            return
        self._listener = address.listen()
        self._listener.settimeout(TICK_S)
        self._acceptor = threading.Thread(target=self._accept, name=f"boxes {address}", daemon=True)
        self._acceptor.start()

    @property
    def connections(self) -> int:
        """Senders that are connected now."""
        with self._lock:
            return len(self._connections)

    @property
    def expecting(self) -> bool:
        """Whether lines may still come from someone who is there, or who has not come yet."""
        with self._lock:
            return not self.closing.is_set() and (bool(self._connections) or self._made == 0)

    @property
    def port(self) -> int | None:
        """Port that is listened on, None unless it is TCP."""
        if self._listener is None or self.address.path is not None:
            return None
        return int(self._listener.getsockname()[1])

    def count(self, kind: str) -> None:
        """Note a fault."""
        with self._lock:
            self.refused[kind] += 1

    def say(self, kind: str, text: str) -> None:
        """Warn, but not more often than every `QUIET_S` of the same kind."""
        now = time.monotonic()
        with self._lock:
            quiet = now - self._said_s.get(kind, float("-inf")) < QUIET_S
            if not quiet:
                self._said_s[kind] = now
        if not quiet:
            _LOG.warning("boxes from %s, %s; more of this kind are only counted", self.address, text)

    def close(self) -> None:
        """End all connections. A second call does nothing."""
        self.closing.set()
        deadline = time.monotonic() + JOIN_S
        if self._acceptor is not None:  # first: nobody is let in after it
            self._acceptor.join(JOIN_S)
        with self._lock:
            threads = list(self._connections.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._listener is not None:
            self.address.release(self._listener)
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None  # it closes after this thread has ended
        listener = self._listener
        while not self.closing.is_set():
            try:
                connected, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no descriptors left, or a sender that has gone already
                self.say("accept", f"a connection is not accepted: {error.strerror}")
                self.closing.wait(TICK_S)
                continue
            self._make_room()
            self._start(SocketPipe(connected))

    def _start(self, pipe: Pipe) -> None:
        with self._lock:  # whoever finds a thread among the connections may join it: it has started
            self._made += 1
            connection = _Connection(self._made, pipe, self)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"boxes {connection.number}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads
                started = False
            else:
                started = True
                self._connections[connection] = thread
        if not started:
            pipe.close()
            self.say("accept", "a connection is not accepted: no more threads")

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.serve()
        finally:
            self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.pop(connection, None)

    def _make_room(self) -> None:
        while self.connections >= 2 * MAX_CONNECTIONS and not self.closing.is_set():
            self.closing.wait(TICK_S)  # those that were dropped have not ended yet
        with self._lock:
            held = [one for one in self._connections if not one.dropped.is_set()]
            if len(held) < MAX_CONNECTIONS:
                return
            worst = min(held, key=lambda one: (one.last_good_s is not None, one.last_good_s or one.started_s))
            self.dropped += 1
        worst.end()
        self.say("room", f"connection {worst.number} is dropped: more than {MAX_CONNECTIONS} are open")
