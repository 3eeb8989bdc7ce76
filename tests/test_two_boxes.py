"""Several boxes with one gallery: they agree, also when one is killed or the server goes away."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deciding_box
import numpy as np
import pytest
from deciding_box import CROWD, Box
from gallery_stores import Place
from gallery_stores import place as place
from made_looks import SPACE, leaning, made_open_set, opened
from postgres_server import Postgres

from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.search.server import ServerSearch
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase

pytestmark = pytest.mark.slow

KILLS = 20
TIMEOUT_S = 10.0
"""Of the locks of both stores; nobody may wait longer for one who was killed."""


class Process:
    """A box in a process of its own."""

    def __init__(self, address: Place, name: str, seed: int = 0) -> None:
        command = [sys.executable, deciding_box.__file__, str(address), name, str(seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def await_ready(self) -> None:
        assert self._line() == "ready\n"

    def tell(self, line: str) -> None:
        """Does not wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line())
        return found

    def kill(self) -> None:
        """At once, whatever it does."""
        alive = self._process.poll() is None
        self._process.kill()
        self._process.communicate(timeout=30)
        assert alive, "it had ended by itself"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture
def start(place: Place) -> Iterator[Callable[[str, int], Process]]:
    """Starts boxes on one calibrated gallery, and ends those that still run."""
    with opened(place) as gallery:
        gallery.calibrate(made_open_set())
    started: list[Process] = []

    def one(name: str, seed: int) -> Process:
        started.append(Process(place, name, seed))
        return started[-1]

    yield one
    for process in started:
        if process._process.poll() is None:
            process.kill()


def assert_whole(gallery: Gallery) -> None:
    """No decision is there by half: every final look left one sighting, one view and one entry of the log."""
    rows = gallery.database.rows
    for orphan in ("sighting", "prototype"):
        query = f"SELECT count(*) FROM {orphan} WHERE identity NOT IN (SELECT id FROM identity)"
        assert rows(query) == [(0,)], orphan
    ids = {row[0] for row in rows("SELECT id FROM identity")}
    views, seen = (
        Counter(row[0] for row in rows(f"SELECT identity FROM {table}"))
        for table in ("prototype", "sighting")
    )
    assert set(views) == set(seen) == ids
    entries = gallery.log()
    assert [entry.seq for entry in entries] == sorted({entry.seq for entry in entries})
    met = [entry for entry in entries if entry.action == "meet"]
    assert Counter(entry.identity for entry in met) == seen
    assert Counter(entry.identity for entry in met if entry.detail["made"]) == Counter(ids)
    promoted = Counter(entry.identity for entry in entries if entry.action == "promote")
    assert promoted == Counter(row[0] for row in rows("SELECT id FROM identity WHERE kind = 'unknown'"))
    assert set(promoted) == {id for id, count in seen.items() if count >= deciding_box.RULES.promote_after}


