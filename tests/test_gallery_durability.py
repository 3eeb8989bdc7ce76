"""The gallery's file under kill -9, full disks, read-only disks and other writers."""

from __future__ import annotations

import copy
import os
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Say, in_a_child, killed
from gallery_stores import Vectors, filled, opened, units

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.erasure.forget import Selection
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Seen
from s3clip_runtime.gallery.storage.database import Database

Word = Any  # of a step: a name or a seed
KILLS = 200
KILLS_OF_A_FILE = 25
RULES = Rules(threshold=0.95, unknowns=True)


def vector(seed: int) -> Vectors:
    return units(np.random.default_rng([99, seed]), 1)  # none of `filled`


def seen(seed: int) -> Seen:
    return Seen(
        vector(seed)[0], "gate", "ground", 200.0, 0.9, "run", f"t{seed}", f"t{seed}", "camera",
        float(seed), seed + 1.0, final=True, pictures=lambda: (b"", False),
    )  # fmt: skip


@dataclass
class Model:
    """What must be in the gallery: seeds of the vectors of each person, and how many strangers were met."""

    people: dict[str, list[int]] = field(default_factory=dict)
    met: int = 0

    def after(self, what: str, *words: Word) -> Model:
        new = copy.deepcopy(self)
        if what == "enrol":
            new.people.setdefault(words[0], []).append(words[1])
        elif what == "merge":
            new.people[words[0]] += new.people.pop(words[1])
        elif what == "forget":
            del new.people[words[0]]
        else:
            new.met += 1
        return new

    def next_step(self, rng: np.random.Generator, seed: int) -> tuple[Word, ...]:
        some = sorted(self.people)
        rng.shuffle(some)
        if len(some) > 15 or (len(some) > 2 and rng.random() < 0.15):
            return "forget", some[0]
        if len(some) > 2 and rng.random() < 0.2 and len(self.people[some[0]] + self.people[some[1]]) < 20:
            return "merge", some[0], some[1]
        if rng.random() < 0.3:
            return "look", seed
        old = some and rng.random() < 0.4 and len(self.people[some[0]]) < 20
        return "enrol", some[0] if old else f"person {seed}", seed

    def fits(self, gallery: Gallery) -> bool:
        listed = gallery.list()
        known = {one.identity: one.prototypes for one in listed if one.kind == "known"}
        strangers = [one for one in listed if one.kind != "known"]
        if known != {name: len(seeds) for name, seeds in self.people.items()} or len(strangers) != self.met:
            return False
        assert all((one.prototypes, one.sightings) == (1, 1) for one in strangers)
        owners = [(name, seed) for name, seeds in self.people.items() for seed in seeds]
        if owners:
            found = gallery.search(np.concatenate([vector(seed) for _, seed in owners]), 1)
            assert [row[0].identity for row in found] == [name for name, _ in owners]
            assert min(row[0].score for row in found) > 0.999
        return True


def write_for_ever(path: Path, model: Model, seed: int, say: Say) -> None:
    rng = np.random.default_rng(seed)
    with opened(path) as gallery:
        recogniser = Recogniser(gallery, RULES)
        for number in range(seed * 1000, seed * 1000 + 1000):
            what, *words = step = model.next_step(rng, number)
            say(step)
            if what == "enrol":
                gallery.enrol(words[0], vector(words[1]), platform="ground", source="loop")
            elif what == "merge":
                gallery.merge(*words)
            elif what == "forget":
                gallery.forget(Selection(identity=words[0]), "asked")
            else:
                recogniser.recognise([seen(words[0])])
            say("done")
            model = model.after(*step)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_200_times_kill_9_loses_no_acknowledged_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    hot = acknowledged = in_flight = 0
    for kill in range(KILLS):
        if kill % KILLS_OF_A_FILE == 0:
            path, model = tmp_path / f"g{kill}", Model()
        child, pipe = in_a_child(partial(write_for_ever, path, model, kill + 1))
        # The first kills of a file hit its making. Each step is two lines.
        lines = 0 if kill % KILLS_OF_A_FILE < 5 else int(rng.integers(0, 11))
        said = killed(child, pipe, lines=lines, after_s=rng.uniform(0, 0.015))
        hot += path.with_name(f"{path.name}-journal").exists()
        steps = [line for line in said if line != "done"]
        done = said.count("done")
        for step in steps[:done]:
            model = model.after(*step)
        acknowledged += done
        with opened(path) as gallery:
            if not model.fits(gallery):
                assert len(steps) == done + 1, f"kill {kill}: an acknowledged write is lost"
                model = model.after(*steps[-1])
                assert model.fits(gallery), f"kill {kill}: neither before nor after {steps[-1]}"
                in_flight += 1
    # The kills came at the moments that matter.
    assert acknowledged > KILLS
    assert hot > KILLS // 20
    assert in_flight > 0


