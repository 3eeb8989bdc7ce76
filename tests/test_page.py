"""The page: a real server, a real client, pictures that are decoded again."""

from __future__ import annotations

import gc
import http.client
import io
import json
import logging
import re
import shutil
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.gallery.records import Match
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.streams.events import RunnerUp, Sighting, SightingEvent
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.page.board import Board
from s3clip_runtime.streams.page.pictures import FRAME_WIDTH, thumbnail
from s3clip_runtime.streams.page.server import MAX_VIEWERS, PageServer
from s3clip_runtime.streams.status import (
    CameraStatus,
    FeedStatus,
    GalleryStatus,
    OutputStatus,
    Quantiles,
    RunStatus,
    SourceStatus,
    State,
)

TOKEN = "correct-horse-battery"
U8 = NDArray[np.uint8]


def demo_frames(name: str, numbers: list[int]) -> list[tuple[U8, list[Observation]]]:
    """Frames of a bundled video, counted from 0, with the persons of its truth file."""
    folder = Path(str(files("s3clip_runtime.demo")))
    boxes: dict[int, list[Observation]] = {}
    for line in (folder / f"{name}.txt").read_text().splitlines():
        frame, person, x, y, width, height = (float(word) for word in line.split(",")[:6])
        box = np.array([x, y, x + width, y + height], np.float32)
        boxes.setdefault(int(frame) - 1, []).append(Observation(int(person) % 1000, box, 0.9))
    found = []
    with av.open(str(folder / f"{name}.mp4")) as video:
        for number, picture in enumerate(video.decode(video=0)):
            if number in numbers:
                found.append((picture.to_ndarray(format="rgb24").astype(np.uint8), boxes.get(number, [])))
    return found


def crop(image: U8, one: Observation) -> U8:
    x1, y1, x2, y2 = (max(0, round(float(edge))) for edge in one.box)
    return image[y1:y2, x1:x2].copy()