def told(*answers: tuple[Sequence[int], Sequence[str | None]]) -> dict[int, str]:
    """The name of each person, who must have one and the same in all answers."""
    names = defaultdict[int, set[str | None]](set)
    for people, given in answers:
        for person, name in zip(people, given, strict=True):
            names[person].add(name)
    assert all(len(each) == 1 and None not in each for each in names.values()), names
    found = {person: str(name) for person, (name,) in names.items()}
    assert len(set(found.values())) == len(found)
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_two_boxes_that_decide_at_once_agree(
    place: Place, start: Callable[[str, int], Process], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    boxes = {name: start(name, seed + i) for i, name in enumerate(("north", "south"))}
    for box in boxes.values():
        box.await_ready()
    answers = list[tuple[list[int], list[str | None]]]()
    looks = Counter[str]()
    for step in range(12):
        # All new at once first, then some by the same and some by other batches.
        size = 20 if step == 0 else int(rng.integers(1, 9))
        batches = {name: rng.permutation(20)[:size].tolist() for name in boxes}
        for name, box in boxes.items():
            box.tell(json.dumps(batches[name]))
        answers += [(batches[name], box.answer()["names"]) for name, box in boxes.items()]
        looks.update(dict.fromkeys(boxes, size))
    names = told(*answers)
    assert len(names) == 20
    with opened(place, "fresh") as gallery:
        assert_whole(gallery)
        assert Counter(entry.actor for entry in gallery.log() if entry.action == "meet") == looks
        assert len(gallery.list()) == 20
        everybody = list(range(20))
        assert told(*answers, (everybody, Box(gallery, "fresh", 0).decide(everybody))) == names


def test_a_box_that_is_killed_leaves_nothing_by_half(
    place: Place, start: Callable[[str, int], Process]
) -> None:
    rng = np.random.default_rng(3)
    answers = list[tuple[list[int], list[str | None]]]()
    waiting = start("south", 0)
    with opened(place, "north") as gallery:
        box = Box(gallery, "north", 1)
        for seed in range(1, KILLS + 1):
            victim, waiting = waiting, start("south", seed)
            victim.await_ready()
            victim.tell("free")
            end_s = time.monotonic() + float(rng.uniform(0.02, 0.25))
            while time.monotonic() < end_s:
                people = box.some()
                answers.append((people, box.decide(people)))
            victim.kill()
            people = box.some()
            answers.append((people, box.decide(people)))
        waiting.await_ready()
        assert box.recogniser.unwritten == 0
        assert box.longest_s < TIMEOUT_S
        assert_whole(gallery)
        south = [entry for entry in gallery.log() if entry.actor == "south"]
        assert len(south) > KILLS  # they did decide
        everybody = list(range(CROWD))
        waiting.tell(json.dumps(everybody))
        answers.append((everybody, waiting.answer()["names"]))
        answers.append((everybody, box.decide(everybody)))
        names = told(*answers)
        assert len(gallery.list()) == len(names) == CROWD
    with opened(place, "fresh") as gallery:
        assert told((everybody, Box(gallery, "fresh", 2).decide(everybody))) == names
        assert_whole(gallery)


def test_boxes_go_on_by_memory_while_the_server_is_away(postgres: Postgres) -> None:
    dsn, early, late = postgres.dsn(), list(range(10)), list(range(10, 16))
    with opened(dsn) as gallery:
        gallery.calibrate(made_open_set())
    with opened(dsn, "north") as north_gallery, opened(dsn, "south") as south_gallery:
        north, south = Box(north_gallery, "north", 0), Box(south_gallery, "south", 1)
        first = north.decide(early[:5])
        south.decide(early)
        names = told((early[:5], first), (early, south.decide(early)), (early, north.decide(early)))
        postgres.stop()
        try:
            for box in (north, south):
                assert box.decide(early) == [names[person] for person in early]
                assert box.decide(late) == [None] * len(late)
                assert box.recogniser.unwritten == len(early) + len(late)
                assert box.recogniser.trouble
        finally:
            postgres.start()
        back_s = time.monotonic()
        answers = list[tuple[list[int], list[str | None]]]()
        for box in (north, south, north, south):
            people = early + late
            while None in (given := box.decide(people)):
                assert time.monotonic() < back_s + 30
                time.sleep(0.05)
            assert not box.recogniser.trouble
            answers.append((people, given))
        found = told(*answers)
        assert {person: found[person] for person in early} == names
        assert len(north_gallery.list()) == len(found) == 16
        assert_whole(north_gallery)


def test_a_server_that_stops_amid_decisions_loses_none(postgres: Postgres) -> None:
    dsn, everybody = postgres.dsn(), list(range(CROWD))
    with opened(dsn) as gallery:
        gallery.calibrate(made_open_set())
    boxes = [Process(dsn, name, seed) for seed, name in enumerate(("north", "south"))]
    try:
        for box in boxes:
            box.await_ready()
            box.tell("free")
        await_decisions(dsn, 0)
        for _ in range(2):
            postgres.stop()
            time.sleep(0.5)
            postgres.start()
            with opened(dsn) as gallery:
                newest = gallery.log(last=1)[0].seq
            await_decisions(dsn, newest)
    finally:
        for box in boxes:
            box.kill()
    with opened(dsn, "fresh") as gallery:
        assert_whole(gallery)
        fresh = Box(gallery, "fresh", 2)
        told((everybody, fresh.decide(everybody)), (everybody, fresh.decide(everybody)))
        assert len(gallery.list()) == CROWD


def await_decisions(address: Place, seq: int) -> None:
    """Until both boxes have written several entries after this one."""
    end_s = time.monotonic() + 30
    with opened(address) as gallery:
        while True:
            found = Counter(entry.actor for entry in gallery.log() if entry.seq > seq)
            if min(found["north"], found["south"]) >= 10:
                return
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_a_box_may_start_while_another_one_decides(
    place: Place, start: Callable[[str, int], Process]
) -> None:
    writer = start("north", 0)
    writer.await_ready()
    writer.tell("free")
    for _ in range(30):
        with opened(place, "reader") as gallery:
            gallery.refresh()
            assert gallery.identities <= CROWD
    writer.kill()
    with opened(place, "fresh") as gallery:
        assert_whole(gallery)


def test_search_on_the_server_is_a_part_of_the_decision(dsn: str) -> None:
    with opened(dsn) as gallery:
        gallery.calibrate(made_open_set())
        Box(gallery, "memory", 0).decide(range(CROWD))
        assert isinstance(gallery.database, PostgresDatabase)
        ServerSearch(gallery.database).make_index(SPACE.hash, SPACE.dim)

    def decide_and_fail(gallery: Gallery) -> None:
        with gallery.deciding() as decisions:
            decisions.book.add_identity("before", "known")
            assert decisions.memory.search(leaning({3: 0.9})[None], 5)[0]
            decisions.book.add_identity("after", "known")
            raise ZeroDivisionError

    with opened(dsn, "server") as gallery:
        with pytest.raises(ZeroDivisionError):
            decide_and_fail(gallery)
        assert gallery.database.rows("SELECT name FROM identity WHERE kind = 'known'") == []
        assert None not in Box(gallery, "server", 1).decide(range(CROWD))
        assert_whole(gallery)
