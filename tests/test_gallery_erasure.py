"""What is left of forgotten people in the bytes of the gallery's folder: nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Say, in_a_child, killed
from gallery_stores import Vectors, filled, opened, units

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.edits import MAX_PROTOTYPES, Edits
from s3clip_runtime.gallery.erasure.forget import Selection
from s3clip_runtime.gallery.erasure.traces import _CHUNK_BYTES, still_there
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Seen
from s3clip_runtime.gallery.storage.book import Views
from s3clip_runtime.gallery.storage.sqlite import SqliteDatabase

DAY = 86400.0


def pieces(*values: Vectors | bytes) -> list[bytes]:
    """8 bytes each, at every place, of float16 vectors and of pictures."""
    plain = [one if isinstance(one, bytes) else one.astype("<f2").tobytes() for one in values]
    return [one[at : at + 8] for one in plain for at in range(0, min(len(one), 4096) - 7, 8)]


def left(folder: Path, wanted: list[bytes]) -> list[bytes]:
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return [piece for piece in wanted if piece in content]


def words(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


def crops(size: int = 10_000) -> tuple[bytes, bool]:
    """These fit in one page: no piece of what stays is cut by the end of a page."""
    return os.urandom(size), False


def sighted(gallery: Gallery, vector: Vectors, name: str) -> None:
    """A run sees the person on the camera `gate`."""
    look = Seen(vector, "gate", "ground", 200.0, 0.9, "run", name, name, "camera", 1e9, 1e9 + 5, final=True,
                pictures=crops)  # fmt: skip
    assert Recogniser(gallery, Rules(threshold=0.9, unknowns=True)).recognise([look])[0].identity is not None


def test_a_person_with_a_history_leaves_no_bytes(tmp_path: Path) -> None:
    """Names, notes, merges, splits and undoings before; a backup from the middle of it."""
    rng = np.random.default_rng(1)
    mine, others = units(rng, 12), units(rng, 3)
    my_crops, kept_crops = crops(50_000), crops()
    with opened(tmp_path / "g") as gallery:
        gallery.enrol("Bleibt", others, platform="ground", source="kept-source")
        gallery.enrol("Bleibt", units(rng, 1), platform="ground", source="s", pictures=kept_crops)
        gallery.enrol("Erika Muster", mine[:2], platform="ground", source="passport-scan")
        gallery.enrol("Erika Muster", mine[2:3], platform="ground", source="door", pictures=my_crops)
        gallery.note("Erika Muster", "owes-money")
        gallery.note("Erika Muster", "paid-back")
        gallery.name("Erika Muster", "E. Zweitname")
        sighted(gallery, mine[0], "tracklet-4711")
        gallery.enrol("Doppelgaenger", mine[3:6], platform="aerial", source="drone-roll")
        gallery.note("Doppelgaenger", "same-shoes")
        gallery.note("Doppelgaenger", "")
        gallery.back_up(tmp_path / "copy")
        gallery.merge("E. Zweitname", "Doppelgaenger")
        ids = [one.id for one in gallery.show("E. Zweitname")[1]]
        gallery.split("E. Zweitname", ids[:2], "Abgespalten")
        gallery.note("Abgespalten", "split-note")
        gallery.merge("E. Zweitname", "Abgespalten")
        gallery.enrol("E. Zweitname", mine[6:9], platform="ground", source="undone-roll")
        gallery.undo()
        gallery.enrol("Bald Weg", mine[9:], platform="ground", source="undone-person")
        gallery.name("Bald Weg", "Schon Fort")
        gallery.undo(gallery.log()[-2].seq)
        traces = [
            *pieces(mine, my_crops[0]),
            *words("Muster", "passport-scan", "owes-money", "paid-back", "Zweitname", "tracklet-4711"),
            *words("Doppelgaenger", "drone-roll", "same-shoes", "Abgespalten", "split-note", "door"),
        ]
        assert len(set(left(tmp_path, traces))) > len(traces) - len(pieces(mine[6:])) - 5  # cut by pages
        receipt, _ = gallery.forget(Selection(identity="E. Zweitname"), "on her request")
        assert receipt.complete
        assert receipt.searched == 6 * 4 + 8
        assert receipt.erased["prototype"] == 6
        assert receipt.backups[0].erased is not None
        assert receipt.backups[0].erased["identity"] == 2  # she was two people then
        assert left(tmp_path, traces) == []
        assert left(tmp_path, words("undone-", "Bald", "Fort")) == []
        kept = [*pieces(others, kept_crops[0]), *words("Bleibt", "kept-source")]
        for name in ("g", "copy"):
            content = (tmp_path / name).read_bytes()
            assert all(piece in content for piece in kept)
        assert [one.identity for one in gallery.list()] == ["Bleibt"]
        assert gallery.search(others)[0][0].identity == "Bleibt"
    with opened(tmp_path / "copy") as copy:
        assert [one.identity for one in copy.list()] == ["Bleibt"]


def test_a_person_who_was_split_off_leaves_a_backup_from_before(tmp_path: Path) -> None:
    vectors = units(np.random.default_rng(1), 4)
    with opened(tmp_path / "g") as gallery:
        gallery.enrol("both", vectors, platform="ground", source="s")
        gallery.back_up(tmp_path / "copy")
        ids = [one.id for one in gallery.show("both")[1]]
        gallery.split("both", ids[2:], "other")
        assert gallery.forget(Selection(identity="other"), "other")[0].complete
        assert left(tmp_path, pieces(vectors[2:])) == []
    with opened(tmp_path / "copy") as copy:
        assert [(one.identity, one.prototypes) for one in copy.list()] == [("both", 2)]


@pytest.mark.parametrize(
    ("selection", "gone"),
    [
        (Selection(camera="gate"), {"gate 0", "gate 1", "gate 2", "own"}),
        (Selection(camera="gate", since_s=15 * DAY), {"gate 2", "own"}),
        (Selection(since_s=5 * DAY, until_s=15 * DAY), {"gate 1", "roof 1"}),
        (Selection(until_s=15 * DAY, collected=True), {"own", "roof own"}),
    ],
)
def test_camera_time_and_retention_leave_no_bytes(
    tmp_path: Path, selection: Selection, gone: set[str]
) -> None:
    """People who lose all go with their names; Ada loses only what was selected."""
    rng = np.random.default_rng(8)
    held: dict[str, list[bytes]] = {}
    with opened(tmp_path / "g") as gallery:
        enrolled = units(rng, 1)
        gallery.enrol("Ada", enrolled, platform="ground", source="a picture")
        for camera in ("gate", "roof"):
            for day in range(3):
                vector, kept = units(rng, 1), crops()
                gallery.enrol(f"{camera}-person-{day}", vector, platform="ground", source="s", camera=camera,
                              seen_s=day * 10 * DAY, pictures=kept)  # fmt: skip
                held[f"{camera} {day}"] = [*pieces(vector, kept[0]), *words(f"{camera}-person-{day}")]
        with gallery.deciding() as decisions:  # as a run collects, of known and unknown people
            for name, camera in (("own", "gate"), ("roof own", "roof")):
                vector, kept = units(rng, 1), crops()
                at_s = 20 * DAY if selection.camera else 0.0
                views = Views(decisions.memory.space.hash, vector.astype(np.float16), "grown", "ground",
                              camera, "run", 0.9, at_s, kept)  # fmt: skip
                ada = decisions.memory.identities["Ada"]
                Edits(decisions.book).add_views(ada, [views], "grow", made=False)
                held[name] = pieces(vector, kept[0])
        gallery.back_up(tmp_path / "copy")
        receipt, _ = gallery.forget(selection, "asked")
        assert receipt.complete
        assert receipt.what == selection.what
        for name, traces in held.items():
            if name in gone:
                assert left(tmp_path, traces) == [], name
            else:
                assert left(tmp_path, traces) == traces, name
        assert left(tmp_path, pieces(enrolled)) == pieces(enrolled)
        assert "Ada" in {one.identity for one in gallery.list()}


def test_rows_pushed_out_leave_no_bytes(tmp_path: Path) -> None:
    """Nothing is written anew here: it is the overwriting of erased rows that is seen."""
    rng = np.random.default_rng(2)
    vectors = units(rng, 3 * MAX_PROTOTYPES, dim=160)
    with opened(tmp_path / "g", dim=160) as gallery:
        for start in range(0, len(vectors), 4):
            gallery.enrol("a", vectors[start : start + 4], platform=None, source="s")
            gallery.enrol(f"p{start}", units(rng, 2, dim=160), platform=None, source="s")
        found = [gallery.search(one[None], 100)[0] for one in vectors]
        kept = [next(one.score for one in row if one.identity == "a") > 0.999 for row in found]
    assert sum(kept) == MAX_PROTOTYPES
    dropped = [one for one, stays in zip(vectors, kept, strict=True) if not stays]
    assert left(tmp_path, pieces(*dropped)) == []
    stayed = pieces(*[one for one, stays in zip(vectors, kept, strict=True) if stays])
    assert left(tmp_path, stayed) == stayed


def test_the_receipt_tells_what_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, truth = filled(tmp_path / "g", people=12)
    gallery.database.run("PRAGMA secure_delete = OFF")
    with monkeypatch.context() as patch:
        patch.setattr(SqliteDatabase, "scrub", lambda _: None)
        receipt, _ = gallery.forget(Selection(identity="person 9"), "person 9")
    assert left(tmp_path, pieces(truth["person 9"]))
    assert receipt.found > 0
    assert not receipt.complete
    receipt, _ = gallery.forget(Selection(identity="person 8"), "person 8")  # scrubbing cleans all
    assert (receipt.found, receipt.complete) == (0, True)
    assert left(tmp_path, pieces(truth["person 9"], truth["person 8"])) == []
    gallery.close()


def test_a_picture_that_somebody_else_has_too_is_no_trace(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g")
    gallery.enrol("twin", truth["person 2"], platform="ground", source="s")
    receipt, _ = gallery.forget(Selection(identity="person 2"), "person 2")
    assert receipt.searched > 0
    assert (receipt.found, receipt.complete) == (0, True)
    assert left(tmp_path, pieces(truth["person 2"]))
    assert gallery.forget(Selection(identity="twin"), "twin")[0].complete
    assert left(tmp_path, pieces(truth["person 2"])) == []
    gallery.close()


def test_backups_that_cannot_be_reached_are_told(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g", people=6)
    for name in ("here", "moved", "foreign", "rotated"):
        gallery.back_up(tmp_path / name)
    os.rename(tmp_path / "moved", tmp_path / "elsewhere")
    (tmp_path / "foreign").write_text("shopping list")
    os.rename(tmp_path / "rotated", tmp_path / "yesterday")
    gallery.back_up(tmp_path / "rotated")
    (tmp_path / "stopped.part").write_bytes(truth["person 4"].astype("<f2").tobytes())  # as a kill leaves it
    note = "INSERT INTO backup (path, box, made_s) VALUES (?, ?, ?)"
    gallery.database.run(note, str(tmp_path / "stopped"), os.uname().nodename, time.time())
    gallery.database.run(note, "/elsewhere/copy", "another box", time.time())
    receipt, _ = gallery.forget(Selection(identity="person 4"), "person 4")
    told = {one.path: one.erased or one.not_reached for one in receipt.backups}
    rotated = [path for path in told if path.startswith(f"{tmp_path / 'rotated'} as of ")]
    assert told == {
        str(tmp_path / "here"): {"prototype": 5, "identity": 1, "log": 1},
        str(tmp_path / "moved"): "the file is not there; was it moved?",
        str(tmp_path / "foreign"): f"gallery {tmp_path / 'foreign'}: the file is no gallery of s3clip; "
        "give the path of a gallery or of a new file",
        str(tmp_path / "rotated"): {"prototype": 5, "identity": 1, "log": 1},
        rotated[0]: "the file is not there; was it moved?",
        str(tmp_path / "stopped"): {"unfinished backup": 1},
        "/elsewhere/copy": "it lies on another box; repeat the request there",
    }
    assert not receipt.complete
    assert not (tmp_path / "stopped.part").exists()
    assert (tmp_path / "foreign").read_text() == "shopping list"
    for name in ("elsewhere", "yesterday"):  # as told
        assert all(piece in (tmp_path / name).read_bytes() for piece in pieces(truth["person 4"]))
        (tmp_path / name).unlink()
    assert left(tmp_path, pieces(truth["person 4"])) == []
    gallery.close()


def test_a_request_that_was_stopped_can_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment: as long as any copy knows the person, the gallery does."""
    gallery, truth = filled(tmp_path / "g", people=6)
    gallery.back_up(tmp_path / "copy")
    run, stopped = SqliteDatabase.run, 0
    for stop in range(200):
        step = [stop]

        def stopping(self: SqliteDatabase, statement: str, *values: object, step: list[int] = step) -> int:
            step[0] -= 1
            if step[0] < 0:
                raise GalleryUnavailable("stopped")
            return run(self, statement, *values)

        with monkeypatch.context() as patch:
            patch.setattr(SqliteDatabase, "run", stopping)
            try:
                gallery.forget(Selection(identity="person 4"), "person 4")
            except GalleryUnavailable:
                assert "person 4" in {one.identity for one in gallery.list()}
                stopped += 1
                continue
        break
    assert stopped >= 3
    assert "person 4" not in {one.identity for one in gallery.list()}
    assert gallery.search(truth["person 4"][:1], 9)[0][0].identity != "person 4"
    gallery.close()


