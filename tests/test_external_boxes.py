"""Boxes from outside: the format, matching to frames, real senders, and senders that mean harm."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3clip_runtime.errors import ConfigError, SourceError
from s3clip_runtime.streams.detection import box_server, external
from s3clip_runtime.streams.detection.box_address import parse_box_address
from s3clip_runtime.streams.detection.box_feed import WINDOW
from s3clip_runtime.streams.detection.box_lines import MAX_LINE_BYTES, BadLine, LineCutter, parse_line
from s3clip_runtime.streams.detection.external import ExternalBoxes
from s3clip_runtime.streams.frames import Clock, Frame
from s3clip_runtime.streams.status import FeedStatus

DOCS = Path(__file__).parents[1] / "docs" / "detectors.md"
NOW = 1_764_060_000.0
BOX = [10.0, 20.0, 40.0, 80.0, 0.9]


def frame(camera: str = "gate", *, time_s: float = NOW, index: int = 0, clock: Clock = "arrival") -> Frame:
    return Frame(camera, index, time_s, np.zeros((100, 200, 3), np.uint8), clock)


def line(camera: str = "gate", **keys: Any) -> bytes:  # noqa: ANN401
    return json.dumps({"camera": camera, "boxes": [BOX], **keys}).encode() + b"\n"


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ExternalBoxes]]:
    made: list[ExternalBoxes] = []

    def opened(address: str = "", **options: Any) -> ExternalBoxes:  # noqa: ANN401
        where = parse_box_address(address or f"unix:{tmp_path}/boxes.sock")
        made.append(ExternalBoxes(where, ["gate", "yard"], **options))
        return made[-1]

    yield opened
    for one in made:
        one.close()


@contextlib.contextmanager
def sender(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(10)
        connected.connect(str(tmp_path / "boxes.sock"))
        yield connected


# The format


def test_a_line_is_read() -> None:
    read = parse_line(line(time=NOW, extra={"ignored": 1}).strip())
    assert (read.camera, read.time_s, read.frame, read.normalised) == ("gate", NOW, None, False)
    np.testing.assert_array_equal(read.boxes, np.array([BOX], np.float32))
    read = parse_line(b'{"camera":"x","frame":17,"normalised":true,"boxes":[[0,0,1,1],[0.1,0.2,0.3,0.4,0]]}')
    assert (read.time_s, read.frame, read.normalised) == (None, 17, True)
    np.testing.assert_allclose(read.boxes, np.array([[0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4, 0]]), atol=1e-6)
    assert parse_line(line(time=0, boxes=[])).boxes.shape == (0, 5)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"hello", "json"),
        (b"\xff\xfe\x00", "json"),
        (b'{"camera": "gate", "time": 1, "boxes": [[1', "json"),
        (b"[" * 200_000, "json"),
        (b'{"a":' * 100_000, "json"),
        (b"[1, 2]", "json"),
        (line(time=float("nan")), "json"),
        (line(time=float("inf")), "json"),
        (b'{"camera": "gate", "time": 1' + b"0" * 5000 + b', "boxes": []}', "json"),
        (b'{"camera": "gate", "time": 1' + b"0" * 4000 + b', "boxes": []}', "form"),
        (b'{"camera": "gate", "time": 1e999, "boxes": []}', "form"),
        (line(), "form"),
        (line(time=1, frame=1), "form"),
        (line(camera=3, time=1), "form"),  # type: ignore[arg-type]
        (line(time=-1), "form"),
        (line(time="now"), "form"),
        (line(time=True), "form"),
        (line(frame=1.5), "form"),
        (line(frame=-1), "form"),
        (line(frame=1 << 60), "form"),
        (line(time=1, normalised=1), "form"),
        (line(time=1, boxes=None), "boxes"),
        (line(time=1, boxes={}), "boxes"),
        (line(time=1, boxes=[[1, 2, 3]]), "boxes"),
        (line(time=1, boxes=[[1, 2, 3, 4, 0.5, 6]]), "boxes"),
        (line(time=1, boxes=[[1, 2, 1, 4]]), "boxes"),
        (line(time=1, boxes=[[1, 2, 3, 1]]), "boxes"),
        (line(time=1, boxes=[[1, 2, 3, 4, 1.1]]), "boxes"),
        (line(time=1, boxes=[[1, 2, 3, 4, -0.1]]), "boxes"),
        (line(time=1, boxes=[[1, 2, 1e300, 4]]), "boxes"),
        (line(time=1, boxes=[[1, 2, None, 4]]), "boxes"),
        (line(time=1, boxes=[[0, 0, 5, 9]], normalised=True), "boxes"),
        (line(time=1, boxes=[BOX] * 501), "boxes"),
    ],
)
def test_a_bad_line_is_refused_by_kind(text: bytes, kind: str) -> None:
    with pytest.raises(BadLine) as caught:
        parse_line(text.strip())
    assert caught.value.kind == kind
    assert len(str(caught.value)) < 100


def test_lines_are_cut_as_if_all_were_there_at_once_and_little_is_held() -> None:
    rng = random.Random(4)
    parts = [rng.randbytes(rng.randrange(40)).replace(b"\n", b"") for _ in range(300)]
    parts[7] = b"x" * MAX_LINE_BYTES  # just fits
    parts[8] = b"x" * (MAX_LINE_BYTES + 1)
    parts[200] = b"y" * (3 * MAX_LINE_BYTES)
    stream, cutter, found = b"\n".join(parts), LineCutter(), []
    position = 0
    while position < len(stream):
        step = rng.choice([1, 3, 70, 65536])
        found += list(cutter.feed(stream[position : position + step]))
        position += step
    expected: list[bytes | None] = [None if len(part) > MAX_LINE_BYTES else part for part in parts]
    assert found == expected[:-1]
    assert cutter.rest() == parts[-1]
    list(cutter.feed(b"z" * (10 * MAX_LINE_BYTES)))
    assert cutter.skipped >= 10 * MAX_LINE_BYTES
    assert cutter.rest() == b""


# Matching


def test_a_live_frame_gets_the_nearest_line_within_the_tolerance(
    make: Callable[..., ExternalBoxes], tmp_path: Path
) -> None:
    boxes = make()
    with sender(tmp_path) as connected:
        for offset in (0.0, 0.1, 0.5):
            row = [offset * 100, 0, offset * 100 + 30, 90]
            connected.sendall(line(time=NOW + offset, boxes=[row]))
        connected.sendall(line("yard", time=NOW + 0.1, normalised=True, boxes=[[0.5, 0.5, 2, 2, 0.25]]))
        until(lambda: sum(one.lines for one in boxes.status.cameras.values()) == 4)
        lefts = []
        for offset in (-0.25, 0.02, 0.06, 0.28, 0.32, 0.75, 2.0):
            found = boxes.detect([frame(time_s=NOW + offset)])[0]
            lefts.append(round(float(found.boxes[0, 0])) if len(found.boxes) else None)
        assert lefts == [None, 0, 10, 10, 50, None, None]
        both = boxes.detect([frame(time_s=NOW + 2.1), frame("yard", time_s=NOW + 0.1)])
    assert len(both[0].boxes) == 0
    np.testing.assert_allclose(both[1].boxes, [[100, 50, 200, 100]])  # clipped to 100 x 200
    np.testing.assert_allclose(both[1].scores, [0.25])
    assert boxes.status.cameras == {"gate": FeedStatus(3, 3, 0, 0), "yard": FeedStatus(1, 1, 0, 0)}


def test_late_and_unmatched_lines_are_counted_and_told(
    make: Callable[..., ExternalBoxes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = make()
    with sender(tmp_path) as connected, caplog.at_level(logging.WARNING):
        connected.sendall(line(time=NOW) + line(time=NOW + 1))
        until(lambda: boxes.status.cameras["gate"].lines == 2)
        assert len(boxes.detect([frame(time_s=NOW + 1)])[0].boxes) == 1
        connected.sendall(line(time=NOW + 0.5) * 3 + line(time=NOW + 0.9))
        until(lambda: boxes.status.cameras["gate"].lines == 3)
        until(lambda: "check the sender's clock" in caplog.text)
    assert boxes.status.cameras["gate"] == FeedStatus(lines=3, used=1, unmatched=1, late=3)
    assert caplog.text.count("check the sender's clock") == 1
    assert boxes.status.refused == {}


def test_a_live_camera_never_waits_and_keeps_the_newest_lines(
    make: Callable[..., ExternalBoxes], tmp_path: Path
) -> None:
    boxes = make()
    begin = time.monotonic()
    assert len(boxes.detect([frame()])[0].boxes) == 0
    assert time.monotonic() - begin < 0.2
    with sender(tmp_path) as connected:
        total = WINDOW + 100
        connected.sendall(b"".join(line(time=NOW + number) for number in range(total)))
        until(lambda: boxes.status.cameras["gate"].lines == total)
        assert boxes.status.cameras["gate"].unmatched == 100
        assert len(boxes.detect([frame(time_s=NOW + total - 1)])[0].boxes) == 1


# Files


def feed_file(boxes: ExternalBoxes, frames: int, *, pause_s: float = 0.0) -> list[int]:
    """Frame numbers that got the box of their own number."""
    good = []
    for index in range(frames):
        found = boxes.detect([frame(index=index, time_s=index / 10, clock="stream")])[0]
        if len(found.boxes) == 1 and round(float(found.boxes[0, 1])) == index % 50:
            good.append(index)
        time.sleep(pause_s)
    return good


def numbered(frames: range) -> bytes:
    return b"".join(line(frame=n, boxes=[[5, n % 50, 60, 90]]) for n in frames)


def test_a_fast_sender_waits_for_the_file(make: Callable[..., ExternalBoxes]) -> None:
    """Four times as many lines as are kept: none is lost, and none is held beyond that."""
    reading, writing = os.pipe()
    boxes = make("-", descriptor=reading)
    frames = 4 * WINDOW

    def send() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(numbered(range(frames)))

    thread = threading.Thread(target=send)
    thread.start()
    assert feed_file(boxes, frames) == list(range(frames))
    thread.join(10)
    assert boxes.status.cameras["gate"] == FeedStatus(frames, frames, 0, 0)
    os.close(reading)


def test_a_file_waits_for_a_slow_sender_and_not_after_its_end(make: Callable[..., ExternalBoxes]) -> None:
    reading, writing = os.pipe()
    boxes = make("-", descriptor=reading)

    def send() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            for number in (0, 1, 3):  # no line for frame 2: seen by the line of frame 3
                time.sleep(0.1)
                pipe.write(numbered(range(number, number + 1))[: -1 if number == 3 else None])  # no line end

    thread = threading.Thread(target=send)
    thread.start()
    begin = time.monotonic()
    assert feed_file(boxes, 100) == [0, 1, 3]
    assert 0.3 <= time.monotonic() - begin < 5
    thread.join(10)
    os.close(reading)


def test_a_silent_sender_costs_one_wait_and_a_file_that_takes_nothing_too(
    make: Callable[..., ExternalBoxes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "FILE_WAIT_S", 0.4)
    monkeypatch.setattr(external, "ROOM_WAIT_S", 0.4)
    boxes = make()
    with sender(tmp_path) as connected:
        begin = time.monotonic()
        assert feed_file(boxes, 50) == []
        assert 0.4 <= time.monotonic() - begin < 2
        # The yard's file takes nothing: its lines are refused, and the gate's come through behind them.
        many = WINDOW + 50
        connected.sendall(b"".join(line("yard", frame=n) for n in range(many)) + numbered(range(60, 70)))
        until(lambda: boxes.status.cameras["gate"].lines == 10)
        assert boxes.status.refused == {"full": 50}
        found = boxes.detect([frame(index=60, clock="stream")])[0]
        assert len(found.boxes) == 1


def test_a_stop_ends_all_waiting(make: Callable[..., ExternalBoxes], tmp_path: Path) -> None:
    stop = threading.Event()
    boxes = make(stop=stop)
    with sender(tmp_path):
        threading.Timer(0.3, stop.set).start()
        begin = time.monotonic()
        boxes.detect([frame(clock="stream")])
        assert 0.25 < time.monotonic() - begin < 2


def test_frame_numbers_of_a_live_camera_are_refused(
    make: Callable[..., ExternalBoxes], tmp_path: Path
) -> None:
    boxes = make()
    boxes.detect([frame()])
    with sender(tmp_path) as connected:
        connected.sendall(line(frame=3) + line("nobody", time=NOW))
        until(lambda: boxes.status.refused == {"frame": 1, "camera": 1})


def test_standard_input_of_a_real_process() -> None:
    code = """
