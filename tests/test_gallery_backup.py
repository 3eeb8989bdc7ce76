"""Backups while others write, and restoring under programs that run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Say, in_a_child, killed
from gallery_stores import filled, opened, units

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.erasure.forget import Selection
from s3clip_runtime.gallery.storage.sqlite import SqliteDatabase
from s3clip_runtime.gallery.storage.vault import make_key

DAY = 86400.0


@pytest.mark.slow
def test_backups_under_a_writer_are_whole_and_complete(tmp_path: Path) -> None:
    """The writer enrols three views of a new person at a time, and forgets every fifth."""

    def work(say: Say) -> None:
        with opened(tmp_path / "g") as gallery:
            for number in range(100_000):
                views = units(np.random.default_rng(number), 3)
                gallery.enrol(f"person {number}", views, platform="ground", source="s")
                say(number)
                if number % 5 == 4:
                    gallery.forget(Selection(identity=f"person {number - 4}"), "asked")

    filled(tmp_path / "g", people=0)[0].close()
    child, pipe = in_a_child(work)
    before = []
    try:
        with opened(tmp_path / "g") as gallery:
            for number in range(12):
                before.append([one.identity for one in gallery.list()])
                gallery.back_up(tmp_path / f"copy {number}")
                time.sleep(0.1)
    finally:
        said = killed(child, pipe, lines=1, after_s=0)
    assert len(said) > 20
    names = set()
    for number, earlier in enumerate(before):
        with opened(tmp_path / f"copy {number}") as copy:
            assert copy.database.rows("PRAGMA integrity_check") == [("ok",)]
            held = {one.identity: one.prototypes for one in copy.list()}
            assert set(held.values()) <= {3}
            log = copy.log()
            entries = [one for one in log if one.action in ("enrol", "forget")]
            there = {one.identity for one in entries if one.action == "enrol"}
            assert len(there - {one.identity for one in entries if one.action == "forget"}) == len(held)
            assert log[-1].action in ("backup", "enrol", "forget")
        # Forgetting goes on and reaches the copies too, so each fifth may be gone.
        assert {name for name in earlier if int(name.split()[1]) % 5} <= set(held)
        names.add(len(held))
    assert len(names) > 3  # the writer did write meanwhile


def test_a_program_that_runs_follows_a_restore(tmp_path: Path) -> None:
    running, truth = filled(tmp_path / "g")
    running.back_up(tmp_path / "copy")
    running.merge("person 2", "person 1")
    running.enrol("later", units(np.random.default_rng(9), 1), platform=None, source="s")
    assert running.search(truth["person 1"], 1)[0][0].identity == "person 2"
    with opened(tmp_path / "g") as command:
        assert command.restore(tmp_path / "copy") == []
        assert [one.action for one in command.log()][-2:] == ["backup", "restore"]
    assert running.search(truth["person 1"], 9)[0][0].identity == "person 1"
    assert [one.identity for one in running.list()] == list(truth)
    running.enrol("new", units(np.random.default_rng(9), 1), platform=None, source="s")
    running.close()


def test_what_cannot_be_restored_is_refused(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g")
    (tmp_path / "text").write_text("shopping list " * 100)
    (tmp_path / "empty").touch()
    SqliteDatabase(tmp_path / "bare").close()
    make_key(tmp_path / "key")
    opened(tmp_path / "sealed", key_file=tmp_path / "key").close()
    gallery.back_up(tmp_path / "torn")
    os.truncate(tmp_path / "torn", 50_000)
    os.link(tmp_path / "g", tmp_path / "link")
    before = gallery.list(), gallery.log()
    for name, message in {
        "text": "the file is no gallery of s3clip",
        "absent": "there is no such file, or it is empty; give the path of a backup",
        "empty": "there is no such file, or it is empty",
        "bare": "nothing was ever written to it",
        "sealed": "the key file does not fit: give the key file that it was made with",
        "torn": "damaged",
        "g": "it is the gallery itself",
        "link": "it is the gallery itself",
    }.items():
        with pytest.raises(GalleryError, match=message):
            gallery.restore(tmp_path / name)
    assert not (tmp_path / "absent").exists()
    assert (tmp_path / "empty").stat().st_size == 0
    assert (gallery.list(), gallery.log()) == before
    assert gallery.search(truth["person 1"], 1)[0][0].identity == "person 1"
    gallery.close()


def test_what_was_forgotten_since_a_moved_backup_stays_forgotten(tmp_path: Path) -> None:
    """By person, by camera and time, and of a person who was split off or merged in between; twice."""
    rng = np.random.default_rng(5)
    gallery, truth = filled(tmp_path / "g", people=5)
    gate = {day: units(rng, 1) for day in (1, 2)}
    for day, vector in gate.items():
        gallery.enrol(f"gate {day}", vector, platform="ground", source="s", camera="gate", seen_s=day * DAY)
    gallery.back_up(tmp_path / "copy")
    gallery.back_up(tmp_path / "copy too")
    for name in ("copy", "copy too"):
        os.rename(tmp_path / name, tmp_path / f"moved {name}")

    ids = [one.id for one in gallery.show("person 4")[1]]
    gallery.split("person 4", ids[:2], "split off")
    gallery.forget(Selection(identity="split off"), "asked")
    gallery.merge("person 3", "person 2")
    gallery.name("person 3", "somebody")
    gallery.forget(Selection(identity="somebody"), "asked")
    gallery.forget(Selection(camera="gate", until_s=1.5 * DAY), "asked")
    gone = [*truth["person 4"][:2], *truth["person 3"], *truth["person 2"], gate[1][0]]
    for name in ("moved copy", "moved copy too"):
        assert len(gallery.restore(tmp_path / name)) == 3
        assert {one.identity: one.prototypes for one in gallery.list()} == {
            "person 0": 1, "person 1": 2, "person 4": 3, "gate 2": 1,
        }  # fmt: skip
        content = (tmp_path / "g").read_bytes()
        assert not any(one.astype("<f2").tobytes()[:8] in content for one in gone)
        assert truth["person 4"][2].astype("<f2").tobytes() in content
    gallery.close()


def test_who_lost_only_some_views_is_not_taken_by_a_restore(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    with opened(tmp_path / "g") as gallery:
        gallery.enrol("Ada", units(rng, 2), platform="ground", source="a picture")
        gallery.enrol("Ada", units(rng, 1), platform="ground", source="s", camera="gate", seen_s=DAY)
        gallery.enrol("Bea", units(rng, 1), platform="ground", source="s")
        gallery.back_up(tmp_path / "copy")
        gallery.forget(Selection(camera="gate"), "asked")
        gallery.merge("Bea", "Ada")
        assert gallery.restore(tmp_path / "copy") == []
        assert {one.identity: one.prototypes for one in gallery.list()} == {"Ada": 2, "Bea": 1}


@pytest.mark.slow
def test_a_killed_backup_leaves_no_file_that_looks_like_one(tmp_path: Path) -> None:
    filled(tmp_path / "g", people=60)[0].close()
    rng, copy = np.random.default_rng(1), tmp_path / "copy"
    found = {True: 0, False: 0}

    def work(say: Say) -> None:
        with opened(tmp_path / "g") as gallery:
            say("opened")
            gallery.back_up(copy)

    for _ in range(40):
        child, pipe = in_a_child(work)
        killed(child, pipe, lines=1, after_s=rng.uniform(0, 0.12))
        found[copy.exists()] += 1
        with opened(tmp_path / "g") as gallery:
            if not copy.exists():
                gallery.back_up(copy)
        assert {path.name for path in tmp_path.iterdir()} <= {"g", "g-journal", "copy"}
        with opened(copy) as again:
            assert len(again.list()) == 60
        copy.unlink()
    assert min(found.values()) > 0


def test_a_backup_that_fails_is_not_known_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, _ = filled(tmp_path / "g")
    with pytest.raises(GalleryError, match=r"absent.*cannot be made .*check the path"):
        gallery.back_up(tmp_path / "absent" / "copy")
    (tmp_path / "taken").touch()
    with pytest.raises(GalleryError, match="there is a file already; name a new one"):
        gallery.back_up(tmp_path / "taken")

    def full(*_: object) -> None:
        raise GalleryUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteDatabase, "run_many", full)
        with pytest.raises(GalleryUnavailable, match="the disk is full"):
            gallery.back_up(tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"g", "taken"}
    assert gallery.forget(Selection(identity="person 1"), "asked")[0].backups == ()
    gallery.close()


@pytest.mark.slow
def test_a_killed_restore_is_done_or_was_never_begun(tmp_path: Path) -> None:
    gallery, old = filled(tmp_path / "g", people=60)
    gallery.back_up(tmp_path / "copy")
    new = {f"new {i}": units(np.random.default_rng([4, i]), 2) for i in range(60)}
    os.rename(tmp_path / "copy", tmp_path / "moved")
    gallery.forget(Selection(identity="person 0"), "asked")
    for name, vectors in new.items():
        gallery.enrol(name, vectors, platform="aerial", source="s")
    gallery.close()
    good = (tmp_path / "g").read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / "h"
    seen = set()

    def work(say: Say) -> None:
        with opened(path) as gallery:
            say("opened")
            gallery.restore(tmp_path / "moved")

    after = set(old) - {"person 0"}
    before = after | set(new)
    for _ in range(40):
        path.write_bytes(good)
        child, pipe = in_a_child(work)
        killed(child, pipe, lines=1, after_s=rng.uniform(0, 0.12))
        with opened(path) as gallery:
            names = {one.identity for one in gallery.list()}
            assert names in (before, after)
            seen.add(names == after)
            assert gallery.log()[-1].action in ("enrol", "restore", "forget")
    assert seen == {True, False}
