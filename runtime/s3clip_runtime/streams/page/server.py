"""The page's HTTP server: small, bounded, and unable to disturb the run."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.streams.page.access import Access
from s3clip_runtime.streams.page.answers import Answer, text
from s3clip_runtime.streams.page.board import Board
from s3clip_runtime.streams.page.connections import Connections, TooLarge, read_head
from s3clip_runtime.streams.page.routes import Routes
from s3clip_runtime.streams.status import RunStatus

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""Open at once; each is a thread."""

MAX_VIEWERS = 8
"""Streams of pictures at once."""

_SEND_WITHIN_S = 10.0
"""A client that has not taken an answer, or one picture of a stream, by then is cut off."""

_LONGEST_LINE = 8192

_SECURITY = (
    (
        "Content-Security-Policy",
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


class PageServer:
    """Serves a board and a status over HTTP, in threads of its own.

    Args:
        board: pictures and sightings.
        status: of the run; called by the page's threads, one call a request. An exception of it becomes a
            500 and a line in the log.
        host: address to listen on, such as 127.0.0.1, ::1 or 0.0.0.0.
        port: 0 takes a free one.
        token: what a client must show; None only on loopback.

    Raises:
        ConfigError: the page would be open to the network, or the token is unfit.
    """

    def __init__(
        self,
        board: Board,
        status: Callable[[], RunStatus],
        *,
        host: str,
        port: int,
        token: str | None,
    ) -> None:
        self._host = host.strip("[]")
        self._port = port
        self._stop = threading.Event()
        self._access = Access(host, token)
        self._routes = Routes(board, status, self._stop)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is, without the token. The port is the real one after `start`."""
        port = self._port if self._server is None else self._server.server_address[1]
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}/"

    def start(self) -> None:
        """Listen and serve. Once only.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        try:
            self._server = _Server((self._host, self._port), self._access, self._routes, self._stop)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"[page] listen: {self._host}:{self._port} cannot be listened on: {reason}; name an address "
                "of this machine and a free port, or port 0"
            ) from error
        if not self._access.loopback:
            _log.warning(
                "page: %s is not encrypted: token and pictures can be read on the way; "
                "put a proxy with TLS in front of it, or listen on 127.0.0.1",
                self.url,
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end all connections, in less than two seconds. May be called twice."""
        self._stop.set()
        if self._server is None or self._thread is None:
            return
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(1.0)
        self._server.server_close()
        self._server.connections.hang_up_all()
        if not self._server.connections.wait_empty(0.7):
            _log.warning("page: a connection did not end; it is left to the end of the program")

    def __enter__(self) -> PageServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Server(ThreadingMixIn, TCPServer):
    """Threads for connections, as many as there are places."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], access: Access, routes: Routes, stop: threading.Event
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.access = access
        self.routes = routes
        self.connections = Connections(MAX_CONNECTIONS)
        self.viewers = threading.BoundedSemaphore(MAX_VIEWERS)
        self._stop = stop
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._stop.wait(0.1)  # no file is free: the client stays in the queue, do not spin until then
            raise

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if self.connections.admit(request):
            super().process_request(request, client_address)
            return
        request.settimeout(0)  # a refusal must not hold up the next client
        with contextlib.suppress(OSError):
            request.send(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        self.shutdown_request(request)

    def shutdown_request(self, request: object) -> None:
        assert isinstance(request, socket.socket)
        self.connections.left(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        # Clients that leave, are cut off or come when no thread can be started; the run goes on.
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            _log.error("page: a connection failed: %s", type(error).__name__, exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """One request a connection: a browser needs few, and an idle connection would hold a place."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        try:
            head = read_head(self.connection)
        except TooLarge:
            self.connection.settimeout(1.0)
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        self.connection.settimeout(_SEND_WITHIN_S)
        if not self.server.connections.asked(self.connection):
            return
        self.rfile.close()
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        if len(self.raw_requestline) > _LONGEST_LINE:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG)
        elif self.parse_request():
            self._send(self._answer())

    def _answer(self) -> Answer:
        path, _, query = self.path.partition("#")[0].partition("?")
        try:
            return self._permitted(path, query)
        except Exception as error:  # the page is a guest: its faults are told and never reach the run
            _log.error("page: %.200r failed", path, exc_info=error)
            return text(500, "The page failed here; the program's log says why.")

    def _permitted(self, path: str, query: str) -> Answer:
        access = self.server.access
        refused = access.refusal(path, query, self.headers, self.client_address[0])
        reads = self.command in ("GET", "HEAD")
        if refused is None:
            if reads:
                return self.server.routes.answer(path, query)
            return text(405, "Only GET and HEAD.", ("Allow", "GET, HEAD"))
        if reads and path == "/healthz" and refused.status == 401 and access.loopback:
            return self.server.routes.health(reasons=False)
        return refused

    def _send(self, answer: Answer) -> None:
        if answer.stream is None or self.command == "HEAD":
            self._head(answer)
            if self.command != "HEAD":
                self.wfile.write(answer.body)
        elif self.server.viewers.acquire(blocking=False):
            try:
                self._head(answer)
                for piece in answer.stream:
                    self.wfile.write(piece)
            finally:
                self.server.viewers.release()
        else:
            self._send(text(503, f"{MAX_VIEWERS} streams of pictures are watched; close one."))

    def _head(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        self.send_header("Content-Type", answer.content_type)
        if answer.stream is None:
            self.send_header("Content-Length", str(len(answer.body)))
        for name, value in (*answer.headers, *_SECURITY):
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _refuse(self, status: HTTPStatus) -> None:
        self.request_version, self.command = "HTTP/1.1", ""
        self._send(text(status, status.phrase))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parser of the standard library refuses. Its words repeat the request line: not sent."""
        self._refuse(HTTPStatus(code))

    def log_message(self, format: str, *args: object) -> None:
        """No access log: request lines may hold the token."""
