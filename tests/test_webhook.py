"""The webhook against a real HTTP server that refuses, fails, hangs, redirects and goes away."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_sightings import ids, sightings, wait_for

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.streams.outputs import delivery
from s3clip_runtime.streams.outputs.delivery import LONGEST_ASKED_PAUSE_S
from s3clip_runtime.streams.outputs.webhook import Webhook, WebhookOptions, _retry_after_s

TOKEN = "s3cr3t-t0ken"


@dataclass
class Got:
    at_s: float
    path: str
    headers: dict[str, str]
    body: bytes


class Hook:
    """A server that keeps what is posted and answers from a list, then 204."""

    def __init__(self, port: int = 0) -> None:
        self.got: list[Got] = []
        self.answers: deque[tuple[int, dict[str, str]]] = deque()
        self.hang_s = 0.0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append(Got(time.monotonic(), self.path, dict(self.headers), body))
                time.sleep(hook.hang_s)
                code, headers = hook.answers.popleft() if hook.answers else (204, {})
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def ids(self) -> list[str]:
        return [json.loads(one.body)["event_id"] for one in self.got]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_FIRST_PAUSE_S", 0.1)


def options(port: int, folder: Path) -> WebhookOptions:
    return WebhookOptions(f"http://127.0.0.1:{port}/hooks/hidden-path?key=hidden-key", folder / "q", TOKEN)


def test_posts_events_in_order(hook: Hook, tmp_path: Path) -> None:
    many = sightings(5)
    sink = Webhook(options(hook.port, tmp_path))
    for one in many:
        sink.sighting(one)
    wait_for(lambda: sink.status().delivered == 5)
    sink.close()
    assert [one.body.decode() for one in hook.got] == [one.event.line() for one in many]
    assert [one.headers["Idempotency-Key"] for one in hook.got] == ids(many)
    first = hook.got[0]
    assert first.path == "/hooks/hidden-path?key=hidden-key"
    assert first.headers["Content-Type"] == "application/json"
    assert first.headers["Authorization"] == f"Bearer {TOKEN}"
    assert sink.status() == replace(sink.status(), delivered=5, waiting=0, lost=0, error="")


def test_refused_events_are_counted_and_the_next_goes(
    hook: Hook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = sightings(4)
    hook.answers.extend([(204, {}), (400, {}), (200, {}), (422, {})])
    sink = Webhook(options(hook.port, tmp_path))
    for one in many:
        sink.sighting(one)
    wait_for(lambda: sink.status().waiting == 0)
    sink.close()
    assert hook.ids() == ids(many)  # each once
    assert (sink.status().delivered, sink.status().lost) == (2, 2)
    assert sink.status().error == "events are refused: answered 422 Unprocessable Entity"
    assert f"{ids(many)[1]} was refused: answered 400 Bad Request" in caplog.text


@pytest.mark.parametrize("code", [401, 404, 408, 429, 500, 503, 302, 307])
def test_passing_faults_are_tried_again_in_order(hook: Hook, tmp_path: Path, code: int) -> None:
    many = sightings(3)
    elsewhere = Hook()
    hook.answers.extend([(code, {"Location": f"http://127.0.0.1:{elsewhere.port}/x"})] * 2)
    sink = Webhook(options(hook.port, tmp_path))
    for one in many:
        sink.sighting(one)
    wait_for(lambda: str(code) in sink.status().error)
    wait_for(lambda: sink.status().delivered == 3)
    sink.close()
    assert hook.ids() == [ids(many)[0]] * 2 + ids(many)
    assert sink.status().lost == 0
    elsewhere.stop()
    assert elsewhere.got == []  # the token goes nowhere else


def test_waits_as_long_as_the_server_asks(hook: Hook, tmp_path: Path) -> None:
    hook.answers.append((503, {"Retry-After": "1"}))
    sink = Webhook(options(hook.port, tmp_path))
    sink.sighting(sightings(1)[0])
    wait_for(lambda: sink.status().delivered == 1)
    sink.close()
    assert 1.0 <= hook.got[1].at_s - hook.got[0].at_s < 5


def test_retry_after_as_number_and_date() -> None:
    assert _retry_after_s("120") == 120
    assert 55 < _retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert _retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [_retry_after_s(text) for text in ("", "soon", "-5", "1e9")] == [0, 0, 0, 0]
    assert LONGEST_ASKED_PAUSE_S == 3600


def test_hanging_server_holds_up_nobody(hook: Hook, tmp_path: Path) -> None:
    hook.hang_s = 2
    sink = Webhook(replace(options(hook.port, tmp_path), timeout_s=0.3))
    began = time.monotonic()
    for one in sightings(20):
        sink.sighting(one)
    assert time.monotonic() - began < 1
    wait_for(lambda: sink.status().error == "no answer in time")
    hook.hang_s = 0
    wait_for(lambda: sink.status().delivered == 20)
    sink.close()


def test_server_away_then_our_restart(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    many = sightings(12)
    sink = Webhook(options(port, tmp_path))
    for one in many[:9]:
        sink.sighting(one)
    wait_for(lambda: sink.status().error == "Connection refused")
    assert sink.status().waiting == 9
    sink.close()
    hook = Hook(port)
    sink = Webhook(options(port, tmp_path))
    assert sink.status().waiting + sink.status().delivered == 9
    for one in many[9:]:
        sink.sighting(one)
    wait_for(lambda: sink.status().delivered == 12)
    sink.close()
    hook.stop()
    assert hook.ids() == ids(many)


def test_not_http_at_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(100)
                    client.sendall(b"SSH-2.0-nonsense\r\n")

        threading.Thread(target=talk, daemon=True).start()
        sink = Webhook(options(server.getsockname()[1], tmp_path))
        sink.sighting(sightings(1)[0])
        wait_for(lambda: sink.status().error.startswith(("no proper answer", "Connection reset")))
        sink.close()
        server.shutdown(socket.SHUT_RDWR)


def test_secrets_are_never_shown(
    hook: Hook, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    hook.answers.extend([(500, {}), (302, {"Location": "http://other/hidden-target"}), (400, {})])
    sink = Webhook(options(hook.port, tmp_path))
    sink.sighting(sightings(1)[0])
    wait_for(lambda: sink.status().lost == 1)
    shown = [str(sink.status()), repr(options(hook.port, tmp_path))]
    sink.close()
    for change in (
        {"token": f"{TOKEN}\nX: y"},
        {"url": f"http://ann:{TOKEN}@h/"},
        {"url": f"ftp://h/{TOKEN}"},
    ):
        with pytest.raises(ConfigError) as caught:
            Webhook(replace(options(hook.port, tmp_path), **change))  # type: ignore[arg-type]
        shown.append(str(caught.value))
    shown += [caplog.text, *capfd.readouterr()]
    assert not [text for text in shown if TOKEN in text or "hidden" in text]
    assert "to other, which is not followed" in caplog.text
