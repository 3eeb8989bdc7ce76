"""What every gallery does, in a SQLite file and on a PostgreSQL server alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from gallery_stores import DIM, Place, Vectors, brute_force, filled, opened, units
from gallery_stores import place as place
from gallery_stores import places as places
from tiny_bundle import SPACE

from s3clip_runtime.errors import ConfigError, GalleryError
from s3clip_runtime.gallery.edits import MAX_OF_CAMERA, MAX_PROTOTYPES
from s3clip_runtime.gallery.erasure.forget import Selection
from s3clip_runtime.gallery.erasure.receipts import verify
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.open_set.decision import OpenSet, PairCalibration, all_heights
from s3clip_runtime.gallery.records import Match, Space
from s3clip_runtime.gallery.storage.clips import pack, unpack
from s3clip_runtime.gallery.storage.vault import make_key
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.evidence import Interval

OTHER_SPACE = "cd" * 32


def state(gallery: Gallery) -> object:
    """All that edits change and undo brings back."""
    return [
        (replace(one, enrolled_s=0.0), [replace(p, added_s=0.0) for p in gallery.show(one.identity)[1]])
        for one in gallery.list()
    ]


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_search_equals_brute_force(place: Place, k: int) -> None:
    rng = np.random.default_rng(0)
    truth = {f"p{i}": units(rng, int(rng.integers(1, 6))) for i in range(60)}
    queries = units(rng, 9)
    with opened(place) as gallery:
        for name, vectors in truth.items():
            gallery.enrol(name, vectors, platform="ground", source="test")
        found = gallery.search(queries, k)
    with opened(place) as again:
        assert again.search(queries, k) == found
    for query, matches in zip(queries, found, strict=True):
        wanted = brute_force(truth, query, k)
        assert [m.identity for m in matches] == [m.identity for m in wanted]
        np.testing.assert_allclose([m.score for m in matches], [m.score for m in wanted], atol=1e-12)


def test_both_stores_give_the_same_to_the_last_tie(tmp_path: Path, dsn: str) -> None:
    rng = np.random.default_rng(2)
    twin, others, queries = units(rng, 1), units(rng, 30), units(rng, 8)
    results: list[tuple[list[list[Match]], list[str]]] = []
    for at in (tmp_path / "g", dsn):
        with opened(at) as gallery:
            for i in np.random.default_rng(len(results)).permutation(30):  # in another order
                gallery.enrol(
                    f"Ünknown {i}" if i % 2 else f"name {i}", others[i][None], platform=None, source="s"
                )
                gallery.enrol(f"twin {i:02}", twin, platform="aerial" if i % 3 else "ground", source="s")
            asked = np.concatenate([queries, twin])
            results.append((gallery.search(asked, 25), [one.identity for one in gallery.list()]))
    assert results[0] == results[1]
    ties = results[0][0][-1]
    assert [match.identity for match in ties] == [f"twin {i:02}" for i in range(25)]
    assert len({match.score for match in ties}) == 1


def test_an_empty_gallery_and_no_queries(place: Place) -> None:
    with opened(place) as gallery:
        assert gallery.search(units(np.random.default_rng(0), 2)) == [[], []]
        assert gallery.list() == []
        gallery.enrol("a", units(np.random.default_rng(0), 1), platform=None, source="s")
        assert gallery.search(np.zeros((0, DIM), np.float32)) == []


def test_what_is_enrolled_survives_reopening(place: Place) -> None:
    gallery, truth = filled(place)
    query = units(np.random.default_rng(5), 4)
    before = gallery.search(query)
    gallery.close()
    gallery.close()
    with opened(place) as again:
        assert again.search(query) == before
        summaries = again.list()
        info = again.info()
    assert [(s.identity, s.prototypes, s.platforms, s.sources) for s in summaries] == [
        (name, len(vectors), ("ground",), ("camera 1",)) for name, vectors in truth.items()
    ]
    assert abs(summaries[0].enrolled_s - time.time()) < 60
    assert (info.spaces, info.people, info.encrypted) == (((Space(SPACE, DIM), 6),), {"known": 3}, False)


def test_prototypes_are_bounded_and_rare_views_stay(place: Place) -> None:
    """100 near-equal views from the gate push out neither the view from above nor those of other cameras."""
    rng = np.random.default_rng(4)
    aerial, other, ground = units(rng, 3)
    noisy = ground + 0.02 * rng.normal(size=(100, DIM))
    views = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    with opened(place) as gallery:
        gallery.enrol("a", aerial[None], platform="aerial", source="drone", camera="drone")
        gallery.enrol("a", other[None], platform="ground", source="photo")
        for start in range(0, 100, 10):
            gallery.enrol("a", views[start : start + 10], platform="ground", source="gate", camera="gate")
        (summary,) = gallery.list()
        assert summary.prototypes == MAX_OF_CAMERA + 2
        for start in range(0, 100, 10):
            gallery.enrol("a", views[start : start + 10], platform="ground", source="photos")
        for rare in (aerial, other, views[-1]):
            assert gallery.search(rare[None])[0][0].score > 0.999
        (summary,) = gallery.list()
    assert (summary.prototypes, summary.platforms) == (MAX_PROTOTYPES, ("aerial", "ground"))


def test_edits_and_their_undoing(place: Place) -> None:
    gallery, truth = filled(place)
    beginning = state(gallery)
    one, two = truth["person 1"], truth["person 2"]

    def best(query: Vectors) -> str:
        return gallery.search(query[None], 1)[0][0].identity

    gallery.merge("person 1", "person 2")
    assert [best(two[0]), best(one[0])] == ["person 1", "person 1"]
    assert [(s.identity, s.prototypes) for s in gallery.list()] == [("person 0", 1), ("person 1", 5)]
    ids = [p.id for p in gallery.show("person 1")[1]]
    gallery.split("person 1", ids[2:4], "Ada")
    assert [best(two[0]), best(two[2])] == ["Ada", "person 1"]
    gallery.name("Ada", "Äda")
    assert best(two[0]) == "Äda"
    gallery.note("Äda", "wears a hat")
    assert gallery.show("Äda")[0].note == "wears a hat"
    gallery.enrol("Äda", one[:1], platform="aerial", source="drone")
    gallery.enrol("new", -one[:1], platform="aerial", source="drone")
    assert best(-one[0]) == "new"
    undone = [gallery.undo().action for _ in range(6)]
    assert undone == ["enrol", "enrol", "note", "name", "split", "merge"]
    assert state(gallery) == beginning
    with opened(place) as again:
        assert again.search(two, 3) == gallery.search(two, 3)
    entries = gallery.log()
    assert [e.seq for e in entries] == sorted({e.seq for e in entries})
    assert sum(e.action == "undo" for e in entries) == 6
    gallery.close()


def test_undoing_an_earlier_entry_and_what_cannot_be_undone(place: Place) -> None:
    gallery, truth = filled(place)
    enrolled = next(e for e in gallery.log() if e.action == "enrol")  # person 0
    gallery.merge("person 2", "person 0")
    with pytest.raises(GalleryError, match="merged or forgotten since"):
        gallery.undo(enrolled.seq)
    with pytest.raises(GalleryError, match="cannot be undone"):
        gallery.undo(gallery.log()[0].seq)
    with pytest.raises(GalleryError, match="entry 999 of the log is not there"):
        gallery.undo(999)
    gallery.enrol("person 0", truth["person 0"], platform=None, source="s")
    with pytest.raises(GalleryError, match="the name 'person 0' is taken"):
        gallery.undo(gallery.log()[-2].seq)
    gallery.close()


def test_naming_an_unknown_after_a_known_person_makes_them_one(place: Place) -> None:
    gallery, truth = filled(place)
    gallery.name("person 0", "person 2")
    assert [(s.identity, s.prototypes) for s in gallery.list()] == [("person 1", 2), ("person 2", 4)]
    gallery.undo()
    assert [s.identity for s in gallery.list()] == list(truth)
    gallery.close()


def test_bad_requests_say_what_is_wrong(place: Place) -> None:
    gallery, truth = filled(place)
    vector = truth["person 0"]
    for bad in ("", " x", "a\nb"):
        with pytest.raises(GalleryError, match="printable name"):
            gallery.enrol(bad, vector, platform=None, source="s")
    with pytest.raises(GalleryError, match="at least one"):
        gallery.enrol("x", vector[:0], platform=None, source="s")
    with pytest.raises(ConfigError):
        gallery.enrol("x", vector, platform="submarine", source="s")
    with pytest.raises(GalleryError, match=r"must be \(n, 32\)"):
        gallery.search(vector[:, :5])
    with pytest.raises(GalleryError, match="length 1"):
        gallery.search(2 * vector)
    with pytest.raises(GalleryError, match="not finite"):
        gallery.search(np.full((1, DIM), np.nan, np.float32))
    with pytest.raises(GalleryError, match="k must be at least 1"):
        gallery.search(vector, 0)
    with pytest.raises(GalleryError, match="'nobody' is not in the gallery"):
        gallery.merge("person 0", "nobody")
    with pytest.raises(GalleryError, match="merged with itself"):
        gallery.merge("person 0", "person 0")
    with pytest.raises(GalleryError, match="name some of these"):
        gallery.split("person 1", [p.id for p in gallery.show("person 1")[1]], "x")
    with pytest.raises(GalleryError, match="is there already"):
        gallery.split("person 1", [1], "person 0")
    with pytest.raises(GalleryError, match="not in the gallery"):
        gallery.forget(Selection(identity="nobody"), "nobody")
    assert [s.identity for s in gallery.list()] == list(truth)
    gallery.close()


def test_an_open_gallery_follows_what_others_do(place: Place) -> None:
    running, truth = filled(place)
    probe = truth["person 1"]
    with opened(place) as other:
        other.forget(Selection(identity="person 1"), "person 1")
        other.enrol("person 9", probe, platform="aerial", source="s")
        assert [m[0] for m in running.search(probe, 1)] == [m[0] for m in other.search(probe, 1)]
        assert running.search(probe, 1)[0][0].identity == "person 9"
        other.name("person 9", "Ada")
        assert running.search(probe, 1)[0][0].identity == "Ada"
        # Names that change hands within one step.
        other.name("person 0", "x")
        other.name("person 2", "person 0")
        other.name("x", "person 2")
        queries = np.concatenate([truth["person 0"], truth["person 2"][:1]])
        assert [m[0].identity for m in running.search(queries, 1)] == ["person 2", "person 0"]
        other.merge("Ada", "person 0")
        assert running.search(queries, 1)[1][0].identity == "Ada"
        other.undo()
        assert running.search(queries, 1)[1][0].identity == "person 0"
        other.calibrate(_open_set(0.5))
        running.search(queries, 1)
        assert running.open_set == other.open_set == _open_set(0.5)
    running.close()


def _open_set(threshold: float) -> OpenSet:
    none = Interval(value=0.0, low=0.0, high=0.0)
    pair = PairCalibration(
        query="ground", gallery="ground", bucket=all_heights(), identities=9, mated=9, mated_people=9,
        non_mated=9, non_mated_people=9, threshold=threshold, growth_threshold=threshold,
        growth_measured=True, fpir=none, fnir=none, slope=1.0, intercept=0.0,
    )  # fmt: skip
    return OpenSet(
        fpir=0.01, data="made", created=datetime(2026, 1, 1, tzinfo=UTC), tracklets=9, people=9, identities=9,
        trials=1, seed=0, pairs=(pair,), refused=(),
    )  # fmt: skip


def test_threads_may_share_a_gallery(place: Place) -> None:
    gallery = opened(place)
    vectors = units(np.random.default_rng(0), 24)
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for i in range(worker, 24, 3):
                gallery.enrol(f"p{i:02}", vectors[i][None], platform=None, source="s")
                assert gallery.search(vectors[i][None], 1)[0][0].identity == f"p{i:02}"
        except BaseException as error:  # handed to the main thread, which fails
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert [s.identity for s in gallery.list()] == [f"p{i:02}" for i in range(24)]
    gallery.close()


def test_another_space_or_dim_is_refused(place: Place) -> None:
    filled(place)[0].close()
    with pytest.raises(GalleryError, match=f"(?s){SPACE}.*{OTHER_SPACE}.*add-model"):
        opened(place, space=OTHER_SPACE)
    with pytest.raises(GalleryError, match=r"with 32 numbers.*with 64"):
        opened(place, dim=64)
    with opened(place) as gallery:
        assert len(gallery.list()) == 3


def test_a_new_model_learns_from_kept_crops_and_spaces_never_mix(place: Place) -> None:
    """The model of this test embeds a crop by its mean colour: it must get the crops that were enrolled."""
    rng = np.random.default_rng(6)
    axes = units(rng, 256, dim=16)
    crops = {name: np.full((4, 3, 3), 40 * i, np.uint8) for i, name in enumerate(("Ada", "Bob", "Cleo"), 1)}
    old = dict(zip(crops, units(rng, 3), strict=True))
    gallery = opened(place)
    for name, crop in crops.items():
        kept = None if name == "Cleo" else (pack([crop] * 8), True)
        gallery.enrol(name, old[name][None], platform="aerial", source="s", pictures=kept)
    new = Space(OTHER_SPACE, 16)
    embedded: list[Clip] = []

    def embed(clips: Sequence[Clip]) -> Vectors:
        embedded.extend(clips)
        return np.stack([axes[int(clip.crops[0].mean())] for clip in clips])

    carried = gallery.add_model(new, embed, lambda done, of: None)
    assert (carried.prototypes, carried.left_behind) == (2, ("Cleo",))
    assert gallery.add_model(new, embed, lambda done, of: None).prototypes == 0  # goes on where it was
    assert all(clip.hr and clip.platform == 1 and len(clip.crops) == 8 for clip in embedded)
    with opened(place, OTHER_SPACE, 16) as other:
        assert [m[0].identity for m in other.search(axes[[40, 80]], 1)] == ["Ada", "Bob"]
        assert {m.identity for m in other.search(axes[:1], 9)[0]} == {"Ada", "Bob"}
        other.enrol("Cleo", axes[120][None], platform=None, source="s")
        assert gallery.search(old["Cleo"][None], 1)[0][0].identity == "Cleo"  # the old model still knows all
        assert len(gallery.search(old["Cleo"][None], 9)[0]) == 3
        assert gallery.retire_model(SPACE[:8]) == 3
        with pytest.raises(GalleryError, match="holds no embeddings of space"):
            gallery.search(old["Cleo"][None], 9)
        assert other.search(axes[[120]], 1)[0][0].identity == "Cleo"
        with pytest.raises(GalleryError, match="the only one"):
            other.retire_model(OTHER_SPACE)
    with pytest.raises(GalleryError, match="add-model"):
        opened(place)
    gallery.close()


def test_forgetting_a_person_leaves_no_row(place: Place) -> None:
    gallery, truth = filled(place)
    gallery.name("person 1", "Erika Mustermann")
    gallery.note("Erika Mustermann", "a note")
    gallery.name("Erika Mustermann", "E. Mustermann")
    gallery.merge("E. Mustermann", "person 0")
    receipt, text = gallery.forget(Selection(identity="E. Mustermann"), "E. Mustermann, on her request")
    assert receipt.complete
    assert receipt.erased == {"prototype": 3, "identity": 1, "log": 6}
    assert verify(text, gallery.public_key) == receipt
    everything = repr(gallery.log()) + repr(gallery.list())
    assert "Mustermann" not in everything
    assert "person 0" not in everything
    assert [s.identity for s in gallery.list()] == ["person 2"]
    assert {m.identity for m in gallery.search(truth["person 1"], 9)[0]} == {"person 2"}
    assert gallery.log()[-1].action == "forget"
    with pytest.raises(GalleryError):
        gallery.undo(gallery.log()[-2].seq)
    gallery.close()


def test_forgetting_by_camera_time_and_retention(place: Place) -> None:
    rng = np.random.default_rng(3)
    vectors = units(rng, 6)
    gallery = opened(place)
    day = 86_400.0

    def enrol(name: str, i: int, camera: str | None, seen_s: float) -> None:
        gallery.enrol(
            name, vectors[i][None], platform="ground", source="s", camera=camera, seen_s=seen_s,
            pictures=(pack([np.zeros((2, 2, 3), np.uint8)]), False),
        )  # fmt: skip

    enrol("Ada", 0, "gate", 10 * day)
    enrol("Ada", 1, "yard", 10 * day)
    enrol("Bob", 2, "gate", 20 * day)
    enrol("Cleo", 3, None, 20 * day)
    enrol("Dora", 4, "yard", 30 * day)
    receipt, _ = gallery.forget(Selection(camera="gate"), "camera gate")
    assert receipt.erased == {"prototype": 2, "clip": 2, "identity": 1, "log": 1}  # Bob is gone
    assert [(s.identity, s.prototypes) for s in gallery.list()] == [("Ada", 1), ("Cleo", 1), ("Dora", 1)]
    receipt, _ = gallery.forget(Selection(since_s=9 * day, until_s=25 * day), "days 9 to 25")
    assert receipt.erased == {"prototype": 1, "clip": 1, "identity": 1, "log": 2}
    # What somebody enrolled has no limit of storage.
    receipt, _ = gallery.forget(Selection(until_s=99 * day, collected=True), "older than 30 days")
    assert receipt.erased == {}
    assert [s.identity for s in gallery.list()] == ["Cleo", "Dora"]
    gallery.close()


@pytest.mark.parametrize("other_store", ["sqlite", "postgres"])
def test_a_backup_is_a_gallery_and_can_be_restored_into_either_store(
    place: Place, places: Callable[[str], Place], tmp_path: Path, other_store: str
) -> None:
    gallery, _ = filled(place)
    gallery.calibrate(_open_set(0.25))
    query = units(np.random.default_rng(5), 4)
    before, list_before = gallery.search(query), gallery.list()
    gallery.back_up(tmp_path / "backup")
    with pytest.raises(GalleryError, match="there is a file already"):
        gallery.back_up(tmp_path / "backup")
    with opened(tmp_path / "backup") as copy:
        assert (copy.search(query), copy.list()) == (before, list_before)
    with opened(places("other")) as other:
        other.enrol("stranger", query[:1], platform=None, source="s")
        other.restore(tmp_path / "backup")
        assert (other.search(query), other.list(), other.open_set) == (before, list_before, _open_set(0.25))
        other.enrol("later", query[:1], platform=None, source="s")  # new numbers do not meet old ones
        assert other.search(query[:1], 1)[0][0].identity == "later"
    gallery.forget(Selection(identity="person 2"), "person 2")
    gallery.enrol("later", query[:1], platform=None, source="s")
    assert gallery.restore(tmp_path / "backup") == []  # the backup forgot with it
    assert [s.identity for s in gallery.list()] == ["person 0", "person 1"]
    gallery.close()


def test_people_forgotten_since_a_backup_stay_forgotten(place: Place, tmp_path: Path) -> None:
    gallery, _ = filled(place)
    gallery.back_up(tmp_path / "backup")
    (tmp_path / "backup").rename(tmp_path / "moved")
    receipt, _ = gallery.forget(Selection(identity="person 1"), "person 1")
    assert not receipt.complete
    assert "was it moved" in str(receipt.backups[0].not_reached)
    for _ in range(2):  # also by a second restore, whose log came out of the backup
        assert len(gallery.restore(tmp_path / "moved")) == 1
        assert [s.identity for s in gallery.list()] == ["person 0", "person 2"]
    gallery.close()


def test_an_encrypted_gallery(place: Place, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    make_key(tmp_path / "other")
    rng = np.random.default_rng(9)
    vectors, crop = units(rng, 3), rng.integers(0, 255, (9, 5, 3), np.uint8)
    with opened(place, key_file=tmp_path / "key") as gallery:
        gallery.enrol("Ada", vectors, platform="ground", source="s")
        gallery.enrol("Bob", -vectors[:1], platform="ground", source="s", pictures=(pack([crop]), False))
        found = gallery.search(vectors, 2)
        rows = gallery.database.rows("SELECT vector, sealed FROM prototype")
        (pictures,) = gallery.database.rows("SELECT pictures FROM clip")[0]
        gallery.back_up(tmp_path / "backup")
    assert all(plain is None and len(sealed) > 2 * DIM for plain, sealed in rows)
    pieces = [vector.astype("<f2").tobytes()[:12] for vector in vectors]
    assert not any(piece in bytes(sealed) for piece in pieces for _, sealed in rows)
    assert b"PNG" not in bytes(pictures)
    with opened(None) as plain:
        plain.enrol("Ada", vectors, platform="ground", source="s")
        plain.enrol("Bob", -vectors[:1], platform="ground", source="s")
        assert plain.search(vectors, 2) == found
    for wrong in (None, tmp_path / "other"):
        for at in (place, tmp_path / "backup"):
            with pytest.raises(GalleryError, match="key file does not fit"):
                opened(at, key_file=wrong)
    with opened(place, key_file=tmp_path / "key") as again:
        assert again.search(vectors, 2) == found
        clips: list[Clip] = []

        def embed(given: Sequence[Clip]) -> Vectors:
            clips.extend(given)
            return vectors[: len(given)]

        again.add_model(Space(OTHER_SPACE, DIM), embed, lambda done, of: None)
        np.testing.assert_array_equal(clips[0].crops[0], crop)
        assert again.forget(Selection(identity="Ada"), "Ada")[0].complete


def test_kept_crops_go_with_their_prototypes(place: Place) -> None:
    rng = np.random.default_rng(9)
    gallery = opened(place)
    for vector in units(rng, 2 * MAX_OF_CAMERA):
        crop = rng.integers(0, 255, (9, 5, 3), np.uint8)
        gallery.enrol(
            "a", vector[None], platform="ground", source="s", camera="c", pictures=(pack([crop]), True)
        )
    rows = gallery.database.rows("SELECT id, pictures FROM clip ORDER BY id")
    assert [row[0] for row in rows] == [p.clip for p in gallery.show("a")[1]]
    assert len(rows) == MAX_OF_CAMERA
    assert unpack(bytes(rows[-1][1]))[0].shape == (9, 5, 3)
    gallery.close()