@pytest.mark.slow
def test_a_killed_request_leaves_nobody_in_a_backup_alone(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g", people=40)
    gallery.back_up(tmp_path / "copy")
    gallery.close()
    rng = np.random.default_rng(4)
    seen = set()

    def work(say: Say) -> None:
        with opened(tmp_path / "g") as gallery:
            say("opened")
            gallery.forget(Selection(identity=name), name)

    for number in range(40):
        name = f"person {number}"
        child, pipe = in_a_child(work)
        killed(child, pipe, lines=1, after_s=rng.uniform(0, 0.06))
        with opened(tmp_path / "g") as gallery:
            known = name in {one.identity for one in gallery.list()}
            with opened(tmp_path / "copy") as copy:
                copied = name in {one.identity for one in copy.list()}
            assert known or not copied
            seen.add((known, copied))
            if known:
                gallery.forget(Selection(identity=name), name)
            gallery.database.scrub()  # a kill may have come before it
            for path in ("copy", "g"):
                content = (tmp_path / path).read_bytes()
                assert not any(piece in content for piece in pieces(truth[name])), (path, name)
    assert {(True, True), (True, False), (False, False)} >= seen
    assert len(seen) > 1


def test_nobody_is_forgotten_by_mistake(tmp_path: Path) -> None:
    gallery, _ = filled(tmp_path / "g")
    with pytest.raises(GalleryError, match="'person' is not in the gallery"):
        gallery.forget(Selection(identity="person"), "a typing error")
    gallery.back_up(tmp_path / "copy")
    receipt, _ = gallery.forget(Selection(camera="nowhere"), "nobody")
    assert (receipt.erased, receipt.searched, receipt.complete) == ({}, 0, True)
    assert [one.identity for one in gallery.list()] == ["person 0", "person 1", "person 2"]
    gallery.close()


def test_the_search_for_traces_finds_them_wherever_they_stand(tmp_path: Path) -> None:
    """At every alignment, over the ends of what is read at once, at both ends of the file."""
    rng = np.random.default_rng(3)
    wanted = {rng.bytes(16) for _ in range(500)}
    there = sorted(wanted)[:100]
    content = bytearray(rng.bytes(_CHUNK_BYTES + 40_000))
    places = [0, len(content) - 16, *(_CHUNK_BYTES - 40 + 20 * i for i in range(4))]
    places += [1000 + 131 * i for i in range(len(there) - len(places))]
    for at, piece in zip(places, there, strict=True):
        content[at : at + 16] = piece
    gallery, _ = filled(tmp_path / "g")
    with (tmp_path / "g-wal").open("wb") as file:  # a file beside the gallery's, which SQLite does not open
        file.write(content)
    assert still_there(gallery.database, wanted) == 100
    assert still_there(gallery.database, set(sorted(wanted)[100:])) == 0
    assert still_there(gallery.database, set()) == 0
    gallery.close()
