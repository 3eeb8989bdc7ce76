"""Sinks against real files: full disks, torn lines, and what a reader finds in the pictures."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from made_sightings import MATCH, UNKNOWN, sightings, text, with_pictures
from PIL import Image

from s3clip_runtime.errors import SinkError, SourceError
from s3clip_runtime.gallery.recognition.deciding import Recognised
from s3clip_runtime.streams.events import Sighting, Unasked
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.looks import Stage
from s3clip_runtime.streams.outputs import annotate
from s3clip_runtime.streams.outputs.annotate import FileAnnotator, LiveAnnotator
from s3clip_runtime.streams.outputs.contact_sheet import ContactSheet, write_png
from s3clip_runtime.streams.outputs.drawing import Label, SheetRow, contact_sheet, draw_labels
from s3clip_runtime.streams.outputs.json_lines import JsonLines
from s3clip_runtime.streams.outputs.stored_pictures import stored_pictures
from s3clip_runtime.streams.outputs.video import AnnotatedVideo
from s3clip_runtime.streams.reading.addresses import SourceSpec


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes fail, after a part has been written: what a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_appends_a_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"old": 1}\n')
    many = sightings(2)
    with JsonLines(path) as sink:
        sink.sighting(many[0])
        assert path.read_text() == '{"old": 1}\n' + text(many[:1])
        sink.sighting(many[1])
    assert path.read_text() == '{"old": 1}\n' + text(many)


def test_torn_last_line_of_a_crash_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"torn": ')
    many = sightings(1)
    with JsonLines(path) as sink:
        sink.sighting(many[0])
    assert path.read_text() == '{"torn": \n' + text(many)


def test_full_disk_keeps_lines_whole_and_catches_up_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(12)
    with JsonLines(path) as sink:
        with largest_file(len(text(many[:4])) + 100):
            for one in many[:8]:
                sink.sighting(one)
            assert path.read_text() == text(many[:4])  # nothing of the fifth
        for one in many[8:]:
            sink.sighting(one)
        assert path.read_text() == text(many)


def test_close_catches_up_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(5)
    sink = JsonLines(path)
    with largest_file(1000):
        for one in many:
            sink.sighting(one)
    sink.close()
    assert path.read_text() == text(many)


def test_what_never_fits_goes_to_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    old = "{}\n" * 10_000  # the limit holds for the captured stdout too, which must not reach it
    path.write_text(old)
    many = sightings(5)
    sink = JsonLines(path)
    with largest_file(len(old) + len(text(many[:2])) + 1):
        for one in many:
            sink.sighting(one)
        with pytest.raises(
            SinkError, match=r"3 events could not be written to .*events\.jsonl.*standard output"
        ):
            sink.close()
    assert path.read_text() + capfd.readouterr().out == old + text(many)


def test_device_that_is_always_full(capfd: pytest.CaptureFixture[str]) -> None:
    many = sightings(3)
    sink = JsonLines(Path("/dev/full"))
    for one in many:
        sink.sighting(one)
    with pytest.raises(SinkError, match="3 events could not be written to /dev/full"):
        sink.close()
    assert capfd.readouterr().out == text(many)


def test_really_full_file_system(small_disk: Path) -> None:
    path, filler = small_disk / "events.jsonl", small_disk / "filler"
    many = sightings(60)
    with JsonLines(path) as sink:
        filler.write_bytes(b"x" * 389_120)  # leaves five pages of 4 KiB
        for one in many[:-1]:
            sink.sighting(one)
        kept = path.read_text()
        assert 0 < kept.count("\n") < 59
        assert text(many[: kept.count("\n")]) == kept
        filler.unlink()
        sink.sighting(many[-1])
        assert path.read_text() == text(many)


def test_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"events cannot be written to .*: No such file or directory"):
        JsonLines(tmp_path / "missing" / "events.jsonl")


def test_closed_pipe_is_one_error_and_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from made_sightings import sightings\n"
        "from s3clip_runtime.streams.outputs.json_lines import JsonLines\n"
        "from s3clip_runtime.errors import SinkError\n"
        "sink = JsonLines(None)\n"
        "for one in sightings(3): sink.sighting(one)\n"
        "try: sink.close()\n"
        "except SinkError as error: sys.stderr.write(str(error))\n"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert b"3 events were lost" in done.stderr
    assert b"Traceback" not in done.stderr


def test_annotated_video_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    video = AnnotatedVideo(path, (121, 161), 10)
    times = [5.0, 5.1, 5.25, 6.0]
    for number, time_s in enumerate(times):
        video.write(np.full((121, 161, 3), (40 * number, 100, 200), np.uint8), time_s)
    video.write(np.full((300, 20, 3), (200, 100, 50), np.uint8), 6.5)  # the camera changed its size
    video.close()
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert [round(float(frame.time or 0), 3) for frame in frames] == [0.0, 0.1, 0.25, 1.0, 1.5]
    assert {(frame.height, frame.width) for frame in frames} == {(120, 160)}
    colours = [frame.to_ndarray(format="rgb24").mean(axis=(0, 1)) for frame in frames]
    np.testing.assert_allclose(colours[2], (80, 100, 200), atol=6)
    np.testing.assert_allclose(colours[4], (200, 100, 50), atol=6)


def test_annotated_video_on_a_full_disk(tmp_path: Path) -> None:
    with largest_file(50_000), pytest.raises(SinkError, match="make room on the disk"):
        _write_noise(tmp_path / "out.mkv")
    with pytest.raises(SinkError, match="cannot be created"):
        AnnotatedVideo(tmp_path / "missing" / "out.mp4", (240, 320), 10)


def _write_noise(path: Path) -> None:
    rng = np.random.default_rng(0)
    video = AnnotatedVideo(path, (240, 320), 10)
    for number in range(40):
        video.write(rng.integers(0, 256, (240, 320, 3)).astype(np.uint8), number / 10)
    video.close()


def test_png_is_lossless_rgb(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    write_png(tmp_path / "äöü.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "äöü.png")), image)
    with pytest.raises(SinkError, match="cannot be written"):
        write_png(tmp_path / "missing" / "x.png", image)


def test_labels_touch_only_their_surroundings() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    drawn = draw_labels(image, [Label(1, (100, 80, 140, 180), "#1 Ærø 0.83")])
    changed = (drawn != 128).any(axis=2)
    assert changed[80:181, 100].all()
    assert changed[80:181, 140].all()
    assert changed[80, 100:141].all()
    assert changed[180, 100:141].all()
    assert not changed[90:170, 110:130].any()  # inside
    assert not changed[185:].any()
    assert not changed[:, :95].any()
    assert changed[60:80].any()  # the text
    assert (image == 128).all()


def test_label_at_the_border_stays_in_the_frame() -> None:
    drawn = draw_labels(np.zeros((100, 200, 3), np.uint8), [Label(0, (190, 0, 199, 40), "#12 somebody 0.99")])
    assert (drawn[:16, 90:190] > 200).all(axis=2).any()  # white letters, pushed left of the box


def test_contact_sheet_shows_the_very_pixels() -> None:
    rng = np.random.default_rng(0)
    crops = tuple(rng.integers(0, 256, (128, 64, 3)).astype(np.uint8) for _ in range(8))
    enhanced = rng.integers(0, 256, (8, 128, 64, 3)).astype(np.uint8)
    row = SheetRow(("cam #1",), crops, enhanced, (), "truth x: ok", True)
    small = SheetRow(("cam #2",), (crops[0][:2, :1],) * 8, None, (), "", None)
    sheet = contact_sheet([row, small], "title")
    for picture in (*crops, *enhanced):
        assert _holds(sheet, picture)
    block = np.repeat(np.repeat(crops[0][:2, :1], 64, axis=0), 64, axis=1)
    assert _holds(sheet, block)  # enlarged without smoothing
    assert contact_sheet([], "title").shape[1:] == sheet.shape[1:]


def test_contact_sheet_has_a_row_for_each_final_sighting(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    first, plain, enhanced = (*sightings(1, stage="first"), *sightings(2, decision=MATCH, seed=1))
    enhanced = with_pictures(enhanced)
    assert enhanced.pictures is not None
    sheet = ContactSheet(path, "title", {})
    for one in (first, plain, enhanced):
        sheet.sighting(one)
    assert sheet.status().delivered == 2
    sheet.write(lambda one: ("fine", True))
    drawn = np.asarray(Image.open(path))
    assert drawn.shape[0] == contact_sheet([], "title").shape[0] + 152  # a second row
    assert all(_holds(drawn, picture) for picture in enhanced.pictures)


def _holds(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether `picture` is somewhere in `sheet`, pixel for pixel."""
    height, width = picture.shape[:2]
    corners = np.argwhere((sheet == picture[0, 0]).all(axis=2))
    return any(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in corners)