import numpy as np
from s3clip_runtime.streams.detection.choose import Choice, open_detectors
from s3clip_runtime.streams.frames import Frame
detectors = open_detectors({"a": Choice("-"), "b": Choice("-")})
image = np.zeros((100, 200, 3), np.uint8)
for index in range(3):
    found = detectors.of_camera("a").detect([Frame(name, index, index / 10, image) for name in "ab"])
    print([len(one.boxes) for one in found])
detectors.close()
"""
    text = b"".join(
        [line("b", frame=0), line("a", frame=0), b"\x00\xff\n", line("a", frame=2, boxes=[BOX] * 3)]
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, timeout=60)
    assert done.stdout.decode().split("\n")[:3] == ["[1, 1]", "[0, 0]", "[3, 0]"], done.stderr.decode()
    assert "not JSON in UTF-8" in done.stderr.decode()


# Who may connect


def connected_tcp(boxes: ExternalBoxes) -> socket.socket:
    assert boxes.port is not None
    return socket.create_connection(("127.0.0.1", boxes.port), timeout=10)


def ended(connected: socket.socket) -> bool:
    """Whether the other side has closed; it never sends anything."""
    connected.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        return connected.recv(1) == b""
    return True


@pytest.mark.parametrize("way", ["token_env", "token_file"])
def test_a_token_is_asked_for_first_and_never_shown(
    make: Callable[..., ExternalBoxes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    monkeypatch.setenv("BOXES_TOKEN", "s3cr3t")
    (tmp_path / "token").write_text("s3cr3t\n")
    name = {"token_env": "BOXES_TOKEN", "token_file": str(tmp_path / "token")}[way]
    boxes = make(f"tcp:0.0.0.0:0?{way}={name}")
    with caplog.at_level(logging.WARNING):
        for first in (line(time=NOW), b'{"token": "wr0ng"}\n', b'{"token": 5}\n', b"\xff\n"):
            with connected_tcp(boxes) as stranger:
                stranger.sendall(first + line(time=NOW))
                assert ended(stranger)
        with connected_tcp(boxes) as friend:
            friend.sendall(b'{"token": "s3cr3t"}\n' + line(time=NOW))
            until(lambda: boxes.status.cameras["gate"].lines == 1)
    assert boxes.status.dropped == 4
    assert boxes.status.refused == {"token": 3, "json": 1}
    assert "does not hold the token" in caplog.text
    for secret in ("s3cr3t", "wr0ng"):
        assert secret not in caplog.text + repr(boxes.status) + repr(parse_box_address(boxes.status.address))


def test_who_sends_no_token_in_time_is_dropped(
    make: Callable[..., ExternalBoxes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOXES_TOKEN", "s3cr3t")
    monkeypatch.setattr(box_server, "TOKEN_S", 0.1)
    boxes = make("tcp:127.0.0.1:0?token_env=BOXES_TOKEN")
    with connected_tcp(boxes) as silent:
        assert ended(silent)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("tcp:0.0.0.0:9000", "other machines could send boxes to 0.0.0.0"),
        ("tcp:192.168.1.5:9000", "other machines"),
        ("tcp:[::]:9000", "other machines"),
        ("tcp:example.com:9000", "other machines"),
        ("tcp:127.0.0.1", "is no address of boxes; write '-', unix:PATH"),
        ("tcp:127.0.0.1:70000", "is no address of boxes"),
        ("unix:", "is no address of boxes"),
        ("tcp:127.0.0.1:9000?token=s3cr3t", "has an unknown ending"),
        ("unix:/x?token_env=NOT_SET_ANYWHERE", "token_env NOT_SET_ANYWHERE is empty or not set"),
        ("unix:/x?token_file=/gone", "/gone cannot be read"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(address: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        parse_box_address(address)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    assert parse_box_address(f"tcp:{host}:0").token is None


def test_a_unix_socket_is_private_replaces_a_dead_one_and_refuses_a_living_one(
    make: Callable[..., ExternalBoxes], tmp_path: Path
) -> None:
    path = tmp_path / "boxes.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    boxes = make()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SourceError, match=r"boxes\.sock: cannot be listened on \(Address already in use\)"):
        make()
    with sender(tmp_path) as connected:
        connected.sendall(line(time=NOW))
        until(lambda: boxes.status.cameras["gate"].lines == 1)
    boxes.close()
    assert not path.exists()
    path.write_text("not a socket")
    with pytest.raises(SourceError):
        make()
    assert path.read_text() == "not a socket"


# Senders that mean harm


def random_harm(rng: random.Random) -> bytes:
    """Something that is not, or is only nearly, a good line."""
    good = line(time=NOW, boxes=[[rng.uniform(-1e6, 1e6) for _ in range(rng.randrange(7))]])
    mangled = bytearray(good)
    for _ in range(rng.randrange(1, 6)):
        mangled[rng.randrange(len(mangled))] = rng.randrange(256)
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 5000)),
            bytes(mangled),
            good[: rng.randrange(len(good))],
            b"[" * rng.randrange(1, 60_000) + b"\n",
            b'{"boxes":' * rng.randrange(1, 20_000) + b"\n",
            b'{"camera":"gate","time":NaN,"boxes":[]}\n',
            b'{"camera":"gate","time":1,"boxes":[[-Infinity,1,2,3]]}\n',
            line(time=NOW, boxes=[[50, 50, 10, 10]]),
            b"\n" * 2000,
            b"\r\n\x00\n" * 50,
            b"7" * 20_000 + b"\n",
        ]
    )


def harm(path: str, seed: int, over: threading.Event) -> None:
    """Connect again and again, send harm in pieces, end at any moment."""
    rng = random.Random(seed)
    while not over.is_set():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(1)
            connected.connect(path)
            for _ in range(rng.randrange(1, 40)):
                connected.sendall(random_harm(rng))
            if seed % 5 == 0:
                over.wait(0.5)  # stays, and neither reads nor writes
        over.wait(0.02)


def test_fifty_bad_senders_do_not_keep_a_good_one_out(
    make: Callable[..., ExternalBoxes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = make()
    before = threading.active_count()
    over = threading.Event()
    path = str(tmp_path / "boxes.sock")
    bad = [threading.Thread(target=harm, args=(path, seed, over)) for seed in range(50)]
    with contextlib.ExitStack() as held, caplog.at_level(logging.WARNING):
        held.callback(over.set)
        silent = [held.enter_context(sender(tmp_path)) for _ in range(5)]
        for thread in bad:
            thread.start()
        matched = 0
        for number in range(12):  # a new connection each time: the hardest case
            shown = frame("yard", time_s=NOW + number)
            with contextlib.suppress(OSError), sender(tmp_path) as good:
                good.sendall(line("yard", time=shown.time_s))
                deadline = time.monotonic() + 3
                while not len(found := boxes.detect([shown])[0].boxes) and time.monotonic() < deadline:
                    time.sleep(0.01)
                matched += len(found)
        over.set()
        for thread in bad:
            thread.join(20)
        assert len(silent) == 5
    assert matched >= 10  # one may be dropped before its line is read; it would connect again
    assert boxes.status.connections <= box_server.MAX_CONNECTIONS
    assert {"json", "boxes"} <= boxes.status.refused.keys()
    assert sum(boxes.status.refused.values()) > 200
    assert len(caplog.records) < 40  # counted, not a line of the log each
    boxes.close()
    until(lambda: threading.active_count() <= before)


def test_closing_while_a_connection_starts_waits_for_it(
    make: Callable[..., ExternalBoxes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, before, starting = make(), threading.active_count(), threading.Event()
    start = threading.Thread.start

    def slow(thread: threading.Thread) -> None:
        if thread.name.startswith("boxes "):
            starting.set()
            time.sleep(0.3)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slow)
    with sender(tmp_path):
        assert starting.wait(10)
        boxes.close()
        assert threading.active_count() < before  # neither the listening thread nor that of the sender
    assert boxes.status.connections == 0


def test_a_good_sender_that_stays_is_not_dropped_for_silent_ones(
    make: Callable[..., ExternalBoxes], tmp_path: Path
) -> None:
    boxes = make()
    with contextlib.ExitStack() as held:
        good = held.enter_context(sender(tmp_path))
        good.sendall(line(time=NOW))
        until(lambda: boxes.status.cameras["gate"].lines == 1)
        for _ in range(2 * box_server.MAX_CONNECTIONS):
            held.enter_context(sender(tmp_path))
        until(lambda: boxes.status.dropped >= box_server.MAX_CONNECTIONS)
        good.sendall(line(time=NOW + 1))
        until(lambda: boxes.status.cameras["gate"].lines == 2)
        until(lambda: boxes.status.connections <= box_server.MAX_CONNECTIONS)


def test_ten_megabytes_without_a_line_end_and_endless_rubbish_end_a_connection(
    make: Callable[..., ExternalBoxes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = make()
    with caplog.at_level(logging.WARNING):
        for data in (b"x" * 10_000_000, b"rubbish\n" * 10_000):
            with sender(tmp_path) as bad:
                with contextlib.suppress(OSError):
                    bad.sendall(data)
                assert ended(bad)
    assert boxes.status.dropped == 2
    assert boxes.status.refused["huge"] == 1
    assert boxes.status.refused["json"] == box_server.HOPELESS_LINES
    assert "is dropped: 8388608 bytes without a line end" in caplog.text
    with sender(tmp_path) as good:  # one line that is too long is forgiven
        good.sendall(b"x" * (MAX_LINE_BYTES + 1) + b"\n" + line(time=NOW))
        until(lambda: boxes.status.cameras["gate"].lines == 1)


# The documentation


def test_the_lines_of_the_documentation_are_read() -> None:
    lines = re.findall(r'^    (\{"camera".*\})$', DOCS.read_text("utf-8"), re.MULTILINE)
    assert [len(parse_line(text.encode()).boxes) for text in lines] == [2, 0, 1]


def test_the_jq_line_of_the_documentation_makes_lines_of_deepstreams() -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    found = re.search(r"^    jq -c --unbuffered '(.*)'$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    payload = {
        "version": "4.0",
        "id": "12",
        "@timestamp": "2018-04-11T04:59:59.828Z",
        "sensorId": "gate",
        "objects": ["957|18.5|15|91|215|Person|#|male|0.8", "1|1|1|2|2|Car", "3|10|20|30|40|person"],
    }
    done = subprocess.run(
        ["jq", "-c", found[1]],
        input=json.dumps(payload, indent=1),
        capture_output=True,
        text=True,
        check=True,
    )
    read = parse_line(done.stdout.encode().strip())
    assert read.camera == "gate"
    assert read.time_s == pytest.approx(1523422799.828, abs=1e-3)
    np.testing.assert_allclose(read.boxes, np.array([[18.5, 15, 91, 215, 1], [10, 20, 30, 40, 1]]))
