"""SIGHUP on the running program: what changes, what goes on, what is refused."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.lab import RtspServer, wait_until, write_clips
from streams.site_run import SiteRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    clips = write_clips(tmp_path_factory.mktemp("clips"), 3)
    with RtspServer(clips, 3, secret=("admin", "p@ss/w#rd")) as server:
        yield server


def rewrite(run: SiteRun, old: str, new: str) -> None:
    """Change the site file and ask for a reload."""
    text = run.site_path.read_text()
    assert old in text
    run.site_path.write_text(text.replace(old, new))
    run.process.send_signal(signal.SIGHUP)


def test_cameras_come_go_and_change_and_the_others_keep_their_tracks(
    cameras: RtspServer, bundle_folder: Path, tmp_path: Path
) -> None:
    first = {"stays": cameras.url(1), "goes": cameras.url(2)}
    with SiteRun(tmp_path, bundle_folder, first) as run:
        run.all_live()
        before = run.camera("stays")
        text = run.site_path.read_text()
        added = f'[[cameras]]\nname = "comes"\nurl = "{cameras.url(3)}"\nplatform = "aerial"\n'
        gone = f'[[cameras]]\nname = "goes"\nurl = "{cameras.url(2)}"\nplatform = "ground"\n'
        assert gone in text
        rewrite(run, gone, added)
        wait_until("reload", lambda: "1 added (comes), 1 removed (goes)" in run.log(), 20)
        assert run.wait_state("comes", "live", 30) < 30
        assert [one["name"] for one in run.status()["cameras"]] == ["stays", "comes"]
        wait_until("frames go on", lambda: run.camera("stays")["frames"] > before["frames"] + 20, 20)
        after = run.camera("stays")
        assert (after["source"]["reconnects"], after["source"]["restarts"]) == (0, 0)
        assert after["source"]["received"] > before["source"]["received"]
        left = [event for event in run.events("goes") if event["reason"] == "stop"]
        assert all(event["partial"] for event in left)
        wait_until("events go on", lambda: len(run.events("stays")) > 3, 30)
        assert {event["epoch"] for event in run.events("stays")} == {0}
        seconds, code = run.stop()
        assert code == 0
        assert seconds < 5
        assert "p@ss" not in run.log()


def test_a_reload_that_cannot_be_changes_nothing(
    cameras: RtspServer, bundle_folder: Path, tmp_path: Path
) -> None:
    with SiteRun(tmp_path, bundle_folder, {"gate": cameras.url(1)}) as run:
        run.all_live()
        rewrite(run, 'platform = "ground"', 'platform = "sea"')
        wait_until("fault is told", lambda: "not one of ground, aerial, got 'sea'" in run.log(), 20)
        rewrite(run, 'platform = "sea"', 'platform = "ground"')
        wait_until("reload of the same", lambda: "reloaded: cameras: 1 unchanged" in run.log(), 20)
        rewrite(run, "threads = 1", "threads = 2")
        wait_until("restart is asked for", lambda: "threads can change only at a restart" in run.log(), 20)
        frames = run.camera("gate")["frames"]
        wait_until("it runs on", lambda: run.camera("gate")["frames"] > frames + 5, 20)
        assert run.source("gate")["reconnects"] == 0


def test_outputs_change_without_losing_an_event(
    cameras: RtspServer, bundle_folder: Path, tmp_path: Path
) -> None:
    """The file of events is exchanged in the middle: ids in both files together have no gap."""
    with SiteRun(tmp_path, bundle_folder, {"gate": cameras.url(1)}) as run:
        run.all_live()
        wait_until("events", lambda: len(run.events()) >= 2, 40)
        other = tmp_path / "other.jsonl"
        rewrite(run, f'path = "{run.events_path}"', f'path = "{other}"\nfsync = "always"')
        wait_until("reload", lambda: "applied: outputs.events" in run.log(), 20)
        wait_until("events in the other file", lambda: other.exists() and other.stat().st_size > 0, 40)
        run.stop()
        old = run.events()
        run.events_path = other
        ids = [event["event_id"] for event in (*old, *run.events())]
        assert [int(one.rpartition("-")[2]) for one in ids] == list(range(1, len(ids) + 1))