def looks(track: int, *given: tuple[int, Stage, float, Recognised | Unasked]) -> list[Sighting]:
    """Sightings of one track of camera c: part, stage, last_s and decision."""
    made = []
    for part, stage, last_s, decision in given:
        one = sightings(1, stage=stage, decision=decision)[0]
        made.append(replace(one, event=replace(one.event, track=track, part=part, last_s=last_s)))
    return made


def record_texts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts on each frame that is drawn from now on."""
    drawn: list[list[str]] = []

    def recorded(image: np.ndarray, labels: list[Label]) -> np.ndarray:
        drawn.append([label.text for label in labels])
        return draw_labels(image, labels)

    monkeypatch.setattr(annotate, "draw_labels", recorded)
    return drawn


BOX = np.array([10, 10, 30, 50], np.float32)


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_file_is_drawn_with_the_last_look_at_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = tmp_path / "in.mp4" if kind == "video" else tmp_path / "in"
    images = [np.full((120, 160, 3), 20 * number, np.uint8) for number in range(10)]
    if kind == "video":
        video = AnnotatedVideo(source, (120, 160), 10)
        for number, image in enumerate(images):
            video.write(image, number / 10)
        video.close()
    else:
        source.mkdir()
        for number, image in enumerate(images):
            write_png(source / f"{number + 5}.png", image)  # 10 comes after 9, not after 1
    spec = SourceSpec("c", str(source), "ground")
    annotator = FileAnnotator(spec, tmp_path / "out.mp4")
    for number in range(8):  # the run was stopped before the end
        observations = [Observation(3, BOX, 1), *([Observation(4, BOX, 1)] if number == 0 else [])]
        annotator.frame(Frame("c", number, number / 10, images[number]), observations)
    for one in looks(
        3,
        (0, "first", 0.1, UNKNOWN),
        (1, "first", 0.5, MATCH),  # before the end of part 0 came out
        (0, "final", 0.3, MATCH),
        (1, "refined", 0.55, MATCH),
        (1, "final", 0.6, UNKNOWN),
    ):
        annotator.sighting(one)
    drawn = record_texts(monkeypatch)
    annotator.write()
    assert drawn[0] == ["#3 anna 0.91", "#4"]
    assert drawn[1:] == [["#3 anna 0.91"]] * 3 + [["#3 unknown 0.30"]] * 4
    shown = [
        picture.mean() for picture, _ in stored_pictures(SourceSpec("o", str(tmp_path / "out.mp4"), "ground"))
    ]
    np.testing.assert_allclose(np.diff(shown), 20, atol=8)  # the right pictures in the right order
    assert annotator.status().delivered == 5


def test_file_that_is_gone_is_told(tmp_path: Path) -> None:
    spec = SourceSpec("c", str(tmp_path / "gone.mp4"), "ground")
    annotator = FileAnnotator(spec, tmp_path / "out.mp4")
    with pytest.raises(SourceError, match=r"gone\.mp4.*leave it in place"):
        annotator.write()


def test_live_video_shows_the_newest_look_and_forgets_old_tracks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "_TRACKS_REMEMBERED", 2)
    drawn = record_texts(monkeypatch)
    annotator = LiveAnnotator(SourceSpec("c", "rtsp://x", "ground"), tmp_path / "out.mkv")
    frame = Frame("c", 0, 0.0, np.zeros((120, 160, 3), np.uint8))
    for one in (
        None,
        *looks(3, (0, "first", 0.1, UNKNOWN), (0, "final", 0.2, MATCH)),
        *looks(4, (0, "first", 0.1, MATCH)),
    ):
        if one is not None:
            annotator.sighting(one)
        annotator.frame(frame, [Observation(3, BOX, 1)])
    annotator.sighting(looks(5, (0, "first", 0.1, MATCH))[0])
    annotator.frame(frame, [Observation(3, BOX, 1)])
    annotator.close()
    annotator.write()  # already ended
    assert drawn == [["#3 …"], ["#3 unknown 0.30"], ["#3 anna 0.91"], ["#3 anna 0.91"], ["#3 …"]]
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert len(list(container.decode(video=0))) == 5
