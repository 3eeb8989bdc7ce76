"""Views that a run adds to known people: everything must hold, and each condition alone can stop it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from made_looks import GROWTH, SPACE, THRESHOLD, enrol, leaning, look, made_open_set, opened

from s3clip_runtime.gallery.edits import MAX_OF_CAMERA, MAX_PROTOTYPES
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.growth import WINDOW_S
from s3clip_runtime.gallery.recognition.recogniser import Recogniser

ANNA, BERT = 0, 1
RULES = Rules(grow=True, min_quality=0.5)


@dataclass(frozen=True)
class Case:
    """Two looks at Anna, by default such that she grows; each test breaks one thing."""

    anna: tuple[float, float] = (GROWTH + 0.02, GROWTH + 0.02)
    bert: tuple[float, float] = (THRESHOLD - 0.02, THRESHOLD - 0.02)
    rest: tuple[int, int] = (50, 50)
    tracks: tuple[str, str] = ("1", "2")
    qualities: tuple[float, float] = (0.9, 0.9)
    final: tuple[bool, bool] = (True, True)
    between_s: float = WINDOW_S - 1
    grow: bool = True
    operators: float | None = None
    platforms: tuple[str, str] = ("ground", "ground")


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with opened(None) as made:
        made.calibrate(made_open_set())
        enrol(made, "Anna", ANNA)
        enrol(made, "Bert", BERT)
        yield made


def grown(gallery: Gallery, case: Case, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many views the two looks added to Anna, who is recognised in both."""
    rules = replace(RULES, grow=case.grow, unknowns=not case.grow, threshold=case.operators)
    recogniser = Recogniser(gallery, rules)
    for i in range(2):
        vector = leaning({ANNA: case.anna[i], BERT: case.bert[i]}, case.rest[i])
        seen = look(
            vector,
            case.tracks[i],
            part=i,
            quality=case.qualities[i],
            final=case.final[i],
            platform=case.platforms[i],
        )
        now_s = 1.8e9 + i * case.between_s
        monkeypatch.setattr(
            "s3clip_runtime.gallery.recognition.deciding.time.time", lambda now_s=now_s: now_s
        )
        (found,) = recogniser.recognise([seen])
        assert found.identity is not None
        assert found.identity.name == "Anna"
    views = gallery.show("Anna")[1]
    assert len(gallery.show("Bert")[1]) == 1
    assert recogniser.tally.grown == len(views) - 1 == sum(view.origin == "grown" for view in views)
    return recogniser.tally.grown


def test_two_good_sightings_add_both_views(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grown(gallery, Case(), monkeypatch) == 2
    assert [entry.action for entry in gallery.log()][-2:] == ["grow", "grow"]
    seen = leaning({ANNA: GROWTH + 0.02, BERT: THRESHOLD - 0.02}, 50)
    assert gallery.search(seen[None], 1)[0][0].score == pytest.approx(1.0, abs=1e-3)
    gallery.undo(gallery.log()[-1].seq)
    assert len(gallery.show("Anna")[1]) == 2
    undone = gallery.undo()  # of what people did, not of the growth that is left
    assert undone.action == "enrol"


@pytest.mark.parametrize(
    "case",
    [
        Case(anna=(GROWTH - 0.02, GROWTH + 0.02)),
        Case(anna=(GROWTH + 0.02, GROWTH - 0.02)),
        Case(bert=(THRESHOLD + 0.02, THRESHOLD - 0.02)),
        Case(bert=(THRESHOLD - 0.02, THRESHOLD + 0.02)),
        Case(bert=(0.0, 0.0), rest=(50, 51)),
        Case(tracks=("1", "1")),
        Case(between_s=WINDOW_S + 1),
        Case(qualities=(0.4, 0.9)),
        Case(qualities=(0.9, 0.4)),
        Case(final=(False, True)),
        Case(final=(True, False)),
        Case(grow=False),
    ],
    ids=lambda case: ", ".join(
        f"{key}={value}" for key, value in vars(case).items() if value != getattr(Case(), key)
    ),
)
def test_each_condition_alone_stops_it(gallery: Gallery, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grown(gallery, case, monkeypatch) == 0


def test_alike_is_told_by_the_threshold(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    near = Case(anna=(0.78, 0.78), bert=(0.0, 0.0), rest=(50, 51))  # cosine 0.6084 to each other
    assert grown(gallery, near, monkeypatch) == 2


def test_the_operators_threshold_alone_grows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(None) as gallery:  # uncalibrated
        enrol(gallery, "Anna", ANNA)
        enrol(gallery, "Bert", BERT)
        assert grown(gallery, Case(operators=THRESHOLD), monkeypatch) == 0


@pytest.mark.parametrize(("across", "wanted"), [(0.55, 2), (0.7, 0), (None, 0)])
def test_two_platforms_are_alike_by_the_threshold_between_them(across: float | None, wanted: int) -> None:
    """Anna is enrolled from both; each look finds the prototype of its own platform."""
    pairs = [("ground", "ground", THRESHOLD), ("aerial", "aerial", THRESHOLD)]
    with opened(None) as gallery:
        gallery.calibrate(made_open_set([*pairs, ("aerial", "ground", across)] if across else pairs))
        enrol(gallery, "Anna", 0, "ground")
        enrol(gallery, "Anna", 1, "aerial")
        recogniser = Recogniser(gallery, RULES)
        recogniser.recognise([look(leaning({0: 0.8, 1: 0.4}, 50), "1", platform="ground")])
        recogniser.recognise([look(leaning({0: 0.4, 1: 0.8}, 51), "2", platform="aerial")])  # cosine 0.64
        assert recogniser.tally.grown == wanted


@pytest.mark.parametrize(("across", "wanted"), [(0.5, 0), (0.6, 2), (None, 0)])
def test_a_runner_up_is_told_by_its_own_threshold(across: float | None, wanted: int) -> None:
    pairs = [("ground", "ground", THRESHOLD)]
    with opened(None) as gallery:
        gallery.calibrate(made_open_set([*pairs, ("ground", "aerial", across)] if across else pairs))
        enrol(gallery, "Anna", ANNA, "ground")
        enrol(gallery, "Bert", BERT, "aerial")
        recogniser = Recogniser(gallery, RULES)
        for track in "12":
            recogniser.recognise([look(leaning({ANNA: 0.8, BERT: 0.55}, 50), track)])
        assert recogniser.tally.grown == wanted


def test_growth_is_bounded_and_pushes_out_nothing_enrolled() -> None:
    rng = np.random.default_rng(1)
    with opened(None) as gallery:
        gallery.calibrate(made_open_set())
        for i in range(MAX_OF_CAMERA - 2):
            vector = leaning({ANNA: 0.9}, 2 + i)
            gallery.enrol("Anna", vector[None], platform="ground", source="test", camera="gate")
        enrolled = {view.id for view in gallery.show("Anna")[1]}
        recogniser = Recogniser(gallery, RULES)
        for track in range(160):
            camera = f"camera {track // 2 % 8}" if track % 3 else "gate"
            vector = leaning({ANNA: float(rng.uniform(0.85, 0.95))}, int(rng.integers(20, SPACE.dim)))
            recogniser.recognise([look(vector, str(track), camera=camera)])
        views = gallery.show("Anna")[1]
        assert recogniser.tally.grown > MAX_PROTOTYPES
        assert enrolled <= {view.id for view in views}
        assert len(views) == MAX_PROTOTYPES
        cameras = [view.camera for view in views]
        assert max(cameras.count(camera) for camera in set(cameras)) <= MAX_OF_CAMERA