def event(number: int = 1, **changes: object) -> SightingEvent:
    """A plausible event; the tracklet is numbered as the event."""
    plain = SightingEvent(
        schema="s3clip.sighting/3",
        event_id=f"20261125T080000Z-4f2a91-{number:06d}",
        run_id="20261125T080000Z-4f2a91",
        wall_time="2026-11-25T09:12:34.125Z",
        look="final",
        reason="gone",
        partial=False,
        clock="camera",
        first_s=1e9,
        last_s=1e9 + 4,
        first_time="2026-11-25T09:12:28.000Z",
        last_time="2026-11-25T09:12:33.480Z",
        camera="gate",
        platform="ground",
        epoch=0,
        track=number,
        part=0,
        tracklet=f"gate-{number}-0",
        frames=74,
        box=[10.0, 20.0, 40.0, 100.0],
        height_px=87.5,
        resolution="lr",
        enhanced=True,
        enhancement="used",
        decision="match",
        identity="anna",
        person="known",
        nearest="anna",
        score=0.8312,
        threshold=0.6,
        probability=0.9312,
        runner_up=RunnerUp("bert", 0.5121),
        latency_ms={
            "decode": 4.1,
            "detect": 11.9,
            "track": 0.8,
            "wait": 36.0,
            "enhance": 52.2,
            "embed": 48.7,
            "match": 0.4,
            "total": 154.1,
        },
        bundle="campus-2026-11",
        embedding_space="ab" * 32,
        chosen=None,
        embedding=[0.6, 0.8],
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # names and types as the caller gives them


def sighting(
    crops: tuple[U8, ...], pictures: U8 | None = None, *, number: int = 1, **changes: object
) -> Sighting:
    made = event(number, **changes)
    best = 0.8312 if made.score is None else made.score
    matches = () if made.decision == "no_gallery" else (Match("anna", best), Match("bert", best - 0.3191))
    return Sighting(made, Clip(crops, 0, hr=False), np.zeros(2, np.float32), matches, pictures)


def plausible_status() -> RunStatus:
    """A run with something of everything that the page can say."""
    now = time.time()
    gate = SourceStatus(
        State.LIVE, now - 93_000, fps=24.97, lag_s=0.418, clock="camera", size=(360, 640), received=2_322_110,
        drops={"overrun": 112, "corrupt": 3}, reconnects=2, restarts=1,
    )  # fmt: skip
    drone = replace(gate, since_unix_s=now - 400, fps=29.9, lag_s=None, clock="arrival", faults=("frozen",),
                    clock_skew_s=93.4, drops={}, restarts=0)  # fmt: skip
    yard = SourceStatus(
        State.DOWN, now - 65, reason="the camera closed the connection; next try in 12 s", received=881,
        clock="arrival", size=(360, 640), reconnects=17, lag_s=66.2,
    )  # fmt: skip
    north = SourceStatus(State.FAILED, now - 7000, reason="the camera refuses user or password (401)")
    return RunStatus(
        run_id="20261125T080000Z-4f2a91",
        bundle="campus-2026-11",
        device="cpu: onnx-fp32, 2 threads",
        started_unix_s=now - 93_784,
        cameras=(
            CameraStatus(
                "gate", "ground", True, gate, frames=2_321_995, fps=24.9, tracks_open=3, tracklets=10_812,
                too_short=230, events=21_007, shed=12, seconds=93_000,
            ),
            CameraStatus(
                "drone", "aerial", True, drone, frames=11_800, fps=29.8, tracklets=92, events=180,
                boxes=FeedStatus(11_790, 11_700, 40, 50),
            ),
            CameraStatus("yard", "ground", True, yard, frames=870, tracklets=7, too_short=1, events=12),
            CameraStatus("north-wall", "ground", True, north),
        ),
        queue=3,
        queue_limit=64,
        shed={"first": 0, "refined": 11, "final": 1},
        enhancing=False,
        enhance_reason="p95 of the last looks was 612 ms, the budget is 500 ms",
        latency_ms={
            "decode": Quantiles(4.1, 7.9, 12.0, 512),
            "detect": Quantiles(11.8, 19.4, 31.0, 512),
            "track": Quantiles(0.7, 1.9, 3.3, 512),
            "wait": Quantiles(36.0, 210.0, 371.5, 512),
            "enhance": Quantiles(52.0, 88.1, 101.9, 512),
            "embed": Quantiles(48.6, 79.9, 96.0, 512),
            "match": Quantiles(0.4, 0.9, 1.4, 512),
            "total": Quantiles(154.0, 402.0, 611.8, 512),
        },
        outputs=(
            OutputStatus("events.jsonl", delivered=21_199),
            OutputStatus("mqtt broker.local:1883", delivered=21_090, waiting=109, error="the broker refuses the connection; next try in 8 s"),  # noqa: E501
            OutputStatus("webhook https://example.org/***", delivered=21_120, lost=79),
        ),
        gallery=GalleryStatus(
            identities=1204,
            calibration="campus tracklets",
            calibrated_unix_s=now - 90_000,
            met=31,
            grown=17,
            vetoed=5,
            unwritten=2,
            trouble="gallery people.sqlite: database or disk is full; check the free space",
        ),
    )  # fmt: skip


def plausible_board() -> Board:
    """Frames of the demo's videos, and sightings whose crops come from them."""
    board = Board()
    numbers = [60, 64, 68, 72, 76, 80, 84, 88]
    taken = 0
    for camera, video in (("gate", "ground"), ("drone", "aerial"), ("yard", "ground")):
        frames = demo_frames(video, numbers)
        for image, people in frames:
            board.frame(Frame(camera, 0, 0.0, image), people)
        for person in [one.track for one in frames[0][1]]:
            crops = tuple(
                crop(image, one) for image, people in frames for one in people if one.track == person
            )
            if len(crops) == 8 and all(one.size for one in crops):
                taken += 1
                board.sighting(_varied(taken, camera, person, crops))
    return board


def _varied(number: int, camera: str, person: int, crops: tuple[U8, ...]) -> Sighting:
    pictures = np.stack([cv2.resize(one, (64, 128), interpolation=cv2.INTER_CUBIC) for one in crops])
    changes: dict[str, object] = {"camera": camera, "track": person, "tracklet": f"{camera}-{person}-0"}
    kind = number % 4
    if kind == 1:
        changes |= {
            "decision": "unknown",
            "identity": None,
            "person": None,
            "score": 0.4127,
            "look": "first",
            "reason": "growing",
        }
    if kind == 3:
        changes |= {"decision": "unknown", "identity": "unknown-1a2b3c4d", "person": "candidate"}
    if kind == 2:
        changes |= {"enhancement": "hr", "resolution": "hr", "enhanced": False}
    return sighting(crops, None if kind == 2 else pictures.astype(np.uint8), number=number, **changes)


def plain(height: int = 90, width: int = 160, value: int = 90) -> U8:
    return np.full((height, width, 3), value, np.uint8)


def person(track: int, box: tuple[float, float, float, float]) -> Observation:
    return Observation(track, np.array(box, np.float32), 0.9)


def small_board() -> Board:
    """One camera, one sighting with crops before (red) and after (blue) super-resolution."""
    board = Board()
    board.frame(Frame("gate", 0, 0.0, plain()), [person(1, (20, 30, 50, 80))])
    red, blue = np.zeros((40, 20, 3), np.uint8), np.zeros((8, 128, 64, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    board.sighting(sighting((red,) * 8, blue))
    return board


def live_status(**changes: object) -> RunStatus:
    source = SourceStatus(State.LIVE, time.time(), received=5, size=(90, 160))
    plain_run = RunStatus("run", "tiny", "cpu", time.time(), (CameraStatus("gate", "ground", True, source),))
    return replace(plain_run, **changes)  # type: ignore[arg-type]  # as in `event`


@contextmanager
def serving(
    board: Board | None = None, status: RunStatus | None = None, token: str | None = None
) -> Iterator[PageServer]:
    shown = live_status() if status is None else status
    page = PageServer(board or small_board(), lambda: shown, host="127.0.0.1", port=0, token=token)
    with page:
        yield page


class Got:
    """An answer that has been read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()
        self.text = self.body.decode("utf-8", "replace")


def port_of(page: PageServer) -> int:
    return int(page.url.rstrip("/").rpartition(":")[2])


def get(page: PageServer, path: str, method: str = "GET", **headers: str) -> Got:
    client = http.client.HTTPConnection("127.0.0.1", port_of(page), timeout=10)
    try:
        client.request(method, path, headers=headers)
        return Got(client.getresponse())
    finally:
        client.close()


def decoded(jpeg: bytes) -> U8:
    return np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def far(one: U8, other: U8) -> NDArray[np.int64]:
    """Largest difference of the channels, pixel by pixel."""
    return np.asarray(np.abs(one.astype(np.int64) - other.astype(np.int64)).max(axis=-1), np.int64)


ADDRESSES = [
    ("/", "text/html; charset=utf-8"),
    ("/?sightings=all", "text/html; charset=utf-8"),
    ("/page.css", "text/css; charset=utf-8"),
    ("/page.js", "text/javascript; charset=utf-8"),
    ("/icon.svg", "image/svg+xml"),
    ("/status.json", "application/json"),
    ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
    ("/healthz", "application/json"),
    ("/cameras/gate.jpg", "image/jpeg"),
    ("/cameras/gate.jpg?frame=1", "image/jpeg"),
    ("/sightings/20261125T080000Z-4f2a91-000001.jpg", "image/jpeg"),
    ("/sightings/20261125T080000Z-4f2a91-000001.jpg?what=after", "image/jpeg"),
]


def test_every_address_answers_with_its_kind_and_the_security_headers() -> None:
    with serving() as page:
        for path, kind in ADDRESSES:
            answer = get(page, path)
            assert (path, answer.status, answer.headers["Content-Type"]) == (path, 200, kind)
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert "unsafe" not in answer.headers["Content-Security-Policy"]
            head = get(page, path, "HEAD")
            assert (head.status, head.body) == (200, b"")
        assert get(page, "/cameras/gate.mjpeg", "HEAD").status == 200


def test_unknown_addresses_are_404_and_other_methods_405() -> None:
    with serving() as page:
        for path in (
            "/nothing", "/cameras/other.jpg", "/cameras/other.mjpeg", "/cameras/", "/cameras/gate.png",
            "/sightings/other.jpg", "/cameras/gate.jpg/more", "/page.html", "/web/page.css", "/../page.css",
        ):  # fmt: skip
            assert (path, get(page, path).status) == (path, 404)
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "NONSENSE"):
            answer = get(page, "/", method)
            assert (method, answer.status, answer.headers["Allow"]) == (method, 405, "GET, HEAD")


def test_picture_is_the_frame_with_boxes() -> None:
    image = plain()
    board = Board()
    board.frame(Frame("gate", 0, 0.0, image), [person(1, (20, 40, 60, 80))])
    board.frame(Frame("yard", 0, 0.0, plain(value=30)), [])
    with serving(board) as page:
        seen = decoded(get(page, "/cameras/gate.jpg").body)
        other = decoded(get(page, "/cameras/yard.jpg").body)
    assert seen.shape == image.shape
    assert far(seen, image)[45:75, 20].min() > 40  # the left edge of the box
    assert far(seen, image)[:, 100:].max() <= 4  # nothing is drawn beside it
    assert far(other, plain(value=30)).max() <= 2
    assert (image == 90).all()  # the caller's frame is as it was


def test_wide_frames_are_reduced_and_boxes_with_them() -> None:
    board = Board()
    board.frame(Frame("gate", 0, 0.0, plain(1440, 2560)), [person(1, (1000, 400, 1400, 1200))])
    shot = board.shot("gate")
    assert shot is not None
    seen = decoded(shot.jpeg)
    assert seen.shape == (540, FRAME_WIDTH, 3)
    changed = np.flatnonzero(far(seen, plain(540, FRAME_WIDTH))[300] > 40)
    assert abs(changed[0] - 375) <= 2
    assert abs(changed[-1] - 525) <= 2


def test_a_name_that_is_known_stands_on_the_box() -> None:
    image = plain(360, 640)
    shots = []
    for decision, score in (("no_gallery", None), ("match", 0.83)):
        board = Board()
        board.frame(Frame("gate", 0, 0.0, image), [person(1, (100, 100, 150, 200))])
        board.sighting(sighting((plain(40, 20),), number=1, decision=decision, score=score))
        shot = board.shot("gate")
        assert shot is not None
        shots.append(decoded(shot.jpeg))
    marks = [np.flatnonzero((far(shot, image)[80:98] > 40).any(axis=0)) for shot in shots]
    assert marks[1].max() - marks[1].min() > 2 * (marks[0].max() - marks[0].min())  # "#1" and "#1 anna 0.83"


def test_a_frame_is_encoded_once_for_all_and_again_when_it_is_replaced() -> None:
    board = small_board()
    first = board.shot("gate")
    assert first is not None
    assert board.shot("gate") is first
    board.frame(Frame("gate", 1, 0.1, plain(value=10)), [])
    second = board.shot("gate")
    assert second is not None
    assert second.version > first.version
    assert decoded(second.jpeg).max() < 20


def test_taking_a_frame_costs_below_a_tenth_of_a_millisecond_and_keeps_one_a_camera() -> None:
    board = Board()
    image = plain(1080, 1920)
    people = [person(track, (0, 0, 10, 10)) for track in range(20)]
    before = time.process_time()
    for index in range(2000):
        board.frame(Frame("gate", index, 0.0, image), people)
    assert (time.process_time() - before) / 2000 < 1e-4
    assert board.newest("gate") is not None
    gone = weakref.ref(image)
    del image
    board.frame(Frame("gate", 2000, 0.0, plain()), [])
    gc.collect()
    assert gone() is None


def test_a_later_look_replaces_the_earlier_one_and_the_oldest_goes() -> None:
    board = Board(keep=3)
    for number in range(1, 5):
        board.sighting(sighting((plain(40, 20),), number=number))
    assert [seen.event.track for seen in board.sightings()] == [4, 3, 2]
    board.sighting(sighting((plain(40, 20),), number=9, tracklet="gate-2-0"))
    assert [seen.event.event_id[-1] for seen in board.sightings()] == ["9", "4", "3"]
    board.sighting(sighting((plain(40, 20),), number=5, camera="yard"))
    board.forget_camera("gate")
    assert [seen.event.camera for seen in board.sightings()] == ["yard"]
    assert board.status() == OutputStatus("page", delivered=6)
    board.close()
    assert board.sightings() == []


def test_kept_crops_are_small_copies() -> None:
    large = np.random.default_rng(0).integers(0, 255, (900, 400, 3)).astype(np.uint8)
    assert thumbnail(large).shape == (128, 64, 3)
    left_red = np.zeros((800, 350, 3), np.uint8)
    left_red[:, :175, 0] = 200
    assert thumbnail(left_red)[64, [10, 54]].tolist() == [[200, 0, 0], [0, 0, 0]]
    small = plain(30, 100)
    assert thumbnail(small).shape == (30, 64, 3)
    exact = plain(100, 50)
    assert thumbnail(exact).base is None
    assert not np.shares_memory(thumbnail(exact), exact)
    board = Board()
    board.sighting(sighting((large,) * 8, np.zeros((8, 128, 64, 3), np.uint8)))
    seen = board.sightings()[0]
    assert sum(one.nbytes for one in (*seen.before, *seen.after)) <= 16 * 128 * 64 * 3
    assert seen.event.embedding is None


def test_strips_show_the_crops_before_and_after() -> None:
    address = "/sightings/20261125T080000Z-4f2a91-000001.jpg"
    with serving() as page:
        before = decoded(get(page, f"{address}?what=before").body)
        after = decoded(get(page, f"{address}?what=after").body)
        assert get(page, address).body == get(page, f"{address}?what=before").body
        assert get(page, f"{address}?what=nonsense").status == 400
    assert before.shape == after.shape == (128, 8 * 64 + 7 * 2, 3)
    for number in range(8):
        middle = number * 66 + 32
        assert before[64, middle].tolist() == pytest.approx([200, 0, 0], abs=12)
        assert after[64, middle].tolist() == pytest.approx([0, 0, 200], abs=12)


def test_without_super_resolution_there_is_no_picture_after_it() -> None:
    board = Board()
    board.sighting(sighting((plain(200, 90),), enhancement="hr"))
    with serving(board) as page:
        assert get(page, "/sightings/20261125T080000Z-4f2a91-000001.jpg?what=after").status == 404
        assert "super-resolution is not needed" in get(page, "/").text


class Viewer:
    """Reads a stream of pictures part by part, as a browser does."""

    def __init__(self, page: PageServer, camera: str = "gate") -> None:
        self.client = socket.create_connection(("127.0.0.1", port_of(page)), timeout=4)
        self.client.sendall(f"GET /cameras/{camera}.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self.response = http.client.HTTPResponse(self.client)
        self.response.begin()
        kind = self.response.headers["Content-Type"]
        self.boundary = b"--" + kind.partition("boundary=")[2].encode()

    def part(self) -> U8:
        lines = [self.response.readline().strip() for _ in range(4)]
        lines = lines if lines[0] else [*lines[1:], self.response.readline().strip()]
        assert lines[0] == self.boundary
        assert lines[1] == b"Content-Type: image/jpeg"
        length = int(lines[2].partition(b": ")[2])
        assert lines[3] == b""
        return decoded(self.response.read(length))

    def close(self) -> None:
        self.response.close()
        self.client.close()


def test_stream_gives_each_viewer_the_frames_as_they_come() -> None:
    board = small_board()
    with serving(board) as page:
        viewers = [Viewer(page), Viewer(page)]
        assert viewers[0].boundary == b"--s3clip-frame"
        for viewer in viewers:
            assert viewer.part().shape == (90, 160, 3)
        for value in (10, 240):
            board.frame(Frame("gate", value, 0.0, plain(value=value)), [])
            for viewer in viewers:
                assert far(viewer.part(), plain(value=value)).max() <= 3
        board.forget_camera("gate")
        for viewer in viewers:
            assert viewer.response.read().strip() == viewer.boundary  # and then it ends
            viewer.close()


def test_stream_sends_nothing_while_nothing_is_new() -> None:
    with serving() as page:
        viewer = Viewer(page)
        viewer.part()
        viewer.response.readline()
        viewer.response.readline()  # the boundary that ends the part
        viewer.client.settimeout(0.7)
        with pytest.raises(TimeoutError):
            viewer.response.read(1)
        viewer.close()


def test_only_so_many_viewers_and_a_place_comes_back() -> None:
    board = small_board()
    with serving(board) as page:
        viewers = [Viewer(page) for _ in range(MAX_VIEWERS)]
        for viewer in viewers:
            viewer.part()
        assert get(page, "/cameras/gate.mjpeg").status == 503
        assert get(page, "/").status == 200
        viewers.pop().close()
        until = time.monotonic() + 5
        while time.monotonic() < until:
            board.frame(Frame("gate", 1, 0.0, plain()), [])  # a viewer who left is noticed by sending
            late = Viewer(page)
            if late.response.status == 200:
                break
            late.close()
        assert late.response.status == 200
        for viewer in (*viewers, late):
            viewer.close()


def test_token_is_needed_everywhere() -> None:
    with serving(token=TOKEN) as page:
        for path, _ in (*ADDRESSES, ("/nothing", ""), ("/cameras/gate.mjpeg", "")):
            if path != "/healthz":
                answer = get(page, path)
                assert (path, answer.status) == (path, 401)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                assert "tiny" not in answer.text
                assert get(page, path, "POST").status == 401
        for path, kind in ADDRESSES:
            answer = get(page, path, Authorization=f"Bearer {TOKEN}")
            assert (path, answer.status, answer.headers["Content-Type"]) == (path, 200, kind)
        for wrong in (
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer ",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer \xff",
        ):
            assert get(page, "/", Authorization=wrong).status == 401


def test_token_in_the_address_becomes_a_cookie_once() -> None:
    with serving(token=TOKEN) as page:
        assert get(page, f"/?token={TOKEN}x").status == 401
        answer = get(page, f"/cameras/gate.jpg?frame=1&token={TOKEN}")
        assert (answer.status, answer.headers["Location"]) == (303, "./gate.jpg?frame=1")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        pair = cookie.partition(";")[0]
        assert get(page, "/", Cookie=f"a=b; {pair}").status == 200
        assert get(page, "/", Cookie=f"{pair}0").status == 401
        assert get(page, "/", Cookie=pair.partition("=")[0]).status == 401
        assert get(page, f"/?token={TOKEN}").headers["Location"] == "./"
        assert get(page, f"//evil.example/?token={TOKEN}").headers["Location"] == "./"
        assert TOKEN not in get(page, "/", Cookie=pair).text
    with serving(token=TOKEN + "2") as page:
        assert get(page, "/", Cookie=pair).status == 401


def test_health_without_the_token_says_one_word_on_loopback() -> None:
    broken = live_status(outputs=(OutputStatus("mqtt secret.example:1883", error="refused"),))
    with serving(status=broken, token=TOKEN) as page:
        answer = get(page, "/healthz")
        assert (answer.status, json.loads(answer.body)) == (503, {"status": "degraded"})
        full = json.loads(get(page, "/healthz", Authorization=f"Bearer {TOKEN}").body)
        assert full == {"status": "degraded", "reasons": ["output mqtt secret.example:1883: refused"]}
    with PageServer(small_board(), live_status, host="0.0.0.0", port=0, token=TOKEN) as page:
        assert get(page, "/healthz").status == 401


@pytest.mark.parametrize(
    ("host", "token", "words"),
    [
        ("0.0.0.0", None, "can be reached from other machines"),
        ("", None, "can be reached from other machines"),
        ("::", None, "can be reached from other machines"),
        ("192.0.2.7", None, "set token_file or token_env"),
        ("box.example", None, "set token_file or token_env"),
        ("127.0.0.1", "short", "16 or more"),
        ("127.0.0.1", "with a space in it all", "without spaces"),
        ("127.0.0.1", "längst lang genug für alle", "ASCII"),
    ],
)
def test_refuses_to_be_open_or_easy_to_guess(host: str, token: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        PageServer(Board(), live_status, host=host, port=0, token=token)
    assert token is None or token not in str(refused.value)


def test_foreign_names_of_this_machine_are_refused_without_a_token() -> None:
    with serving() as page:
        port = port_of(page)
        for host in (f"127.0.0.1:{port}", "localhost", "localhost:9000", "LOCALHOST.:1", "[::1]:80"):
            assert get(page, "/", Host=host).status == 200
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "",
            "localhost@evil:1",
        ):
            assert get(page, "/status.json", Host=host).status == 421
            assert get(page, "/healthz", Host=host).status == 421
    with serving(token=TOKEN) as page:  # with a token any name will do
        assert get(page, "/", Host="box.example", Authorization=f"Bearer {TOKEN}").status == 200


def test_no_log_line_and_no_answer_holds_the_token(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> RunStatus:
        raise RuntimeError("no status")

    caplog.set_level(logging.DEBUG)
    with PageServer(small_board(), broken, host="0.0.0.0", port=0, token=TOKEN) as page:
        texts = [
            get(page, "/", Authorization=f"Bearer {TOKEN}").text,
            get(page, f"/?token={TOKEN}").text,
            get(page, f"/?token={TOKEN}wrong").text,
            get(page, f"/metrics?token={TOKEN}%20", Authorization=f"Bearer {TOKEN}").text,
            repr(page),
            page.url,
        ]
        with socket.create_connection(("127.0.0.1", port_of(page)), timeout=5) as raw:
            raw.sendall(f"GET /?token={TOKEN} HTTP/9.x y\r\n\r\n".encode())
            texts.append(raw.recv(65536).decode())
    assert "no status" in caplog.text  # the fault itself is told
    assert "wrong token" in caplog.text
    assert "not encrypted" in caplog.text
    assert all(TOKEN not in one for one in (*texts, caplog.text))


def test_a_broken_status_is_a_500_and_the_next_request_works() -> None:
    answers: list[RunStatus] = []

    def status() -> RunStatus:
        return answers.pop()  # IndexError while there is none

    with PageServer(small_board(), status, host="127.0.0.1", port=0, token=None) as page:
        assert get(page, "/").status == 500
        assert get(page, "/metrics").status == 500
        assert get(page, "/cameras/gate.jpg").status == 200
        answers.append(live_status())
        assert get(page, "/").status == 200


class Elements(HTMLParser):
    """All elements with their attributes, and all text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp; $name"


def test_names_and_reasons_are_text_wherever_they_stand() -> None:
    source = replace(plausible_status().cameras[1].source, reason=EVIL + " reason")
    status = replace(
        plausible_status(),
        run_id=EVIL + " run",
        bundle=EVIL + " bundle",
        device=EVIL + " device",
        enhance_reason=EVIL + " enhance",
        cameras=(
            CameraStatus(EVIL + " camera", EVIL + " platform", True, source, error=EVIL + " error"),
            CameraStatus("gate", "ground", True, source),
        ),
        shed={EVIL + " stage": 3},
        outputs=(OutputStatus(EVIL + " output", error=EVIL + " fault"),),
        gallery=GalleryStatus(1, EVIL + " data", 0.0, trouble=EVIL + " trouble"),
    )
    board = small_board()
    board.frame(Frame(EVIL + " camera", 0, 0.0, plain()), [])
    changes: dict[str, object] = {
        "event_id": EVIL + " event",
        "tracklet": EVIL + " tracklet",
        "camera": EVIL + " camera",
        "identity": EVIL + " identity",
    }
    made = sighting((plain(40, 20),), np.zeros((1, 128, 64, 3), np.uint8), number=1, **changes)
    board.sighting(replace(made, matches=(Match(EVIL + " matched", 0.7),)))
    with serving(board, status) as page:
        document = Elements(get(page, "/").text)
        pictures = [values["src"] or "" for name, values in document.found if name == "img"]
        assert len(pictures) == 6
        assert [get(page, f"/{one}").status for one in pictures] == [200] * 6
    assert [values for name, values in document.found if name == "script"] == [
        {"src": "page.js", "defer": None}
    ]
    assert not [
        key for _, values in document.found for key in values if key.startswith("on") or key == "style"
    ]
    for what in (
        "run", "bundle", "device", "enhance", "camera", "reason", "error", "stage", "output", "fault",
        "identity", "matched", "platform", "data", "trouble",
    ):  # fmt: skip
        assert f"{EVIL} {what}" in document.text, what


def test_page_tells_everything_about_a_run() -> None:
    with serving(small_board(), plausible_status()) as page:
        told = re.sub(r"\s+", " ", Elements(get(page, "/").text).text)
    for words in (
        "degraded", "1,204 identities", "1 d 2 h", "3 of 64", "shed: 11 refined, 1 final",
        "the budget is 500 ms", "live", "down", "failed", "112 overrun, 3 corrupt",
        "25.0 (24.9 processed)", "0.42 s", "640 × 360",
        "11,790 lines (50 late, 40 without a frame)", "The picture is frozen", "1 min 33 s ahead of ours",
        "10,812 (230 too short)", "21,007 (12 shed)",
        "the camera refuses user or password (401)", "the broker refuses the connection", "109", "611.8",
        "calibrated on campus tracklets", "31 unknown people met", "17 views grown",
        "5 matches vetoed by time", "2 looks not written", "gallery people.sqlite: database or disk is full",
        "match", "anna", "0.831", "0.512", "threshold 0.60, right with probability 0.93",
        "final look: the person left", "154 ms",
        "2026-11-25 09:12:28 to 09:12:33 UTC",
    ):  # fmt: skip
        assert words in told, words


def test_a_sighting_without_a_decision_says_why() -> None:
    for decision, words in (
        ("no_gallery", "no gallery"),
        ("not_embedded", "before there was time to embed"),
        ("not_matched", "the gallery could not be asked"),
        ("unknown", "the gallery is empty"),
    ):
        board = Board()
        made = sighting((plain(40, 20),), decision=decision, identity=None, score=None, threshold=None)
        board.sighting(replace(made, matches=(), embedding=None))
        with serving(board) as page:
            assert words in Elements(get(page, "/").text).text


def test_an_unknown_person_is_shown_by_id_and_an_uncalibrated_look_without_a_limit() -> None:
    board = Board()
    someone: dict[str, object] = {
        "decision": "unknown",
        "identity": "unknown-1a2b3c4d",
        "person": "candidate",
    }
    board.sighting(sighting((plain(40, 20),), None, number=1, **someone))
    no_limit: dict[str, object] = {
        "decision": "uncalibrated",
        "threshold": None,
        "probability": None,
        "identity": None,
        "person": None,
    }
    board.sighting(sighting((plain(40, 20),), None, number=2, **no_limit))
    status = replace(plausible_status(), gallery=GalleryStatus(3))
    with serving(board, status) as page:
        told = re.sub(r"\s+", " ", Elements(get(page, "/").text).text)
    assert "unknown unknown-1a2b3c4d (candidate)" in told
    assert "no threshold: the gallery is uncalibrated" in told
    assert "3 identitiesuncalibrated: nobody is named" in told
    own = replace(status, gallery=GalleryStatus(3, threshold=0.71))
    with serving(board, own) as page:
        assert "threshold 0.71 as set" in Elements(get(page, "/").text).text


def test_page_of_a_run_that_has_seen_nothing() -> None:
    with serving(Board(), RunStatus("run", "tiny", "cpu", time.time())) as page:
        told = Elements(get(page, "/").text).text
    for words in ("No camera is configured.", "Nobody has been seen yet.", "No look has", "No output is"):
        assert words in told


def test_older_sightings_are_shown_on_request() -> None:
    board = Board()
    for number in range(1, 31):
        board.sighting(sighting((plain(40, 20),), number=number))
    with serving(board) as page:
        few, all_of_them = get(page, "/").text, get(page, "/?sightings=all").text
    assert (few.count("<figure>"), all_of_them.count("<figure>")) == (12, 30)
    assert 'href="?sightings=all">all 30 that are kept' in few


def test_status_json_is_the_status() -> None:
    status = plausible_status()
    odd = replace(
        status,
        latency_ms={"wait": Quantiles(float("nan"), float("inf"), 1.5, 3)},
        shed=MappingProxyType({"first": 2}),
    )
    with serving(status=status) as page:
        assert json.loads(get(page, "/status.json").body) == json.loads(json.dumps(asdict(status)))
    with serving(status=odd) as page:
        found = json.loads(get(page, "/status.json").body)
        assert get(page, "/").status == 200
    assert found["latency_ms"] == {"wait": {"p50": None, "p95": None, "p99": 1.5, "count": 3}}
    assert found["shed"] == {"first": 2}


@pytest.mark.parametrize(
    ("states", "error", "code", "reasons"),
    [
        (["live", "down"], "", 200, []),
        (["ended"], "", 200, []),
        (["down", "stale"], "", 503, ["no camera delivers: c0 is down, c1 is stale"]),
        (["connecting"], "", 503, ["no camera delivers: c0 is connecting"]),
        (["failed"], "full", 503, ["no camera delivers: c0 is failed", "output disk: full"]),
        (["live"], "full", 503, ["output disk: full"]),
        ([], "", 503, ["no camera delivers: none is configured"]),
    ],
)
def test_health(states: list[str], error: str, code: int, reasons: list[str]) -> None:
    cameras = tuple(
        CameraStatus(f"c{number}", "ground", True, SourceStatus(State(state), 0.0))
        for number, state in enumerate(states)
    )
    with serving(status=live_status(cameras=cameras, outputs=(OutputStatus("disk", error=error),))) as page:
        answer = get(page, "/healthz")
    assert answer.status == code
    assert json.loads(answer.body) == {"status": "degraded" if reasons else "ok", "reasons": reasons}


def test_close_ends_everything_within_two_seconds() -> None:
    threads = threading.active_count()
    page = PageServer(small_board(), live_status, host="127.0.0.1", port=0, token=None)
    page.start()
    port = port_of(page)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(5)]
    viewers = [Viewer(page) for _ in range(3)]
    for viewer in viewers:
        viewer.part()
    before = time.monotonic()
    page.close()
    assert time.monotonic() - before < 2
    page.close()
    assert [one.recv(10) for one in silent] == [b""] * 5
    for client in silent:
        client.close()
    for viewer in viewers:
        viewer.close()
    assert threading.active_count() == threads
    with PageServer(small_board(), live_status, host="127.0.0.1", port=port, token=None) as again:
        assert get(again, "/healthz").status == 200  # the port is free at once


def test_a_taken_port_is_told() -> None:
    with (
        serving() as page,
        pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port_of(page)} cannot be listened"),
    ):
        PageServer(Board(), live_status, host="127.0.0.1", port=port_of(page), token=None).start()
    with pytest.raises(ConfigError, match="cannot be listened on"):
        PageServer(Board(), live_status, host="127.0.0.1", port=70000, token=None).start()


def test_listens_on_ipv6() -> None:
    try:
        page = PageServer(small_board(), live_status, host="::1", port=0, token=None)
        page.start()
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    with page_closed(page):
        assert page.url.startswith("http://[::1]:")
        client = http.client.HTTPConnection("::1", port_of(page), timeout=5)
        client.request("GET", "/healthz")
        assert client.getresponse().status == 200
        client.close()


@contextmanager
def page_closed(page: PageServer) -> Iterator[None]:
    try:
        yield
    finally:
        page.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_real_browser_shows_it_and_follows_the_run(tmp_path: Path) -> None:
    calls: list[float] = []

    def status() -> RunStatus:
        calls.append(time.monotonic())
        return live_status(bundle=f"bundle-{len(calls)}")

    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
        "--disable-background-networking", "--virtual-time-budget=7000", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    board = small_board()
    with PageServer(board, status, host="127.0.0.1", port=0, token=TOKEN) as page:
        address = f"{page.url}?sightings=all&token={TOKEN}"
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    numbers = [int(number) for number in re.findall(r"<dd>bundle-(\d+)</dd>", done.stdout)]
    assert numbers
    assert numbers[0] > 1  # the script fetched the page again and put its parts into the first one
    assert "only the newest" in done.stdout  # at the address without the token
    assert TOKEN not in done.stdout
    assert "Refused to" not in done.stderr  # nothing that the page needs is against its own policy
    assert "violates" not in done.stderr