def test_a_hot_journal_is_rolled_back(tmp_path: Path) -> None:
    """Killed when the file itself is half changed already."""
    gallery, _ = filled(tmp_path / "g", people=40)
    gallery.close()
    good = (tmp_path / "g").read_bytes()

    def work(say: Say) -> None:
        with opened(tmp_path / "g") as gallery:
            gallery.database.run("PRAGMA cache_size = 1")  # changed pages go to the file at once
            with gallery.deciding() as decisions:
                for one in decisions.book.identities():
                    decisions.book.remove_prototypes([p.id for p in decisions.book.prototypes(one.id)])
                    decisions.book.remove_identity(one.id)
                say("changed")
                time.sleep(60)

    child, pipe = in_a_child(work)
    killed(child, pipe, lines=1, after_s=0)
    assert (tmp_path / "g").read_bytes() != good
    assert (tmp_path / "g-journal").stat().st_size > 0
    with opened(tmp_path / "g") as again:
        assert len(again.list()) == 40
    assert (tmp_path / "g").read_bytes() == good
    assert not (tmp_path / "g-journal").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk takes everything")


@pytest.mark.parametrize("full", ["disk", "pages"])
def test_a_full_disk_stops_writing_not_recognition(
    full: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = (request.getfixturevalue("disk") if full == "disk" else tmp_path) / "g"
    gallery, truth = filled(path)
    recogniser = Recogniser(gallery, RULES)
    assert recogniser.recognise([seen(1)])[0].identity is not None
    assert (recogniser.tally.met, recogniser.unwritten, recogniser.trouble) == (1, 0, "")
    before, query = gallery.list(), np.concatenate([*truth.values(), vector(1)])
    found = gallery.search(query)
    if full == "disk":
        filler = fill(path.parent)
    else:
        gallery.database.run(f"PRAGMA max_page_count = {gallery.database.rows('PRAGMA page_count')[0][0]}")
    content = path.read_bytes()

    big = (np.random.default_rng(0).bytes(300_000), False)
    with pytest.raises(GalleryUnavailable, match=r"gallery .*g: .*check .* the free space"):
        gallery.enrol("big", vector(2), platform="ground", source="s", camera="gate", pictures=big)
    recogniser.rules = Rules(threshold=0.95, unknowns=True, keep_crops=True)
    stranger = replace(seen(3), pictures=lambda: big)
    known = replace(seen(4), vector=truth["person 0"][0])
    answers = recogniser.recognise([seen(7), stranger, known])  # there may be room for the first
    assert [one.identity and one.identity.name for one in answers] == [None, None, "person 0"]
    assert recogniser.unwritten == 3
    assert "free space" in recogniser.trouble
    assert recogniser.tally.met == 1  # nobody else stayed
    assert gallery.search(query) == found
    assert gallery.list() == before
    assert path.read_bytes() == content

    if full == "disk":
        filler.unlink()
    else:
        gallery.database.run("PRAGMA max_page_count = 100000")
    answers = recogniser.recognise([stranger, known])
    assert [one.identity and one.identity.kind for one in answers] == ["candidate", "known"]
    assert (recogniser.trouble, recogniser.unwritten, recogniser.tally.met) == ("", 3, 2)
    gallery.enrol("big", vector(2), platform="ground", source="s", camera="gate", pictures=big)
    after = gallery.list()
    gallery.close()
    with opened(path) as again:
        assert again.list() == after
        assert {one.identity for one in after} > {one.identity for one in before} | {"big"}


def test_a_full_disk_does_not_cost_the_receipt(disk: Path) -> None:
    """The erased rows are overwritten in place; writing the file anew needs twice its size."""
    gallery, truth = filled(disk / "g", people=12)
    gallery.enrol("x", vector(1), platform="ground", source="s", pictures=(os.urandom(600_000), False))
    gallery.back_up(disk.parent / "backup")
    room = fill(disk)
    os.truncate(room, room.stat().st_size - 300_000)  # enough for the journal of some pages
    receipt, _ = gallery.forget(Selection(identity="person 7"), "person 7")
    assert receipt.scrubbed.startswith("not finished, only the rows were overwritten: gallery ")
    assert receipt.complete
    assert receipt.backups[0].erased == {"prototype": 8, "identity": 1, "log": 1}
    for path in (disk / "g", disk.parent / "backup"):
        assert truth["person 7"][3].astype("<f2").tobytes()[:16] not in path.read_bytes()
        assert truth["person 8"][3].astype("<f2").tobytes()[:16] in path.read_bytes()
    room.unlink()
    assert gallery.forget(Selection(identity="x"), "x")[0].scrubbed == gallery.database.scrubbing
    gallery.close()


def test_a_read_only_disk_can_be_searched(disk: Path) -> None:
    gallery, truth = filled(disk / "g")
    found = gallery.search(truth["person 2"])
    gallery.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=30)
    with opened(disk / "g") as gallery:
        assert gallery.search(truth["person 2"]) == found
        for write in (
            lambda: gallery.enrol("x", vector(1), platform=None, source="s"),
            lambda: gallery.forget(Selection(identity="person 1"), "person 1"),
            lambda: gallery.merge("person 1", "person 2"),
        ):
            with pytest.raises(
                GalleryUnavailable, match=r"gallery .*g: .*readonly.*check the path, its perm"
            ):
                write()
        recogniser = Recogniser(gallery, RULES)
        assert recogniser.recognise([seen(1)])[0].identity is None
        assert "permissions" in recogniser.trouble
        assert not (disk.parent / "copy").exists()
    with pytest.raises(GalleryError, match=r"new: cannot be made \(Read-only file system\); check the path"):
        opened(disk / "new")


