"""Identities that a run gives: who gets one, who keeps it, and what is written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_looks import (
    LIKELY,
    PICTURES,
    SPACE,
    THRESHOLD,
    count,
    enrol,
    leaning,
    look,
    made_open_set,
    opened,
    sightings,
)

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Recognised, Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Seen
from s3clip_runtime.gallery.storage import sqlite

RULES = Rules(unknowns=True)


@pytest.fixture(params=["memory", "file"])
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gallery]:
    """A calibrated one."""
    with opened(None if request.param == "memory" else tmp_path / "people.sqlite") as made:
        made.calibrate(made_open_set())
        yield made


def one(recogniser: Recogniser, seen: Seen) -> Recognised:
    (found,) = recogniser.recognise([seen])
    return found


def name_of(found: Recognised) -> str:
    assert found.identity is not None
    return found.identity.name


def test_one_id_over_cameras_tracks_and_parts(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, RULES)
    looks = [
        look(leaning({3: 0.95}, 20), "1", camera="gate"),
        look(leaning({3: 0.95}, 21), "2", camera="yard"),
        look(leaning({3: 0.95}, 22), "3", camera="gate"),
        look(leaning({3: 0.20}, 23), "3", camera="gate", part=1),  # alike to nobody: the track alone tells
    ]
    found = [one(recogniser, seen) for seen in looks]
    assert len({name_of(each) for each in found}) == 1
    assert [each.decision.verdict for each in found] == ["unknown", "match", "match", "unknown"]
    assert count(gallery, "identity") == 1
    assert [each.score is None for each in sightings(gallery, name_of(found[0]))] == [
        True,
        False,
        False,
        True,
    ]
    assert name_of(one(recogniser, look(leaning({4: 1.0}), "4"))) != name_of(found[0])


def test_the_track_of_another_run_or_of_long_ago_tells_nothing(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = Recogniser(gallery, RULES)
    first = name_of(one(recogniser, look(leaning({1: 1.0}), "1")))
    assert name_of(one(recogniser, look(leaning({2: 1.0}), "1", run="other"))) != first
    later_s = time.time() + 601
    monkeypatch.setattr("s3clip_runtime.gallery.recognition.deciding.time.time", lambda: later_s)
    assert name_of(one(recogniser, look(leaning({3: 1.0}), "1", part=1))) != first


def test_promotion_counts_tracks_and_not_their_parts(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, replace(RULES, promote_after=3))
    kinds = []
    for track, part in (("1", 0), ("1", 1), ("2", 0), ("2", 1), ("3", 0), ("4", 0)):
        identity = one(recogniser, look(leaning({3: 0.95}), track, part=part)).identity
        assert identity is not None
        kinds.append(identity.kind)
        assert gallery.show(identity.name)[0].kind == identity.kind
    assert kinds == ["candidate"] * 4 + ["unknown"] * 2
    assert [entry.action for entry in gallery.log()].count("promote") == 1


def test_an_id_outlives_the_run(tmp_path: Path) -> None:
    path, vector = tmp_path / "people.sqlite", leaning({3: 0.95})
    with opened(path) as gallery:
        gallery.calibrate(made_open_set())
        name = name_of(one(Recogniser(gallery, RULES), look(vector, "1", run="one")))
    with opened(path) as gallery:
        assert name_of(one(Recogniser(gallery, RULES), look(vector, "2", run="two"))) == name


def test_a_new_person_twice_in_one_batch_is_one_person(gallery: Gallery) -> None:
    early = look(leaning({3: 0.95}, 20), "1", final=False)
    met = look(leaning({3: 0.95}, 20), "1")
    again = look(leaning({3: 0.95}, 21), "2", camera="yard")
    other = look(leaning({4: 0.95}, 22), "3", camera="yard")
    late = look(leaning({3: 0.95}, 23), "4", final=False)
    found = Recogniser(gallery, RULES).recognise([early, met, again, other, late])
    assert found[0].identity is None
    assert name_of(found[1]) == name_of(found[2]) == name_of(found[4]) != name_of(found[3])
    assert found[4].matches[0].identity == name_of(found[1])
    assert count(gallery, "sighting") == 3


def test_poor_looks_get_no_id_and_leave_no_view(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, replace(RULES, min_quality=0.5))
    assert one(recogniser, look(leaning({3: 1.0}), "1", quality=0.49)).identity is None
    assert count(gallery, "identity") == count(gallery, "sighting") == 0
    name = name_of(one(recogniser, look(leaning({3: 1.0}), "2", quality=0.5)))
    assert name_of(one(recogniser, look(leaning({3: 1.0}), "3", quality=0.1))) == name  # known again
    assert len(gallery.show(name)[1]) == 1
    assert len(sightings(gallery, name)) == 2


@pytest.mark.parametrize("score", [LIKELY + 0.01, THRESHOLD - 0.01])
def test_who_is_likely_somebody_gets_no_id(gallery: Gallery, score: float) -> None:
    enrol(gallery, "Anna", 0)
    recogniser = Recogniser(gallery, RULES)
    found = one(recogniser, look(leaning({0: score}), "1"))
    assert (found.decision.verdict, found.decision.nearest, found.identity) == ("unknown", "Anna", None)
    assert count(gallery, "sighting") == 0
    assert name_of(one(recogniser, look(leaning({0: LIKELY - 0.01}, 20), "2"))).startswith("unknown-")
    assert name_of(one(recogniser, look(leaning({0: THRESHOLD + 0.01}, 21), "3"))) == "Anna"


def test_uncalibrated_nobody_is_told_and_nothing_is_written() -> None:
    with opened(None) as gallery:
        recogniser = Recogniser(gallery, replace(RULES, grow=True))
        assert one(recogniser, look(leaning({3: 1.0}), "1")).identity is None  # an empty gallery
        enrol(gallery, "Anna", 0)
        entries = len(gallery.log())
        found = one(recogniser, look(leaning({0: 1.0}), "2"))
        assert (found.decision.verdict, found.identity) == ("uncalibrated", None)
        assert (count(gallery, "identity"), count(gallery, "sighting"), len(gallery.log())) == (1, 0, entries)
        recogniser.rules = replace(RULES, threshold=THRESHOLD)  # the operator's own
        assert name_of(one(recogniser, look(leaning({0: THRESHOLD + 0.01}), "3"))) == "Anna"
        new = name_of(one(recogniser, look(leaning({0: THRESHOLD - 0.01}, 20), "4")))  # there is no grey zone
        assert new.startswith("unknown-")


def test_no_id_where_the_next_look_could_not_be_told(gallery: Gallery) -> None:
    # Calibrated from the ground to the ground alone: an aerial id could be given to nobody again.
    found = one(Recogniser(gallery, RULES), look(leaning({3: 1.0}), "1", platform="aerial"))
    assert found.identity is None
    assert count(gallery, "identity") == 0


def test_looks_that_are_not_final_get_the_id_and_write_nothing(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, RULES)
    assert one(recogniser, look(leaning({3: 1.0}), "1", final=False)).identity is None
    name = name_of(one(recogniser, look(leaning({3: 1.0}), "1")))
    before = [count(gallery, table) for table in ("identity", "prototype", "sighting", "log")]
    assert name_of(one(recogniser, look(leaning({3: 0.9}), "2", final=False))) == name
    assert [count(gallery, table) for table in ("identity", "prototype", "sighting", "log")] == before


def test_naming_an_unknown_keeps_sightings_and_views(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, RULES)
    for track in "12":
        unknown = name_of(one(recogniser, look(leaning({3: 0.95}, 20 + int(track)), track)))
    before = sightings(gallery, unknown)
    views = [view.id for view in gallery.show(unknown)[1]]
    gallery.name(unknown, "Anna")
    found = one(recogniser, look(leaning({3: 0.9}, 30), "3"))
    assert found.identity is not None
    assert (found.identity.name, found.identity.kind) == ("Anna", "known")
    assert sightings(gallery, "Anna")[:2] == before
    assert [view.id for view in gallery.show("Anna")[1]] == views  # a known person grows by other rules
    assert len(gallery.list()) == 1


def test_rules_may_change_between_two_batches(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, Rules())
    assert one(recogniser, look(leaning({3: 1.0}), "1")).identity is None
    recogniser.rules = RULES
    name = name_of(one(recogniser, look(leaning({3: 1.0}), "2")))
    recogniser.rules = Rules()
    assert name_of(one(recogniser, look(leaning({3: 1.0}), "3"))) == name
    assert len(sightings(gallery, name)) == 1


def test_what_a_sighting_and_a_view_tell(gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, replace(RULES, keep_crops=True))
    start_s = time.time()
    name = name_of(one(recogniser, look(leaning({3: 1.0}), "7", part=2, quality=0.625)))
    seen = look(leaning({3: 0.9}), "8", camera="film", clock="stream", times_s=(2.0, 5.5))
    assert name_of(one(recogniser, seen)) == name
    first, second = sightings(gallery, name)
    assert (first.camera, first.platform, first.run, first.track) == ("gate", "ground", "run", "gate-7")
    assert (first.tracklet, first.clock, first.first_s, first.last_s) == (
        "gate-7-2",
        "camera",
        7020.0,
        7029.0,
    )
    assert (second.clock, second.first_s, second.last_s) == ("stream", 2.0, 5.5)
    assert second.score == pytest.approx(0.9, abs=1e-3)
    assert start_s <= first.told_s <= second.told_s <= time.time()
    identity, (view, filmed), _ = gallery.show(name)
    assert identity.seen_s == second.told_s
    assert (view.origin, view.camera, view.platform, view.quality) == ("unknown", "gate", "ground", 0.625)
    assert view.seen_s == 7029.0
    assert filmed.seen_s == second.told_s  # seconds of a video are no time of day
    assert [bytes(row[0]) for row in gallery.database.rows("SELECT pictures FROM clip")] == [PICTURES[0]] * 2


def test_expire_erases_who_was_not_met_again(tmp_path: Path) -> None:
    path = tmp_path / "people.sqlite"
    with opened(path) as gallery, opened(path, "away") as away:
        gallery.calibrate(made_open_set())
        away.refresh()
        recogniser = Recogniser(gallery, replace(RULES, promote_after=2))
        candidate = name_of(one(recogniser, look(leaning({1: 1.0}), "1")))
        unknown = name_of(one(recogniser, look(leaning({2: 1.0}), "2")))
        assert name_of(one(recogniser, look(leaning({2: 1.0}), "3"))) == unknown
        time.sleep(0.6)
        assert name_of(one(recogniser, look(leaning({2: 1.0}), "6", quality=0.1))) == unknown  # only sighted
        assert gallery.expire(candidates_s=0.5, unknowns_s=0.5, keep_s=None) == 1
        assert [each.identity for each in gallery.list()] == [unknown]
        assert {view.identity for view in gallery.show(unknown)[1]} == {gallery.show(unknown)[0].id}
        assert count(gallery, "sighting") == 3
        # A box that was away all the while learns of the one who stayed.
        assert name_of(one(Recogniser(away, RULES), look(leaning({2: 1.0}), "4", run="away"))) == unknown
        assert name_of(one(recogniser, look(leaning({1: 1.0}), "5"))) != candidate


def test_what_could_not_be_committed_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.05)
    monkeypatch.setattr("s3clip_runtime.gallery.recognition.recogniser._LONG_WAIT_S", 0.04)
    path = tmp_path / "people.sqlite"
    with opened(path) as gallery:
        gallery.calibrate(made_open_set())
        enrol(gallery, "Anna", 0)
        recogniser = Recogniser(gallery, RULES)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM identity").fetchone()  # now nobody can commit
        looks = [
            look(leaning({3: 1.0}), "1"),
            look(leaning({0: 1.0}), "2"),
            look(leaning({0: 1.0}), "3", final=False),
        ]
        found = recogniser.recognise(looks)
        assert [each.identity and each.identity.name for each in found] == [None, "Anna", "Anna"]
        assert (recogniser.unwritten, recogniser.tally.met) == (2, 0)
        assert "people.sqlite" in recogniser.trouble
        # It is not waited for again and again: the next looks are answered at once.
        began_s = time.monotonic()
        assert one(recogniser, look(leaning({0: 1.0}), "2", final=False)).identity is not None
        assert time.monotonic() - began_s < 0.04
        reader.close()
        time.sleep(0.5)
        assert name_of(one(recogniser, look(leaning({3: 1.0}), "4"))).startswith("unknown-")
        assert (recogniser.trouble, recogniser.unwritten, recogniser.tally.met) == ("", 2, 1)
        assert (count(gallery, "identity"), count(gallery, "sighting")) == (2, 1)


@pytest.mark.parametrize("wrong", [np.nan, 2.0])
def test_a_vector_that_is_none_is_refused_before_it_is_written(gallery: Gallery, wrong: float) -> None:
    recogniser = Recogniser(gallery, RULES)
    bad = leaning({3: 1.0}) * np.float32(wrong)
    with pytest.raises(GalleryError, match="Embedder"):
        recogniser.recognise([look(leaning({4: 1.0}), "1"), look(bad, "2")])
    assert count(gallery, "identity") == 0
    assert name_of(one(recogniser, look(leaning({4: 1.0}), "3"))).startswith("unknown-")


def test_names_that_change_hands_reach_other_boxes(tmp_path: Path) -> None:
    path, people = tmp_path / "people.sqlite", range(12)  # ids are random: either order is met
    with opened(path) as gallery, opened(path, "other") as other:
        for i in people:
            enrol(gallery, f"person {i}", i)
        other.refresh()
        for i in people:
            gallery.name(f"person {i}", f"formerly {i}")
            enrol(gallery, f"person {i}", 20 + i)
        for i in people:
            for name, axis in ((f"formerly {i}", i), (f"person {i}", 20 + i)):
                (match,) = other.search(leaning({axis: 1.0})[None], 1)[0]
                assert match.identity == name
                assert match.score == pytest.approx(1.0)
        assert other.identities == 2 * len(people)


@pytest.mark.parametrize("seed", range(4))
def test_random_looks_at_well_separated_people(gallery: Gallery, seed: int) -> None:
    """Against a model that knows who is who."""
    rng = np.random.default_rng(seed)
    people, tracks = 15, 120
    recogniser = Recogniser(gallery, replace(RULES, promote_after=3))
    names: dict[int, set[str]] = {person: set() for person in range(people)}
    seen_tracks: dict[int, set[tuple[str, str]]] = {person: set() for person in range(people)}
    looks: list[tuple[int, Seen]] = []
    for track in range(tracks):
        person = int(rng.integers(people))
        camera = str(rng.choice(["gate", "yard", "roof"]))
        for part in range(int(rng.integers(1, 4))):
            vector = leaning({person: float(rng.uniform(0.85, 0.97))}, int(rng.integers(20, SPACE.dim)))
            looks.append((person, look(vector, str(track), camera=camera, part=part)))
            seen_tracks[person].add((camera, str(track)))
    while looks:
        size = int(rng.integers(1, 9))
        batch, looks = looks[:size], looks[size:]
        found = recogniser.recognise([seen for _, seen in batch])
        for (person, _), each in zip(batch, found, strict=True):
            names[person].add(name_of(each))
    met = [person for person in range(people) if names[person]]
    assert all(len(names[person]) == 1 for person in met)
    assert len(gallery.list()) == len(set.union(*names.values())) == len(met) == recogniser.tally.met
    for person in met:
        (name,) = names[person]
        expected = "unknown" if len(seen_tracks[person]) >= 3 else "candidate"
        assert gallery.show(name)[0].kind == expected
