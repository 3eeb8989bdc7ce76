"""Where a person can have been: limits of ways, clocks, and one place at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from made_looks import THRESHOLD, enrol, leaning, look, made_open_set, opened, sightings

from s3clip_runtime.gallery.recognition.deciding import Recognised, Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.recognition.travel import HORIZON_S, SAME_CAMERA_S, Travel, Way
from s3clip_runtime.gallery.records import Clock, Seen

ANNA, BERT = 0, 1
WAYS = Travel({("gate", "yard"): Way(10, 60), ("gate", "hall"): Way(0, 60), ("yard", "gate"): Way(30, None)})
RULES = Rules(unknowns=True, travel=WAYS)


@pytest.fixture
def recogniser() -> Iterator[Recogniser]:
    with opened(None) as gallery:
        gallery.calibrate(made_open_set())
        enrol(gallery, "Anna", ANNA)
        yield Recogniser(gallery, RULES)


def at(
    track: str, camera: str, first_s: float, last_s: float, clock: Clock = "camera", run: str = "run"
) -> Seen:
    """A look at Anna."""
    vector = leaning({ANNA: 0.9}, 20)
    return look(vector, track, camera=camera, times_s=(first_s, last_s), clock=clock, run=run)


def who(recogniser: Recogniser, seen: Seen) -> str:
    (found,) = recogniser.recognise([seen])
    return named(found)


def named(found: Recognised) -> str:
    assert found.identity is not None
    return found.identity.name


@pytest.mark.parametrize(
    ("camera", "times_s", "possible"),
    [
        ("yard", (109.9, 120), False),  # needs 10 s from 100 on
        ("yard", (110.1, 120), True),
        ("yard", (159.9, 170), True),
        ("yard", (160.1, 170), False),  # and comes within 60 s
        ("yard", (99, 120), False),  # at both at once
        ("hall", (99, 120), True),  # their fields of view overlap
        ("yard", (50, 59.9), True),  # seen before, told later: the way is the one from the yard to the gate
        ("yard", (50, 60.1), False),
        ("roof", (95, 96), True),  # no way was named
        ("gate", (100 - SAME_CAMERA_S - 0.1, 120), False),  # twice in one picture
        ("gate", (100 - SAME_CAMERA_S + 0.1, 120), True),
        ("gate", (80, 120), False),
        ("gate", (92, 93.5), False),
        ("gate", (300, 310), True),
    ],
)
def test_time_forbids_and_allows(
    recogniser: Recogniser, camera: str, times_s: tuple[float, float], possible: bool
) -> None:
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    found = who(recogniser, at("2", camera, *times_s))
    assert (found == "Anna") == possible
    assert found == "Anna" or found.startswith("unknown-")
    assert recogniser.tally.vetoed == (not possible)
    assert len(sightings(recogniser.gallery, "Anna")) == 1 + possible


def test_coming_late_is_told_of_the_last_place_alone(recogniser: Recogniser) -> None:
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    assert who(recogniser, at("2", "roof", 150, 200)) == "Anna"
    assert who(recogniser, at("3", "yard", 220, 230)) == "Anna"  # from the roof, not from the gate


@pytest.mark.parametrize(
    ("clock", "run", "camera", "possible"),
    [
        ("arrival", "other", "yard", False),  # both count Unix seconds
        ("stream", "run", "yard", True),  # the seconds of two videos cannot be compared
        ("stream", "run", "gate", True),  # nor those of a video with the time of day
    ],
)
def test_other_clocks(recogniser: Recogniser, clock: Clock, run: str, camera: str, possible: bool) -> None:
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    assert (who(recogniser, at("2", camera, 99, 105, clock, run)) == "Anna") == possible


@pytest.mark.parametrize(
    ("run", "camera", "possible"), [("run", "gate", False), ("run", "yard", True), ("other", "gate", True)]
)
def test_videos_are_compared_with_themselves_alone(
    recogniser: Recogniser, run: str, camera: str, possible: bool
) -> None:
    assert who(recogniser, at("1", "gate", 90, 100, "stream")) == "Anna"
    assert (who(recogniser, at("2", camera, 95, 105, "stream", run)) == "Anna") == possible


def test_the_next_candidate_is_taken_if_it_reaches_the_threshold(recogniser: Recogniser) -> None:
    enrol(recogniser.gallery, "Bert", BERT)
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    both = leaning({ANNA: 0.7, BERT: THRESHOLD + 0.02}, 20)
    (found,) = recogniser.recognise([look(both, "2", times_s=(92, 99))])
    assert (named(found), found.decision.identity, found.matches[0].identity) == ("Bert", "Bert", "Anna")
    assert recogniser.tally.vetoed == 1
    (third,) = recogniser.recognise([look(both, "3", times_s=(92, 99))])
    assert third.decision.verdict == "unknown"
    assert recogniser.tally.vetoed == 3


def test_two_alike_in_one_picture_are_two_people_also_in_one_batch(recogniser: Recogniser) -> None:
    first, second = at("1", "gate", 90, 100), at("2", "gate", 90, 100)
    names = [named(found) for found in recogniser.recognise([first, second])]
    assert names[0] == "Anna"
    assert names[1].startswith("unknown-")
    # Parts of a track go on as who they are, whatever other tracks say.
    part = replace(second, tracklet="gate-2-1", first_s=100.0, last_s=110.0)
    assert who(recogniser, replace(part, vector=leaning({ANNA: 0.1}, 60))) == names[1]


def test_a_track_that_was_sighted_goes_on(recogniser: Recogniser) -> None:
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    assert who(recogniser, at("2", "roof", 95, 100)) == "Anna"
    recogniser.rules = replace(RULES, travel=Travel({("roof", "gate"): Way(1000, None)}))
    part = replace(at("1", "gate", 100, 110), tracklet="gate-1-1")
    assert who(recogniser, part) == "Anna"
    assert who(recogniser, at("3", "gate", 120, 130)) != "Anna"


@pytest.mark.parametrize(("later_s", "possible"), [(HORIZON_S - 5, False), (HORIZON_S + 5, True)])
def test_what_was_told_long_ago_forbids_nothing(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch, later_s: float, possible: bool
) -> None:
    clock_s = [1.8e9]
    monkeypatch.setattr("s3clip_runtime.gallery.recognition.deciding.time.time", lambda: clock_s[0])
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    clock_s[0] += later_s
    assert (who(recogniser, at("2", "yard", 100 + later_s, 110 + later_s)) == "Anna") == possible


def test_rules_replaced_between_batches_count_at_once(recogniser: Recogniser) -> None:
    assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
    recogniser.rules = replace(RULES, travel=Travel())
    assert who(recogniser, at("2", "yard", 101, 104)) == "Anna"
    recogniser.rules = RULES
    assert who(recogniser, at("3", "yard", 104.5, 105)) != "Anna"


def test_ways_alone_make_a_run_write_sightings() -> None:
    with opened(None) as gallery:
        gallery.calibrate(made_open_set())
        enrol(gallery, "Anna", ANNA)
        recogniser = Recogniser(gallery, Rules(travel=WAYS))
        assert who(recogniser, at("1", "gate", 90, 100)) == "Anna"
        (found,) = recogniser.recognise([at("2", "yard", 101, 104)])
        assert found.identity is None  # and no id for an unknown one
        assert [one.camera for one in sightings(gallery, "Anna")] == ["gate"]
