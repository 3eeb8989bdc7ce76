"""JSON lines over months: rotation under a reader, kill -9, two runs, a disk that stays full."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_sightings import sightings, text, wait_for
from test_sinks import largest_file

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.outputs import json_lines
from s3clip_runtime.streams.outputs.json_lines import Fsync, JsonLines


def in_order(path: Path) -> str:
    """What all files together hold, oldest first."""
    rotated = [file for file in path.parent.glob(path.name + ".*") if file.suffix[1:].isdigit()]
    files = [*sorted(rotated, key=lambda file: -int(file.suffix[1:])), path]
    return "".join(file.read_text() for file in files)


def test_rotates_between_lines_and_keeps_all(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(30)
    limit = 5000
    with JsonLines(path, rotate_bytes=limit, keep=20) as sink:
        for one in many:
            sink.sighting(one)
        assert sink.status().delivered == 30
    files = sorted(tmp_path.iterdir())
    assert len(files) > 5
    assert all(file.stat().st_size <= limit and file.read_text().endswith("\n") for file in files)
    assert in_order(path) == text(many)


def test_keeps_so_many_files_and_lines_larger_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(9)
    with JsonLines(path, rotate_bytes=10, keep=3) as sink:
        for one in many:
            sink.sighting(one)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        path.name + end for end in ("", ".1", ".2", ".3")
    ]
    assert in_order(path) == text(many[-4:])


def test_a_gap_left_by_a_crash_while_rotating_deletes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for name in (".2", ".3"):  # .1 had just been moved to .2
        (tmp_path / f"events.jsonl{name}").write_text(f'"{name}"\n')
    many = sightings(2)
    with JsonLines(path, rotate_bytes=10, keep=3) as sink:
        for one in many:
            sink.sighting(one)
    assert in_order(path) == '".3"\n".2"\n' + text(many)


@pytest.mark.slow
def test_reader_that_follows_the_name_misses_nothing(tmp_path: Path) -> None:
    path, seen = tmp_path / "events.jsonl", tmp_path / "seen"
    path.touch()
    many = sightings(40)
    with (
        seen.open("wb") as out,
        subprocess.Popen(
            ["tail", "-n", "+1", "--sleep-interval=0.05", "-F", str(path)],
            stdout=out,
            stderr=subprocess.DEVNULL,
        ) as tail,
    ):
        try:
            with JsonLines(path, rotate_bytes=12_000, keep=9) as sink:
                for one in many:
                    sink.sighting(one)
                    time.sleep(0.03)
            assert path.with_name("events.jsonl.2").exists()
            wait_for(lambda: seen.read_text().count("\n") >= 40)
        finally:
            tail.kill()
    assert seen.read_text() == text(many)


def test_rotation_that_fails_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "events.jsonl"
    (small_disk / "events.jsonl.new").mkdir()  # in the way
    many = sightings(6)
    with JsonLines(path, rotate_bytes=2000) as sink:
        for one in many:
            sink.sighting(one)
    assert path.read_text() == text(many)


_WRITER = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from made_sightings import sightings
from s3clip_runtime.streams.outputs.json_lines import JsonLines
sink = JsonLines(Path(sys.argv[2]), rotate_bytes=20000, keep=1000, fsync=sys.argv[3])
many = sightings(200)
print("ready", flush=True)
for one in many * 1000:
    sink.sighting(one)
    print(one.event.line(), flush=True)
"""


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_kill_9_costs_at_most_the_line_being_written(tmp_path: Path, fsync: Fsync) -> None:
    path, told = tmp_path / "events.jsonl", tmp_path / "told"
    with told.open("wb") as out:
        command = [sys.executable, "-c", _WRITER, str(Path(__file__).parent), str(path), fsync]
        writer = subprocess.Popen(command, stdout=out)
        try:
            wait_for(lambda: told.read_bytes().count(b"\n") > 50)
            time.sleep(random.uniform(0, 0.2))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
    accepted = told.read_text().removeprefix("ready\n").rpartition("\n")[0].splitlines()
    written = in_order(path).splitlines()
    assert written[: len(accepted)] == accepted
    assert len(written) <= len(accepted) + 1
    assert all(json.loads(line) for line in written[:-1])
    with JsonLines(path) as sink:  # the lock went with the process
        sink.sighting(sightings(1)[0])
    assert path.read_text().endswith(text(sightings(1)))


