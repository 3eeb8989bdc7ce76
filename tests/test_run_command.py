"""s3clip-run as a user runs it: a process, its files, its exit code and its words."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from street import FPS, Street, write_street
from tiny_bundle import DIM, SPACE

from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.records import Space

COMMAND = [sys.executable, "-c", "from s3clip_runtime.cli.run import main; main(prog_name='s3clip-run')"]


def s3clip_run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def usual(bundle_folder: Path) -> list[str]:
    """The options of every run here."""
    return ["--bundle", str(bundle_folder), "--device", "cpu", "--threads", "1"]


def assert_refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(sentence, done.stderr.splitlines()[-1]), done.stderr


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom s3clip_runtime.cli.run import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'cv2', 'av', 'onnxruntime', 'PIL', 'pydantic', 'trackers', 'numpy', 'torch'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--detector" in done.stdout


def test_everything_at_once(street: Street, usual: list[str], tmp_path: Path) -> None:
    """Moving rectangles are found without any truth, and all outputs are written."""
    events = tmp_path / "events.jsonl"
    done = s3clip_run(
        f"gate={street.video}@ground", *usual, "--events", events, "--embedding",
        "--annotate", tmp_path / "videos", "--contact-sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert re.search(r"gate: 120 frames \([\d.]+ fps\), 5 tracklets.*, 5 events", done.stderr)
    found = events_of(events.read_text())
    assert len(found) == 5
    for walker, event in enumerate(sorted(found, key=lambda event: float(event["first_s"]))):
        seen = street.seen(walker, street.frames)
        assert event["last_s"] == pytest.approx(seen[-1] / FPS, abs=0.21)
        assert (event["camera"], event["platform"], event["decision"]) == ("gate", "ground", "no_gallery")
        assert np.linalg.norm(event["embedding"]) == pytest.approx(1, abs=1e-5)
        assert event["height_px"] == pytest.approx(60, abs=6)
    with av.open(str(tmp_path / "videos" / "gate.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 120
    assert Image.open(tmp_path / "sheet.png").height > 5 * 128


def test_events_go_to_stdout_and_gallery_names_people(
    street: Street, usual: list[str], tmp_path: Path
) -> None:
    source = [f"gate={street.video}@ground", "--detector", f"gate={street.boxes}"]
    first = events_of(s3clip_run(*source, *usual, "--embedding").stdout)
    with Gallery.open(tmp_path / "people.sqlite", Space(SPACE, DIM)) as gallery:
        for event in first:
            vector = np.array([event["embedding"]], np.float32)
            gallery.enrol(f"p{event['track']}", vector, platform="ground", source="gate")
    done = s3clip_run(*source, *usual, "--gallery", tmp_path / "people.sqlite")
    assert done.returncode == 0, done.stderr
    assert "people.sqlite is uncalibrated, so nobody is named; measure its thresholds with" in done.stderr
    second = events_of(done.stdout)
    assert {(event["decision"], event["identity"], event["threshold"]) for event in second} == {
        ("uncalibrated", None, None)
    }
    assert [event["nearest"] for event in second] == [f"p{event['track']}" for event in first]
    assert all(event["score"] > 0.999 and event["embedding"] is None for event in second)
    strict = s3clip_run(*source, *usual, "--gallery", tmp_path / "people.sqlite", "--threshold", "0.5")
    assert "uncalibrated" not in strict.stderr
    third = events_of(strict.stdout)
    assert [event["identity"] for event in third] == [f"p{event['track']}" for event in first]
    assert {(event["decision"], event["threshold"]) for event in third} == {("match", 0.5)}


def test_a_gallery_on_a_server_is_named_like_a_file(street: Street, usual: list[str], dsn: str) -> None:
    source = [f"gate={street.video}@ground", "--detector", f"gate={street.boxes}"]
    first = events_of(s3clip_run(*source, *usual, "--embedding").stdout)
    with Gallery.open(dsn, Space(SPACE, DIM)) as gallery:
        rows = np.array([first[2]["embedding"]], np.float32)
        gallery.enrol("anna", rows, platform="ground", source="gate")
    done = s3clip_run(*source, *usual, "--gallery", dsn, "--threshold", "0.995")
    assert done.returncode == 0, done.stderr
    assert [event["identity"] for event in events_of(done.stdout)] == [None, None, "anna", None, None]
    assert "gallery: its password stands on the command line" in done.stderr
    assert "unused" not in done.stdout + done.stderr
    away = dsn.replace("host=", "host=%2Fnowhere")
    refused = s3clip_run(*source, *usual, "--gallery", away)
    assert_refused(refused, "gallery postgres")
    assert "unused" not in refused.stderr


def test_unknown_people_keep_their_ids_from_run_to_run(
    street: Street, bundle_folder: Path, tmp_path: Path
) -> None:
    with Gallery.open(tmp_path / "people.sqlite", Space(SPACE, DIM)):
        pass
    (tmp_path / "site.toml").write_text(
        f'bundle = "{bundle_folder}"\ngallery = "people.sqlite"\nthreshold = 0.995\n'
        'device = "cpu"\nthreads = 1\n'
        "[identities]\nunknowns = true\npromote_after = 2\nmin_quality = 0\n"
        '[outputs.events]\npath = "events.jsonl"\n'
        f'[[cameras]]\nname = "gate"\nplatform = "ground"\nurl = "{street.video}"\n'
        f'detector = "{street.boxes}"\n'
    )
    for _ in range(2):
        done = s3clip_run("--site", tmp_path / "site.toml")
        assert done.returncode == 0, done.stderr
    events = events_of((tmp_path / "events.jsonl").read_text())
    first, second = events[:5], events[5:]
    ids = [event["identity"] for event in first]
    assert len(set(ids)) == 5
    assert all(id.startswith("unknown-") for id in ids)
    assert [event["identity"] for event in second] == ids
    assert [event["person"] for event in first] == ["candidate"] * 5
    assert [event["person"] for event in second] == ["unknown"] * 5
    assert {event["decision"] for event in events} == {"unknown"}


def test_interrupt_writes_what_was_seen(usual: list[str], tmp_path: Path) -> None:
    street = write_street(tmp_path, frames=1500, walkers=73)
    path = tmp_path / "events.jsonl"
    options = [*usual, "--detector", str(street.boxes), "--events", str(path)]
    line = [*COMMAND, f"gate={street.video}@ground", *options]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (path.is_file() and path.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)  # the first event is written: it is in the middle now
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "stopping: what was seen is still told" in errors
    summary = re.search(r"gate: (\d+) frames .* (\d+) events", errors)
    assert summary is not None
    frames, events = int(summary[1]), events_of(path.read_text())
    assert 0 < frames < street.frames
    assert len(events) == int(summary[2])
    # Those who were in view for two to five frames may or may not have become a track yet.
    sure = [walker for walker in range(street.walkers) if len(street.seen(walker, frames)) >= 6]
    possible = [walker for walker in range(street.walkers) if len(street.seen(walker, frames)) >= 2]
    assert len(sure) <= len(events) <= len(possible)
    for walker, event in zip(sure, sorted(events, key=lambda event: float(event["first_s"])), strict=False):
        assert event["last_s"] == pytest.approx(street.seen(walker, frames)[-1] / FPS, abs=1e-3)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("gone.mp4@ground", r"gone\.mp4.*no such file"),
        (f"text={Path(__file__)}@ground", "not a readable video"),
        ("x.mp4@sea", "does not end in its platform"),
        ("x.mp4", "does not end in its platform"),
        ("gopher://host/x@ground", "scheme 'gopher'"),
    ],
)
def test_bad_source_is_one_line(source: str, sentence: str, usual: list[str]) -> None:
    done = s3clip_run(source, *usual)
    assert_refused(done, sentence)
    assert done.stdout == ""


def test_one_camera_fails_the_other_is_complete(street: Street, usual: list[str]) -> None:
    done = s3clip_run(
        "gone=gone.mp4@aerial", f"here={street.video}@ground", *usual, "--detector", f"here={street.boxes}"
    )
    assert_refused(done, r"source gone \(gone\.mp4\): no such file")
    assert [event["camera"] for event in events_of(done.stdout)] == ["here"] * 5
    assert "gone: 0 frames (0.0 fps), 0 tracklets, 0 events - FAILED" in done.stderr


def test_nobody_there(usual: list[str], tmp_path: Path) -> None:
    street = write_street(tmp_path, frames=40, walkers=0)
    sheet = tmp_path / "sheet.png"
    done = s3clip_run(
        f"{street.video}@ground", *usual, "--contact-sheet", sheet, "--annotate", tmp_path / "v"
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "No person was seen, so there are no events." in done.stderr
    assert sheet.is_file()
    assert (tmp_path / "v" / "street.mp4").is_file()


def test_full_disk_loses_no_event(street: Street, usual: list[str]) -> None:
    done = s3clip_run(f"{street.video}@ground", *usual, "--detector", street.boxes, "--events", "/dev/full")
    assert_refused(done, "5 events could not be written to /dev/full")
    assert len(events_of(done.stdout)) == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cpu"], "no source is given"),
        (["x.mp4@ground"], "no bundle is given; make one with s3clip-export"),
        (["x.mp4@ground", "--demo"], "leave out a source"),
        (["x.mp4@ground", "--bundle", "nowhere"], "the folder does not exist"),
        (["x.mp4@ground", "--bundle", "nowhere", "--out", "here"], "--out belongs to --demo"),
        (["a=x.mp4@ground", "a=y.mp4@ground", "--bundle", "b"], "two sources are named 'a'"),
        (["x.mp4@ground", "--bundle", "b", "--detector", "magic"], r"\[x\]\.detector: no such file.*'magic'"),
        (["x.mp4@ground", "--bundle", "b", "--detector", "y=background"], "no source is named 'y'"),
        (["x.mp4@ground", "--bundle", "b", "--detector", "gone.txt"], r"gone\.txt"),
        (["x.mp4@ground", "--bundle", "b", "--detector", "gone.onnx"], r"gone\.onnx"),
        (["x.mp4@ground", "--bundle", "b", "--tiles", "2x2"], "tiles: works with a network"),
        (["x.mp4@ground", "--bundle", "b", "--tiles", "2"], "is not ROWSxCOLS"),
    ],
)  # fmt: skip
def test_wrong_command_line_is_one_line(words: list[str], sentence: str) -> None:
    assert_refused(s3clip_run(*words), sentence)


def test_a_target_is_obeyed_or_refused(street: Street, usual: list[str]) -> None:
    source, boxes = f"{street.video}@ground", ("--detector", street.boxes)
    done = s3clip_run(source, *usual, *boxes, "--target", "onnx-fp32")
    assert done.returncode == 0
    assert "onnx-fp32 as asked" in done.stderr
    assert_refused(
        s3clip_run(source, *usual, "--target", "onnx-fp16"), "holds no onnx-fp16 graphs, only onnx-fp32"
    )
    assert_refused(
        s3clip_run(source, *usual, "--target", "fast"), "target 'fast' is unknown; use one of onnx-fp32"
    )


def test_missing_gallery_is_not_made(street: Street, usual: list[str], tmp_path: Path) -> None:
    done = s3clip_run(f"{street.video}@ground", *usual, "--gallery", tmp_path / "typo.sqlite")
    assert_refused(done, r"typo\.sqlite")
    assert not (tmp_path / "typo.sqlite").exists()
    alone = s3clip_run(f"{street.video}@ground", *usual, "--threshold", "0.5")
    assert_refused(alone, "threshold: needs a gallery")


class _Camera(BaseHTTPRequestHandler):
    """Sends the street as MPEG-TS at about its own speed, then goes dark without closing."""

    stream = b""
    dark = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        step = len(self.stream) // 60
        for start in range(0, len(self.stream), step):
            self.wfile.write(self.stream[start : start + step])
            time.sleep(0.1)
        self.dark.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def http_camera(street: Street, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "street.ts"
    with av.open(str(street.video)) as given, av.open(str(path), "w", "mpegts") as taken:
        stream = taken.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                taken.mux(packet)
    _Camera.stream = path.read_bytes()
    _Camera.dark.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/street"
        _Camera.dark.set()
        server.shutdown()


@pytest.mark.slow
def test_live_stream_that_goes_dark(http_camera: str, usual: list[str], tmp_path: Path) -> None:
    """The last person is reported although no frame comes any more; SIGTERM ends in order."""
    line = [*COMMAND, f"gate={http_camera}@aerial", *usual, "--annotate", str(tmp_path / "v")]
    began = time.time()
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "secret" not in errors
    assert event["clock"] == "arrival"
    assert began < event["first_s"] < event["last_s"] < time.time()
    assert event["first_time"].startswith(time.strftime("%Y-%m-%dT%H", time.gmtime(event["first_s"])))
    assert re.search(r"gate: \d+ frames .* frames dropped: .*, \d+ reconnects, \d+ events", errors)
    with av.open(str(tmp_path / "v" / "gate.mkv")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    done = s3clip_run("--demo", "--out", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    totals = re.search(r"(\d+) tracklets: (\d+) right, (\d+) wrong, (\d+) unknown", done.stdout)
    assert totals is not None
    assert int(totals[2]) > int(totals[1]) / 2, "most people are found again"
    assert "Synthetic" in done.stdout
    events = events_of((tmp_path / "events.jsonl").read_text())
    assert len(events) == int(totals[1])
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"ground.mp4", "aerial.mp4", "contact_sheet.png", "gallery.sqlite", "mine.txt"}


def test_one_frame_tracks_and_crops_of_6_and_2000_px_give_events(usual: list[str], tmp_path: Path) -> None:
    """Tiny, huge and usual people, each in two frames: one confirms the track, one is the tracklet."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(rng.integers(0, 256, (2100, 1200, 3), dtype=np.uint8)).save(pictures / f"{index}.png")
    people = {(1, 2): "10,10,6,6", (3, 4): "50,40,1000,2000", (5, 6): "700,900,60,150"}
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("".join(f"{n},1,{box},1\n" for frames, box in people.items() for n in frames))
    words = [f"{pictures}@aerial", *usual, "--detector", str(boxes)]
    done = s3clip_run(*words, "--min-frames", "1")
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    assert [event["frames"] for event in events] == [1, 1, 1]
    resolutions = {event["height_px"]: event["resolution"] for event in events}
    assert resolutions == {6.0: "lr", 150.0: "lr", 2000.0: "hr"}
    by_default = s3clip_run(*words)
    assert (by_default.returncode, by_default.stdout) == (0, "")
    assert "3 too short, left out" in by_default.stderr
    assert "No person was seen" in by_default.stderr
