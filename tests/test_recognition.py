"""A run and its gallery: lasting ids for unknown people, a database in trouble, limits of storage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_sightings import wait_for
from numpy.typing import NDArray
from postgres_server import Postgres
from test_batcher import person, recognise, vector
from tiny_bundle import DIM, SPACE

from s3clip_runtime.cli.recognition import cautions, limits_of, rules_of
from s3clip_runtime.cli.session import LookSettings, Matching, Session
from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.open_set.calibrate import calibrate
from s3clip_runtime.gallery.open_set.decision import OpenSet
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Space
from s3clip_runtime.gallery.search.server import ServerSearch
from s3clip_runtime.gallery.storage.clips import unpack
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.site.model import Site
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.page.health import troubles
from s3clip_runtime.streams.recognition.batcher import seen_of
from s3clip_runtime.streams.recognition.housekeeping import Housekeeping, Limits

REMEMBER = Rules(threshold=0.995, unknowns=True, promote_after=2, min_quality=0.2)
"""The made looks have a quality of 0.25."""


@pytest.fixture(scope="module")
def embedder(bundle_folder: Path) -> Iterator[Embedder]:
    with Embedder(Bundle.open(bundle_folder), device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "people.sqlite", Space(SPACE, DIM)) as opened:
        yield opened


def seen_at(camera: str, track: int, *, after_s: float = 0.0, stage: str = "final") -> Look:
    """The person of that number, in a track of the same number."""
    look = person(track)
    start, end = look.tracklet.start_s + after_s, look.tracklet.end_s + after_s
    tracklet = replace(look.tracklet, camera=camera, start_s=start, end_s=end)
    return replace(look, tracklet=tracklet, stage=stage)  # type: ignore[arg-type]  # one of Stage


def noisy(track: int) -> Look:
    """A person whose crops take 60 kB when they are kept."""
    look = person(track)
    rng = np.random.default_rng(1000 + track)
    crops = tuple(rng.integers(0, 256, (60, 40, 3), dtype=np.uint8) for _ in range(8))
    return replace(look, clip=Clip(crops, 1, hr=False))


def vector_of(embedder: Embedder, look: Look) -> NDArray[np.float32]:
    return embedder.embed([look.clip])


def test_one_person_has_one_id_over_two_cameras(embedder: Embedder, gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, REMEMBER)
    looks = [
        seen_at("gate", 1),
        seen_at("gate", 2, after_s=60),
        seen_at("yard", 1, after_s=120),
        seen_at("gate", 3, after_s=180),
    ]
    found, batcher = recognise(embedder, looks, recogniser=recogniser)
    assert batcher.error is None
    events = [one.event for one in found]
    ids = [event.identity for event in events]
    assert all(id is not None and id.startswith("unknown-") for id in ids)
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3
    assert [event.decision for event in events] == ["unknown"] * 4
    assert [event.person for event in events] == ["candidate", "candidate", "unknown", "candidate"]
    assert (events[0].nearest, events[0].score) == (None, -1)
    assert (events[2].nearest, events[2].threshold) == (ids[0], 0.995)
    assert events[2].score == pytest.approx(1, abs=1e-3)
    assert (recogniser.tally.met, recogniser.identities, recogniser.unwritten) == (3, 3, 0)
    # A later run, while the person is still in view: the id is there, and nothing is added.
    again, _ = recognise(
        embedder, [seen_at("gate", 1, stage="first")], recogniser=Recogniser(gallery, REMEMBER)
    )
    assert (again[0].event.identity, again[0].event.person) == (ids[0], "unknown")
    assert {one.identity: one.sightings for one in gallery.list()} == {ids[0]: 2, ids[1]: 1, ids[3]: 1}


def test_a_named_unknown_is_a_match_from_then_on(embedder: Embedder, gallery: Gallery) -> None:
    recogniser = Recogniser(gallery, REMEMBER)
    (first,), _ = recognise(embedder, [seen_at("gate", 1)], recogniser=recogniser)
    assert first.event.identity is not None
    gallery.name(first.event.identity, "anna")
    (second,), _ = recognise(embedder, [seen_at("yard", 1, after_s=60)], recogniser=recogniser)
    assert (second.event.decision, second.event.identity, second.event.person) == ("match", "anna", "known")


def test_without_the_site_s_consent_nothing_is_written(embedder: Embedder, gallery: Gallery) -> None:
    gallery.enrol("anna", vector_of(embedder, person(1)), platform="ground", source="test")
    before = gallery.log()
    found, _ = recognise(
        embedder, [person(1), person(2)], recogniser=Recogniser(gallery, Rules(threshold=0.995))
    )
    assert [one.event.identity for one in found] == ["anna", None]
    assert gallery.log() == before
    assert [(one.identity, one.sightings) for one in gallery.list()] == [("anna", 0)]


def test_poor_looks_leave_no_id(embedder: Embedder, gallery: Gallery) -> None:
    rules = replace(REMEMBER, min_quality=0.26)
    (found,), _ = recognise(embedder, [person(1)], recogniser=Recogniser(gallery, rules))
    assert (found.event.decision, found.event.identity) == ("unknown", None)
    assert gallery.list() == []


def test_what_the_gallery_is_told_of_a_look(embedder: Embedder) -> None:
    look = person(5)
    qualities = tuple(replace(look.tracklet.qualities[0], value=value) for value in (0.1, 0.2, 0.9))
    look = replace(look, tracklet=replace(look.tracklet, qualities=qualities))
    seen = seen_of(look, vector_of(embedder, look)[0], "run-1")
    # The look's eight frames are crops 0, 1 and six times 2.
    assert seen.quality == pytest.approx((0.1 + 0.2 + 6 * 0.9) / 8)
    assert (seen.camera, seen.platform, seen.height_px, seen.run) == ("gate", "aerial", 40.0, "run-1")
    assert (seen.tracklet, seen.final, seen.clock) == ("gate-5-1", True, "camera")
    assert (seen.first_s, seen.last_s) == (1e9, 1e9 + 2.25)
    next_part = replace(look, tracklet=replace(look.tracklet, part=2))
    later_stretch = replace(look, tracklet=replace(look.tracklet, epoch=3))
    tracks = [seen_of(one, seen.vector, "run-1").track for one in (look, next_part, later_stretch)]
    assert tracks[0] == tracks[1] != tracks[2]
    packed, hr = seen.pictures()
    assert not hr
    for kept, crop in zip(unpack(packed), look.clip.crops, strict=True):
        np.testing.assert_array_equal(kept, crop)


# --- open set


def made_open_set(seed: int = 0) -> OpenSet:
    """Thresholds from sixty people with three tracklets each, of any heights, in a space of `DIM` numbers."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(60, DIM)), 3, axis=0)
    vectors = centres + 0.3 * rng.normal(size=centres.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    people = [f"p{number}" for number in range(60) for _ in range(3)]
    cameras = ["c0", "c1", "c2"] * 60
    heights = [40.0] * 180
    return calibrate(
        vectors.astype(np.float32), people, ["aerial"] * 180, cameras, heights, data="made", fpir=0.1, seed=0
    )


def test_an_uncalibrated_gallery_names_nobody_until_it_is_calibrated(
    embedder: Embedder, gallery: Gallery
) -> None:
    looks = [person(1), person(2)]
    gallery.enrol("anna", vector_of(embedder, looks[0]), platform="aerial", source="test")
    recogniser = Recogniser(gallery, replace(REMEMBER, threshold=None))
    before, _ = recognise(embedder, looks, recogniser=recogniser)
    assert [one.event.decision for one in before] == ["uncalibrated"] * 2
    assert [(one.event.identity, one.event.nearest) for one in before] == [(None, "anna")] * 2
    assert [(one.event.threshold, one.event.probability) for one in before] == [(None, None)] * 2
    assert before[0].event.score == pytest.approx(1, abs=1e-3)
    assert len(gallery.list()) == 1  # without a limit nobody is new either
    open_set = made_open_set()
    gallery.calibrate(open_set)
    (after,), _ = recognise(embedder, [looks[0]], recogniser=recogniser)
    pair = open_set.find("aerial", "aerial", 40)
    assert pair is not None
    assert (after.event.decision, after.event.identity) == ("match", "anna")
    assert after.event.threshold == round(pair.threshold, 4)
    assert after.event.score is not None
    assert after.event.probability == pytest.approx(pair.probability(after.event.score), abs=1e-3)
    assert recogniser.open_set == open_set


def test_what_an_operator_is_warned_of(gallery: Gallery) -> None:
    def told(rules: Rules) -> list[str]:
        return list(cautions(Recogniser(gallery, rules)))

    (bare,) = told(Rules())
    assert "people.sqlite is uncalibrated, so nobody is named" in bare
    assert "s3clip-gallery calibrate" in bare
    assert told(Rules(threshold=0.7, unknowns=True)) == []
    (growing,) = told(Rules(threshold=0.7, grow=True))
    assert growing.startswith("identities.grow waits until")
    assert [line.split()[0] for line in told(Rules(unknowns=True, grow=True))][1:] == [
        "identities.unknowns",
        "identities.grow",
    ]
    gallery.calibrate(made_open_set())
    assert told(Rules(unknowns=True, grow=True)) == []
    rows = np.eye(DIM, dtype=np.float32)
    for number in range(61):
        gallery.enrol(f"p{number}", rows[number % DIM][None], platform="aerial", source="test")
    (large,) = told(Rules())
    assert "61 identities and its thresholds were measured with 30" in large
    assert told(Rules(threshold=0.7)) == []


# --- trouble


def test_a_full_disk_stops_remembering_and_not_recognition(
    embedder: Embedder, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    gallery.enrol("anna", vector_of(embedder, person(1)), platform="aerial", source="test")
    recogniser = Recogniser(gallery, replace(REMEMBER, keep_crops=True))
    pages = gallery.database.rows("PRAGMA page_count")[0][0]
    gallery.database.rows(f"PRAGMA max_page_count = {pages}")
    for _ in range(2):
        found, batcher = recognise(embedder, [person(1), noisy(2)], recogniser=recogniser)
        assert batcher.error is None
        assert [(one.event.decision, one.event.identity) for one in found] == [
            ("match", "anna"),
            ("unknown", None),
        ]
    assert "full" in recogniser.trouble
    assert "people.sqlite" in recogniser.trouble
    assert (recogniser.unwritten, recogniser.tally.met) == (4, 0)
    # Looks that only ask can be answered, and show nothing of whether there is room again.
    recognise(embedder, [seen_at("gate", 1, stage="first")], recogniser=recogniser)
    assert "full" in recogniser.trouble
    assert caplog.text.count("nothing is remembered") == 1
    gallery.database.rows("PRAGMA max_page_count = 1000000")
    (later,), _ = recognise(embedder, [noisy(2)], recogniser=recogniser)
    assert later.event.identity is not None
    assert later.event.person == "candidate"
    assert (recogniser.trouble, recogniser.unwritten, recogniser.tally.met) == ("", 4, 1)
    assert caplog.text.count("can be used again") == 1


@pytest.mark.parametrize("searches", ["memory", "server"])
def test_a_server_that_is_away_ends_no_run(embedder: Embedder, postgres: Postgres, searches: str) -> None:
    """What is held in memory is recognised still; what only the server knows cannot be asked."""
    address, space = postgres.dsn(), Space(SPACE, DIM)
    with Gallery.open(address, space) as made:
        made.enrol("anna", vector_of(embedder, person(1)), platform="aerial", source="test")
        if searches == "server":
            assert isinstance(made.database, PostgresDatabase)
            ServerSearch(made.database).make_index(SPACE, DIM)
    with Gallery.open(address, space) as gallery:
        recogniser = Recogniser(gallery, REMEMBER)
        known, _ = recognise(embedder, [person(1)], recogniser=recogniser)
        assert known[0].event.identity == "anna"
        postgres.stop()
        try:
            found, batcher = recognise(embedder, [person(1), person(2)], recogniser=recogniser)
        finally:
            postgres.start()
        assert batcher.error is None
        decisions = [one.event.decision for one in found]
        assert decisions == (["match", "unknown"] if searches == "memory" else ["not_matched"] * 2)
        assert [one.event.identity for one in found] == ["anna" if searches == "memory" else None, None]
        np.testing.assert_allclose(vector(found[0]), vector_of(embedder, person(1))[0], atol=1e-6)
        assert len(found[0].matches) == (1 if searches == "memory" else 0)
        assert recogniser.trouble
        assert "unused" not in recogniser.trouble  # the password
        time.sleep(1.1)  # so long nobody tries the server again
        (again, new), _ = recognise(embedder, [person(1), person(2)], recogniser=recogniser)
        assert again.event.identity == "anna"
        assert new.event.person == "candidate"
        assert not recogniser.trouble


def test_a_damaged_gallery_ends_it(embedder: Embedder, gallery: Gallery, tmp_path: Path) -> None:
    recogniser = Recogniser(gallery, REMEMBER)
    with Gallery.open(tmp_path / "people.sqlite", Space(SPACE, DIM)) as other:
        other.enrol("bert", np.eye(DIM, dtype=np.float32)[:1], platform=None, source="test")
        other.database.run("UPDATE prototype SET vector = ?", b"\0")
    found, batcher = recognise(embedder, [person(1)], recogniser=recogniser)
    assert isinstance(batcher.error, GalleryError)
    assert not isinstance(batcher.error, GalleryUnavailable)
    assert "damaged" in str(batcher.error)
    assert [one.event.decision for one in found] == ["not_embedded"]


# --- limits of storage


def test_who_was_not_seen_for_long_is_erased(embedder: Embedder, gallery: Gallery) -> None:
    gallery.enrol("anna", vector_of(embedder, person(9)), platform="aerial", source="test")
    recognise(embedder, [person(1)], recogniser=Recogniser(gallery, REMEMBER))
    assert len(gallery.list()) == 2
    housekeeping = Housekeeping(gallery, Limits(3600.0, 3600.0, 1e10), every_s=0.02)
    housekeeping.start()
    time.sleep(0.2)
    kept = len(gallery.list())
    housekeeping.limits = Limits(0.0, 3600.0, 1e10)
    wait_for(lambda: len(gallery.list()) == 1)
    housekeeping.close()
    assert kept == 2
    assert [one.identity for one in gallery.list()] == ["anna"]
    assert not any(thread.name == "housekeeping" for thread in threading.enumerate())


def test_erasing_waits_for_a_gallery_that_cannot_be_written(
    embedder: Embedder, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    recognise(embedder, [person(1)], recogniser=Recogniser(gallery, REMEMBER))
    gallery.database.rows("PRAGMA query_only = ON")  # as on a file system that was remounted read-only
    housekeeping = Housekeeping(gallery, Limits(0.0, 0.0, 3600.0), every_s=0.02)
    housekeeping.start()
    wait_for(lambda: housekeeping.trouble)
    time.sleep(0.2)
    assert "readonly" in housekeeping.trouble
    assert caplog.text.count("stays until the gallery can be written") == 1
    with gallery.remembering():  # the thread that erases uses the connection too
        gallery.database.rows("PRAGMA query_only = OFF")
    wait_for(lambda: not housekeeping.trouble)
    housekeeping.close()
    assert gallery.list() == []


def test_the_status_of_a_run_tells_of_its_gallery(
    embedder: Embedder, gallery: Gallery, bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recogniser = Recogniser(gallery, REMEMBER)
    matching = Matching(Bundle.open(bundle_folder), embedder, recogniser)
    session = Session(matching, LookSettings(), {}, [], threading.Event())
    recognise(embedder, [person(1), person(2)], recogniser=recogniser)
    status = session.status().gallery
    assert status is not None
    assert (status.identities, status.met, status.grown, status.vetoed) == (2, 2, 0, 0)
    assert (status.calibration, status.calibrated_unix_s, status.threshold) == ("", None, 0.995)
    session.change(LookSettings(), REMEMBER, None)
    assert not caplog.records
    session.change(LookSettings(), replace(REMEMBER, grow=True), None)
    assert "identities.grow waits until" in caplog.text
    open_set = made_open_set()
    gallery.calibrate(open_set)
    gallery.database.rows("PRAGMA query_only = ON")
    session.change(LookSettings(), replace(REMEMBER, threshold=None), Limits(0.0, 0.0, 60.0))
    (found,), _ = recognise(embedder, [person(1)], recogniser=recogniser)
    assert found.event.identity is not None
    status = session.status().gallery
    assert status is not None
    assert (status.calibration, status.calibrated_unix_s) == ("made", open_set.created.timestamp())
    assert (status.threshold, status.unwritten) == (None, 1)
    assert "readonly" in status.trouble
    assert status.trouble in troubles(session.status())
    gallery.database.rows("PRAGMA query_only = OFF")
    assert session.run() == []  # without a camera it ends at once, and its limits hold from the start
    wait_for(lambda: gallery.list() == [])


def test_nobody_waits_for_the_gallery_to_tell_the_status(
    embedder: Embedder, gallery: Gallery, bundle_folder: Path
) -> None:
    """The loop tells it ten times a second, and a gallery may wait long for its database."""
    matching = Matching(Bundle.open(bundle_folder), embedder, Recogniser(gallery, REMEMBER))
    session = Session(matching, LookSettings(), {}, [], threading.Event())
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with gallery.remembering():
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(10)
    asker = threading.Thread(target=session.status, daemon=True)
    asker.start()
    asker.join(2)
    finished = not asker.is_alive()
    done.set()
    holder.join(10)
    assert finished


def test_rules_and_limits_are_those_of_the_site() -> None:
    camera = {"name": "gate", "platform": "ground", "url": "rtsp://h/x"}
    tree = {"bundle": "b", "gallery": "g", "threshold": 0.7, "cameras": [camera]}
    plain = Site.model_validate(tree)
    assert rules_of(plain) == Rules(threshold=0.7)
    assert not rules_of(plain).writes
    assert limits_of(plain) is None
    way = {"from": "gate", "to": "yard", "min_s": 5, "max_s": 60}
    wanted = {
        "unknowns": True, "grow": True, "promote_after": 4, "min_quality": 0.4, "candidate_days": 0.5,
        "unknown_days": 2, "keep_days": 3, "keep_crops": True, "travel": [way],
    }  # fmt: skip
    rules = rules_of(Site.model_validate(tree | {"identities": wanted}))
    assert (rules.unknowns, rules.grow, rules.keep_crops) == (True, True, True)
    assert (rules.threshold, rules.promote_after, rules.min_quality) == (0.7, 4, 0.4)
    assert [(*key, one.min_s, one.max_s) for key, one in rules.travel.ways.items()] == [
        ("gate", "yard", 5, 60)
    ]
    found = limits_of(Site.model_validate(tree | {"identities": wanted}))
    assert found == Limits(43_200, 172_800, 259_200)