def test_two_runs_on_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(3)
    with JsonLines(path, rotate_bytes=10) as sink:
        for one in many:  # the lock goes with the name through rotations
            sink.sighting(one)
            with pytest.raises(SinkError, match=r"events\.jsonl is in use by another output or run"):
                JsonLines(path)
    JsonLines(path).close()


def test_what_waits_is_written_without_a_new_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(6)
    with JsonLines(path) as sink:
        with largest_file(len(text(many[:2])) + 10):
            for one in many:
                sink.sighting(one)
            status = sink.status()
            assert (status.delivered, status.waiting, status.lost, status.error) == (
                2,
                4,
                0,
                "File too large",
            )
        wait_for(lambda: sink.status().waiting == 0)
        assert path.read_text() == text(many)
        assert sink.status().error == ""


@pytest.mark.slow
def test_many_lines_wait_and_what_is_refused_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(200) * 10
    monkeypatch.setattr(json_lines, "WAITING_BYTES", len(text(many)) + 10)
    sink = JsonLines(path)
    with largest_file(0):
        for one in many:
            sink.sighting(one)
        assert (sink.status().waiting, sink.status().lost) == (2000, 0)
        sink.sighting(many[0])
        assert (sink.status().waiting, sink.status().lost) == (2000, 1)
    with pytest.raises(SinkError, match=r"1 events for .* are lost"):
        sink.close()
    assert path.read_text() == text(many)


def test_file_moved_or_deleted_by_others_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    many = sightings(3)
    with JsonLines(path) as sink:
        sink.sighting(many[0])
        path.rename(tmp_path / "moved")
        sink.sighting(many[1])
        wait_for(path.exists)
        sink.sighting(many[2])
    assert (tmp_path / "moved").read_text() == text(many[:2])
    assert path.read_text() == text(many[2:])


@pytest.mark.parametrize(("fsync", "after_writing", "after_closing"), [("never", 0, 0), ("always", 3, 3)])
def test_syncs_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, after_writing: int, after_closing: int
) -> None:
    synced = record_syncs(monkeypatch)
    with JsonLines(tmp_path / "events.jsonl", fsync=fsync) as sink:
        for one in sightings(3):
            sink.sighting(one)
        assert synced.count("events.jsonl") == after_writing
    assert synced.count("events.jsonl") == after_closing


@pytest.mark.slow
def test_syncs_every_second_and_rotated_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = record_syncs(monkeypatch)
    many = sightings(2)
    with JsonLines(tmp_path / "events.jsonl", fsync="interval", rotate_bytes=10) as sink:
        for one in many:
            sink.sighting(one)
        assert synced == []  # `sighting` waits for no disk
        wait_for(lambda: len(synced) == 4)
        assert sorted(synced) == sorted(["events.jsonl", "events.jsonl.1", tmp_path.name, tmp_path.name])
        time.sleep(1.2)
        assert len(synced) == 4  # nothing new, nothing to sync


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is really synced from now on."""
    synced: list[str] = []
    fsync = os.fsync

    def recorded(fd: int) -> None:
        fsync(fd)
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    monkeypatch.setattr(os, "fsync", recorded)
    return synced


def test_options_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 files"):
        JsonLines(tmp_path / "x", keep=0)
    with pytest.raises(ConfigError, match=r"standard output is no file, so it cannot be rotated"):
        JsonLines(None, rotate_bytes=1)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    policies: tuple[Fsync, ...] = ("never", "interval", "always")
    for fsync in policies:
        with JsonLines(tmp_path / fsync, rotate_bytes=10, fsync=fsync) as sink:
            for one in sightings(20):
                sink.sighting(one)
    assert len(os.listdir("/proc/self/fd")) == before
