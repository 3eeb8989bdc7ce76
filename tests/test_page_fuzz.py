"""Clients that err, trickle, flood and guess: the page survives, and a good client is served all the same."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_page import TOKEN, get, live_status, port_of, serving, small_board

from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.page import connections, server
from s3clip_runtime.streams.page.server import MAX_CONNECTIONS, PageServer

GOOD = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def page() -> Iterator[PageServer]:
    with serving() as found:
        yield found


def connect(page: PageServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(page)), timeout=5)


def said(client: socket.socket) -> bytes:
    """All that the server sends until it hangs up; it may hang up hard."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            found += piece
    return found


def ask(page: PageServer, request: bytes, *, half_close: bool = False) -> bytes:
    with connect(page) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(request)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        return said(client)


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def good_client_is_served(page: PageServer) -> bool:
    before = time.monotonic()
    answer = get(page, "/status.json")
    return answer.status == 200 and time.monotonic() - before < 2


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settles(value: Callable[[], int], limit: int) -> bool:
    until = time.monotonic() + 5
    while value() > limit and time.monotonic() < until:
        time.sleep(0.01)
    return value() <= limit


def test_random_bytes_and_broken_requests(page: PageServer, caplog: pytest.LogCaptureFixture) -> None:
    good_client_is_served(page)
    files, threads = open_files(), threading.active_count()
    dice = random.Random(5)
    for number in range(300):
        if number % 3 == 0:
            request = dice.randbytes(dice.randrange(1, 600)) + b"\r\n\r\n"
        else:
            mutated = bytearray(GOOD)
            for _ in range(dice.randrange(1, 6)):
                mutated[dice.randrange(len(mutated) - 4)] = dice.randrange(256)
            request = bytes(mutated)
        answer = ask(page, request, half_close=True)
        known = (200, 301, 303, 400, 404, 405, 414, 421, 431, 501, 505)
        assert not answer.startswith(b"HTTP/1.1 ") or status_of(answer) in known, (request, answer[:100])
    assert good_client_is_served(page)
    assert settles(open_files, files)
    assert settles(threading.active_count, threads)
    assert not caplog.records  # what strangers send is no trouble of the program


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 150 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 40 + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\n\r\n", 421),
        (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/x\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / a b c HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /cameras/%00%ff%2e%2e.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /?%zz=&&&=;sightings HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"GET / HTTP/1.0\nHost: localhost\n\n", 200),
    ],
    ids=range(15),
)
def test_odd_requests_get_the_fitting_answer(page: PageServer, request_bytes: bytes, code: int) -> None:
    answer = ask(page, request_bytes)
    assert status_of(answer) == code
    assert b"X-Content-Type-Options: nosniff" in answer
    assert b"aaaa" not in answer  # no answer repeats what was sent
    assert good_client_is_served(page)


def test_endless_headers_are_cut_off(page: PageServer) -> None:
    sent = 0
    with connect(page) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\n")
        while sent < 50_000_000:
            sent += client.send(b"X-More: " + b"a" * 4000 + b"\r\n")
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/web/../access.py",
     "/cameras/../../etc/passwd.jpg", "/sightings/..%2f..%2f..%2fetc%2fpasswd.jpg", "//etc/passwd",
     "/page.css/../access.py", "/./page.css", "/page.css%00.jpg"],
)  # fmt: skip
def test_no_path_leads_to_a_file(page: PageServer, path: str) -> None:
    answer = ask(page, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status_of(answer) == 404
    assert b"root:" not in answer
    assert b"import" not in answer


def test_a_client_that_trickles_is_cut_off_in_time(page: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.6)
    before = time.monotonic()
    with connect(page) as client:
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - before < 5:
                client.sendall(b"X")  # one byte now and then: each read succeeds, the whole never ends
                time.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            assert client.recv(10) == b""
    assert 0.5 < time.monotonic() - before < 2
    before = time.monotonic()
    with connect(page) as client:
        time.sleep(0.5)
        client.sendall(b"X")  # late and then silent: the byte buys no second term
        assert client.recv(10) == b""
    assert time.monotonic() - before < 1.0


def test_a_client_that_reads_nothing_is_cut_off(page: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SEND_WITHIN_S", 0.5)
    threads = threading.active_count()
    large = small_board()
    with (
        PageServer(large, live_status, host="127.0.0.1", port=0, token=None) as stuffed,
        connect(stuffed) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /cameras/gate.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3)).astype(np.uint8)
        until = time.monotonic() + 6
        index = 0
        while threading.active_count() > threads + 1 or index < 3:
            assert time.monotonic() < until, "the viewer still holds its thread"
            index += 1
            large.frame(Frame("gate", index, 0.0, noise), [])
            time.sleep(0.05)
        assert good_client_is_served(stuffed)


def test_half_closed_clients(page: PageServer) -> None:
    assert status_of(ask(page, GOOD, half_close=True)) == 200  # asked, then shut its side: it still listens
    assert ask(page, GOOD[:20], half_close=True) == b""
    with connect(page) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(GOOD)  # and then a reset instead of a goodbye
    assert good_client_is_served(page)


def test_two_hundred_silent_clients_keep_no_one_out(page: PageServer) -> None:
    files, threads = open_files(), threading.active_count()
    silent = [connect(page) for _ in range(200)]
    for _ in range(20):
        assert good_client_is_served(page)
    assert threading.active_count() <= threads + MAX_CONNECTIONS + 5
    assert silent[0].recv(10) == b""  # who waited longest lost the place
    for client in silent:
        client.close()
    assert settles(open_files, files)
    assert settles(threading.active_count, threads)


def test_two_hundred_clients_at_once_are_all_served_in_the_end(page: PageServer) -> None:
    codes: list[int] = []

    def many() -> None:
        for _ in range(25):
            for _ in range(50):
                answer = ask(page, GOOD)
                if answer.startswith(b"HTTP/1.1 200"):
                    break
            codes.append(status_of(answer))

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert codes == [200] * 200


def test_guessing_the_token_gains_nothing_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(3)
    with serving(token=TOKEN) as page:
        for number in range(200):
            guess = "".join(dice.choices("abcdefghijklmnop", k=len(TOKEN)))
            request = (
                f"GET /?token={guess} HTTP/1.1\r\n\r\n"
                if number % 2
                else f"GET / HTTP/1.1\r\nAuthorization: Bearer {guess}\r\nCookie: s3clip-0={guess}\r\n\r\n"
            )
            assert status_of(ask(page, request.encode())) == 401
        assert get(page, "/", Authorization=f"Bearer {TOKEN}").status == 200
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "wrong token" in warnings[0].getMessage()


def test_no_free_file_is_survived_without_spinning(page: PageServer) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = [socket.socket() for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 1, hard))
    try:
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for client in waiting:
            client.connect(("127.0.0.1", port_of(page)))
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)
        for client in waiting:
            client.close()
    assert good_client_is_served(page)