def test_a_writer_that_does_not_finish_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3clip_runtime.gallery.storage.sqlite._BUSY_S", 0.1)
    gallery, truth = filled(tmp_path / "g")
    recogniser = Recogniser(gallery, RULES)
    other = sqlite3.connect(tmp_path / "g", isolation_level=None)
    for lock, search in (("BEGIN IMMEDIATE", True), ("BEGIN EXCLUSIVE", False)):
        other.execute(lock)
        with pytest.raises(
            GalleryUnavailable, match=r"another process has been writing for 0.1 s; try again"
        ):
            gallery.enrol("x", truth["person 0"], platform=None, source="s")
        if search:
            assert gallery.search(truth["person 0"])[0][0].identity == "person 0"
        answer = recogniser.recognise([seen(5)])[0]  # from memory
        assert answer.identity is None
        assert answer.matches
        assert "another process" in recogniser.trouble
        other.execute("ROLLBACK")
        recogniser.recognise([seen(6)])
        assert recogniser.trouble == ""
    gallery.enrol("x", truth["person 0"], platform=None, source="s")
    other.close()
    gallery.close()


def read_until(
    database: Database, rows: Callable[..., object], left: Iterator[int], *words: object
) -> object:
    if next(left, None) is None:
        raise GalleryUnavailable("locked")
    return rows(database, *words)


def test_memory_keeps_what_it_knew_when_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore and a merge elsewhere, then a lock that comes between two statements of the reading."""
    gallery, truth = filled(tmp_path / "g")
    gallery.back_up(tmp_path / "copy")
    recogniser = Recogniser(gallery, Rules(threshold=0.9))
    looks = [replace(seen(1), vector=rows[0]) for rows in truth.values()]
    changes: list[Callable[[Gallery], object]] = [
        lambda other: other.restore(tmp_path / "copy"),
        lambda other: other.note("person 1", "x"),
    ]
    for change in changes:
        with opened(tmp_path / "g") as other:
            change(other)
        for last in range(1, 4):
            fails: Any = partialmethod(read_until, type(gallery.database).rows, iter(range(last)))
            with monkeypatch.context() as patch:
                patch.setattr(type(gallery.database), "rows", fails)
                answers = recogniser.recognise(looks)
            assert recogniser.trouble == "locked"
            assert [one.identity and one.identity.name for one in answers] == list(truth)
        recogniser.recognise(looks)
        assert recogniser.trouble == ""
    gallery.close()


def test_a_gallery_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "g") as gallery:
            gallery.back_up(tmp_path / "copy")
            assert not gallery.list()
    finally:
        os.umask(before)
    for name in ("g", "copy"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
