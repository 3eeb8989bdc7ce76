"""The spool against kill -9, full disks, its limits, and a slow obvious queue."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made_sightings import wait_for

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.outputs import spool as spool_module
from s3clip_runtime.streams.outputs.spool import Spool

MB = 2**20


def drained(spool: Spool) -> list[str]:
    found = []
    while (item := spool.oldest()) is not None:
        assert item.payload.startswith(item.event_id.encode())
        found.append(item.event_id)
        assert spool.acknowledge(item)
    return found


def put(spool: Spool, *numbers: int, length: int = 50) -> None:
    for number in numbers:
        spool.append(f"e{number}", f"e{number}".encode().ljust(length, b"."))


def test_first_in_first_out_over_restarts_as_a_list_does_it(tmp_path: Path) -> None:
    rng = random.Random(0)
    truth: list[str] = []
    number = 0
    spool = Spool(tmp_path / "q", MB)
    for _ in range(400):
        match rng.choice(["append", "append", "acknowledge", "look", "tend", "restart"]):
            case "append":
                put(spool, number)
                truth.append(f"e{number}")
                number += 1
            case "acknowledge" if truth:
                item = spool.oldest()
                assert item is not None
                assert item.event_id == truth.pop(0)
                assert spool.acknowledge(item)
            case "look":
                item = spool.oldest()
                assert (item and item.event_id) == (truth[0] if truth else None)
            case "tend":
                spool.tend()
            case "restart" if rng.random() < 0.3:
                assert spool.close() == 0
                spool = Spool(tmp_path / "q", MB)
        assert spool.waiting == len(truth)
    assert drained(spool) == truth
    assert (spool.lost, spool.error) == (0, "")
    spool.close()


def test_the_oldest_go_when_too_much_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "q", 10_000)
    put(spool, 0)
    in_flight = spool.oldest()
    put(spool, *range(1, 100), length=900)  # 1000 each with their row
    assert (spool.waiting, spool.lost) == (10, 90)
    assert in_flight is not None
    assert not spool.acknowledge(in_flight)  # it was dropped, and counts once
    assert (spool.waiting, spool.lost) == (10, 90)
    assert drained(spool) == [f"e{number}" for number in range(90, 100)]
    assert "the oldest are dropped" in caplog.text
    assert len(caplog.records) == 1
    spool.close()


def test_file_stays_small_for_ever(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q", 200_000)
    for start in range(0, 3000, 100):
        put(spool, *range(start, start + 100), length=900)
        spool.tend()
    size = sum(file.stat().st_size for file in tmp_path.iterdir() if not file.name.endswith("-shm"))
    assert size < 2_200_000  # of 48 MB that were written
    assert (tmp_path / "q").stat().st_size < 280_000
    spool.close()


_WRITER = """
import sys
from pathlib import Path
from s3clip_runtime.streams.outputs.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 24)
for number in range(10**6):
    spool.append(f"e{number}", f"e{number}".encode())
    if number % 50 == 49:
        spool.tend()
    if number % 4 == 3:
        item = spool.oldest()
        spool.acknowledge(item)
        print("done", item.event_id, flush=True)
    print("kept", f"e{number}", flush=True)
"""


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with told.open("wb") as out:
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path / "q")], stdout=out)
        try:
            wait_for(lambda: told.read_bytes().count(b"\n") > 300)
            time.sleep(random.uniform(0, 0.2))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
    lines = told.read_text().rpartition("\n")[0].splitlines()
    kept = [line[5:] for line in lines if line.startswith("kept")]
    done = len(lines) - len(kept)
    spool = Spool(tmp_path / "q", MB)
    found = drained(spool)
    spool.close()
    first = int(found[0][1:])
    assert first in (done, done + 1)  # one may have been forgotten before it was told
    assert found[: len(kept) - first] == kept[first:]
    assert len(found) <= len(kept) - first + 1


def test_full_disk_then_room_again(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_RETRY_S", 0.0)
    filler = small_disk / "filler"
    spool = Spool(small_disk / "q", MB)
    put(spool, 0)
    spool.tend()
    free = os.statvfs(small_disk)
    filler.write_bytes(b"x" * (free.f_bavail * free.f_bsize - 40_000))
    put(spool, *range(1, 100), length=1000)
    assert (spool.waiting, spool.lost) == (100, 0)
    assert "full" in spool.error
    # What is delivered meanwhile is not delivered twice, though the full disk cannot forget it.
    taken = [spool.oldest() for _ in range(1)]
    assert taken[0] is not None
    spool.acknowledge(taken[0])
    following = spool.oldest()
    assert following is not None
    assert following.event_id == "e1"
    filler.unlink()
    spool.tend()
    assert spool.error == ""
    assert spool.close() == 0
    again = Spool(small_disk / "q", MB)
    assert drained(again) == [f"e{number}" for number in range(1, 100)]
    again.close()


def test_memory_is_bounded_and_the_end_is_counted(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_module, "MEMORY_BYTES", 20_000)
    spool = Spool(small_disk / "q", MB)
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * free.f_bavail * free.f_bsize)
    put(spool, *range(50), length=900)
    assert (spool.waiting, spool.lost) == (20, 30)
    assert "wait in memory for the disk" in caplog.text
    first = spool.oldest()
    assert first is not None
    assert first.event_id == "e0"
    assert spool.acknowledge(first)
    assert spool.close() == 19
    assert spool.lost == 49


def test_append_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of appends beside a thread that tends: each is a write, not an fsync."""
    spool = Spool(tmp_path / "q", 64 * MB)
    stop = threading.Event()

    def tend() -> None:
        while not stop.wait(0.01):
            spool.tend()

    thread = threading.Thread(target=tend)
    thread.start()
    times = []
    for number in range(1500):
        began = time.perf_counter()
        put(spool, number, length=1500)
        times.append(time.perf_counter() - began)
    stop.set()
    thread.join()
    assert spool.waiting == 1500
    assert sorted(times)[750] < 0.02
    spool.close()


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "gallery.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE person (name)")
    database.close()
    before = foreign.read_bytes()
    with pytest.raises(SinkError, match=r"gallery\.sqlite: the file is no spool of s3clip"):
        Spool(foreign, MB)
    assert foreign.read_bytes() == before
    text = tmp_path / "notes.txt"
    text.write_text("x" * 5000)
    with pytest.raises(SinkError, match=r"notes\.txt cannot be opened: file is not a database"):
        Spool(text, MB)
    assert text.read_text() == "x" * 5000
    with pytest.raises(SinkError, match="No such file or directory"):
        Spool(tmp_path / "missing" / "q", MB)
    with pytest.raises(ConfigError, match="raise spool_mb"):
        Spool(tmp_path / "q", 0)


def test_one_spool_one_run(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q", MB)
    with pytest.raises(SinkError, match="is in use by another output or run"):
        Spool(tmp_path / "q", MB)
    spool.close()
    Spool(tmp_path / "q", MB).close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["q"]
