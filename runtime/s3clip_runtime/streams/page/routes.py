"""Which address shows what. Knows nothing of sockets and of who may see it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, unquote

from s3clip_runtime.streams.page.answers import HTML, JPEG, JSON, Answer, text
from s3clip_runtime.streams.page.board import Board
from s3clip_runtime.streams.page.health import troubles
from s3clip_runtime.streams.page.markup import web_file
from s3clip_runtime.streams.page.metrics import CONTENT_TYPE, exposition
from s3clip_runtime.streams.page.status_json import status_json
from s3clip_runtime.streams.page.view import page
from s3clip_runtime.streams.status import RunStatus

_FILES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_BOUNDARY = "s3clip-frame"

MAX_FPS = 10.0
"""Pictures a second that one viewer gets. A frame is drawn and encoded once for all of them."""

_REPEAT_S = 5.0
"""A camera that gives nothing new is sent again so often: a viewer who left is only noticed by sending."""

_SLICE_S = 0.5
"""Longest wait before a look whether the page closes."""


class Routes:
    """Answers to addresses.

    Args:
        board: pictures and sightings.
        status: of the run; asked once an answer that needs it.
        stop: set when the page closes; ends streams of pictures within `_SLICE_S`.
    """

    def __init__(self, board: Board, status: Callable[[], RunStatus], stop: threading.Event) -> None:
        self._board = board
        self._status = status
        self._stop = stop

    def answer(self, path: str, query: str) -> Answer:
        """What is at `path`, as it stands in the request; an unknown one is a 404."""
        match path.split("/")[1:]:
            case [""]:
                every = parse_qs(query).get("sightings") == ["all"]
                return Answer(200, HTML, page(self._status(), self._board, all_sightings=every))
            case ["status.json"]:
                return Answer(200, JSON, status_json(self._status()))
            case ["metrics"]:
                return Answer(200, CONTENT_TYPE, exposition(self._status()))
            case ["healthz"]:
                return self.health(reasons=True)
            case ["cameras", name] if name.endswith(".jpg"):
                return self._picture(unquote(name.removesuffix(".jpg")))
            case ["cameras", name] if name.endswith(".mjpeg"):
                return self._video(unquote(name.removesuffix(".mjpeg")))
            case ["sightings", name] if name.endswith(".jpg"):
                return self._strip(unquote(name.removesuffix(".jpg")), query)
            case [name] if name in _FILES:
                return Answer(200, _FILES[name], web_file(name))
        return text(404, "There is nothing here.")

    def health(self, *, reasons: bool) -> Answer:
        """200 while the run is well, else 503; the reasons name cameras and outputs."""
        found = troubles(self._status())
        body: dict[str, object] = {"status": "degraded" if found else "ok"}
        if reasons:
            body["reasons"] = found
        return Answer(503 if found else 200, JSON, json.dumps(body).encode())

    def _picture(self, camera: str) -> Answer:
        shot = self._board.shot(camera)
        if shot is None:
            return text(404, "No picture of this camera is known.")
        return Answer(200, JPEG, shot.jpeg)

    def _video(self, camera: str) -> Answer:
        if self._board.newest(camera) is None:
            return text(404, "No picture of this camera is known.")
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        return Answer(200, kind, b"", stream=self._parts(camera))

    def _strip(self, event_id: str, query: str) -> Answer:
        match parse_qs(query).get("what", ["before"]):
            case ["before"]:
                strip = self._board.strip(event_id, "before")
            case ["after"]:
                strip = self._board.strip(event_id, "after")
            case _:
                return text(400, "what is before or after.")
        if strip is None:
            return text(404, "These crops are not kept.")
        return Answer(200, JPEG, strip)

    def _parts(self, camera: str) -> Iterator[bytes]:
        """The camera's frames as they come. Each part ends with the next boundary: browsers show it then."""
        yield f"--{_BOUNDARY}\r\n".encode()
        while not self._stop.is_set() and (shot := self._board.shot(camera)) is not None:
            head = f"Content-Type: {JPEG}\r\nContent-Length: {len(shot.jpeg)}\r\n\r\n"
            yield b"".join((head.encode(), shot.jpeg, f"\r\n--{_BOUNDARY}\r\n".encode()))
            self._stop.wait(1 / MAX_FPS)
            repeat_at = time.monotonic() + _REPEAT_S
            while not self._stop.is_set() and time.monotonic() < repeat_at:
                if self._board.wait_newer(camera, shot.version, _SLICE_S):
                    break
