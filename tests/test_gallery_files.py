"""Files that are no gallery, are damaged, or are of another version."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from forked import Say, in_a_child, killed
from gallery_stores import DIM, Vectors, filled, opened, units
from tiny_bundle import SPACE

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.erasure.forget import Selection
from s3clip_runtime.gallery.gallery import Gallery


def test_foreign_files_are_refused_and_untouched(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "browser.db")
    database.execute("CREATE TABLE history (url TEXT)")
    database.commit()
    database.close()
    (tmp_path / "text").write_text("not a database, but longer than a header " * 10)
    (tmp_path / "short").write_text("x")
    (tmp_path / "zeros").write_bytes(bytes(100_000))
    for name in ("browser.db", "text", "short", "zeros"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(GalleryError, match=f"{name}: the file is no gallery of s3clip; give the path"):
            opened(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(GalleryError, match="Is a directory"):
        opened(tmp_path)
    with pytest.raises(GalleryError, match="check the path"):
        opened(tmp_path / "absent" / "g")
    with pytest.raises(GalleryError, match=r"Not a directory.*check the path"):
        opened(tmp_path / "text" / "g")


def test_torn_and_damaged_files_are_refused_and_untouched(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g", people=30)
    gallery.close()
    good = (tmp_path / "g").read_bytes()
    vector = good.index(truth["person 9"][0].astype("<f2").tobytes())
    page = 16384
    damages = {
        "half": good[: len(good) // 2],
        "a page lost": good[:-page],
        "a torn page": good[: -page // 2],
        "a zeroed page": good[: 3 * page] + bytes(page) + good[4 * page :],
        "all but the head": good[:100] + bytes(len(good) - 100),
        "only the head": good[:100],
        "a vector that is huge": good[: vector + 1] + b"\x7b" + good[vector + 2 :],
        "a vector that is none": good[: vector + 1] + b"\x7e" + good[vector + 2 :],
        "pages changed places": good[: 2 * page] + good[3 * page : 4 * page] + good[2 * page : 3 * page]
        + good[4 * page :],
    }  # fmt: skip
    for what, damaged in damages.items():
        (tmp_path / "g").write_bytes(damaged)
        with pytest.raises(GalleryError, match=r"g.*damaged.*restore it from a backup"):
            pytest.fail(f"{what} was opened as {opened(tmp_path / 'g').list()}")
        assert (tmp_path / "g").read_bytes() == damaged, what
    (tmp_path / "g").write_bytes(good)
    opened(tmp_path / "g").close()


def test_flipped_bits_never_crash_and_never_make_up_people(tmp_path: Path) -> None:
    """SQLite keeps no checksums: a flip inside a name or at the end of a number cannot be seen."""
    gallery, truth = filled(tmp_path / "g", people=12)
    gallery.name("person 3", "person 3b")
    gallery.close()
    good = (tmp_path / "g").read_bytes()
    used = [at for at in range(len(good)) if good[at]]  # zeros are mostly free space
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(400):
        at, bit = int(rng.choice(used)), int(rng.integers(8))
        damaged = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
        (tmp_path / "g").write_bytes(damaged)
        try:
            with opened(tmp_path / "g") as gallery:
                gallery.list()
                gallery.log()
                assert len(gallery.search(truth["person 5"], 20)[0]) <= 12
        except GalleryUnavailable as error:
            pytest.fail(f"byte {at} bit {bit}: {error} cures nothing")
        except GalleryError:
            refused += 1
        finally:
            (tmp_path / "g-journal").unlink(missing_ok=True)
    assert refused > 20


def test_an_empty_file_becomes_a_gallery(tmp_path: Path) -> None:
    (tmp_path / "g").touch()
    filled(tmp_path / "g")[0].close()
    with opened(tmp_path / "g") as gallery:
        assert len(gallery.list()) == 3


def set_version(path: Path, version: str) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (version,))
    database.commit()
    database.close()


def test_another_schema_version_is_refused_and_untouched(tmp_path: Path) -> None:
    filled(tmp_path / "g")[0].close()
    for version, cure in (("3", "use a newer s3clip"), ("12", "use a newer s3clip"), ("x", "from a backup")):
        set_version(tmp_path / "g", version)
        before = (tmp_path / "g").read_bytes()
        with pytest.raises(GalleryError, match=f"schema_version must be 2, found {version}; .*{cure}"):
            opened(tmp_path / "g")
        assert (tmp_path / "g").read_bytes() == before


VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE prototype (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,
    platform TEXT,
    source TEXT NOT NULL,
    enrolled_s REAL NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX prototype_identity ON prototype (identity);
"""


def of_version_1(path: Path, people: int = 5) -> dict[str, Vectors]:
    """A gallery as the release before this one wrote it."""
    rng = np.random.default_rng(6)
    truth = {f"person {i}": units(rng, i + 1) for i in range(people)}
    database = sqlite3.connect(path)
    database.execute("PRAGMA application_id = 0x53334347")
    database.executescript(VERSION_1)
    meta = {"schema_version": 1, "embedding_space": SPACE, "dim": DIM}
    database.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(meta[key])) for key in meta])
    insert = "INSERT INTO prototype (identity, platform, source, enrolled_s, vector) VALUES (?, ?, ?, ?, ?)"
    for number, (name, vectors) in enumerate(truth.items()):
        platform = (None, "ground", "aerial")[number % 3]
        rows = [
            (name, platform, f"source {number}", 1e9 + number, one.astype("<f4").tobytes()) for one in vectors
        ]
        database.executemany(insert, rows)
    database.commit()
    database.close()
    return truth


def check_upgraded(gallery: Gallery, truth: dict[str, Vectors]) -> None:
    listed = gallery.list()
    assert [(one.identity, one.kind, one.note, one.prototypes) for one in listed] == [
        (name, "known", "", len(vectors)) for name, vectors in sorted(truth.items())
    ]
    by_name = {one.identity: one for one in listed}
    assert [by_name[f"person {i}"].platforms for i in range(3)] == [(), ("ground",), ("aerial",)]
    assert (by_name["person 2"].sources, by_name["person 2"].enrolled_s) == (("source 2",), 1e9 + 2)
    queries = np.concatenate(list(truth.values()))
    names = [name for name, vectors in truth.items() for _ in vectors]
    scores = (queries.astype(np.float16).astype(np.float64) * queries).sum(axis=1)
    best = [row[0] for row in gallery.search(queries, 1)]
    assert [one.identity for one in best] == names
    np.testing.assert_allclose([one.score for one in best], scores, atol=1e-12)


def test_a_gallery_of_version_1_is_upgraded(tmp_path: Path) -> None:
    truth = of_version_1(tmp_path / "g")
    with opened(tmp_path / "g") as gallery:
        check_upgraded(gallery, truth)
        info = gallery.info()
        assert [(space.hash, space.dim, count) for space, count in info.spaces] == [(SPACE, DIM, 15)]
        assert (len(info.gallery), info.encrypted) == (16, False)
        gallery.enrol("later", units(np.random.default_rng(0), 2), platform="ground", source="s")
        gallery.merge("person 1", "later")
        gallery.undo()
    content = (tmp_path / "g").read_bytes()
    for vectors in truth.values():
        for one in vectors:  # no number stays as it was
            assert one.astype("<f4").tobytes()[:8] not in content
            assert one.astype("<f2").tobytes() in content
    fresh, _ = filled(tmp_path / "fresh")
    fresh.close()
    ours, theirs = sqlite3.connect(tmp_path / "g"), sqlite3.connect(tmp_path / "fresh")
    for query in ("SELECT type, name, sql FROM sqlite_master ORDER BY name", "PRAGMA page_size"):
        assert ours.execute(query).fetchall() == theirs.execute(query).fetchall()
    assert ours.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ours.close()
    theirs.close()
    with opened(tmp_path / "g") as again:
        assert again.forget(Selection(identity="person 4"), "asked")[0].complete
        assert again.info().gallery == info.gallery


def test_an_upgrade_is_refused_where_it_cannot_be_right(tmp_path: Path) -> None:
    truth = of_version_1(tmp_path / "g")
    good = (tmp_path / "g").read_bytes()
    at = good.index(truth["person 3"][0].astype("<f4").tobytes())
    (tmp_path / "g").write_bytes(good[: at + 3] + b"\x7f" + good[at + 4 :])
    damaged = (tmp_path / "g").read_bytes()
    with pytest.raises(GalleryError, match=r"damaged: a prototype of 'person 3' has numbers .*backup"):
        opened(tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == damaged
    (tmp_path / "g").write_bytes(good)
    with pytest.raises(GalleryError, match="holds embeddings of space"):
        opened(tmp_path / "g", space="cd" * 32)
    with opened(tmp_path / "g") as gallery:  # that was asked for another space; the people are still there
        check_upgraded(gallery, truth)


@pytest.mark.slow
def test_an_upgrade_that_is_killed_goes_on_at_the_next_opening(tmp_path: Path) -> None:
    truth = of_version_1(tmp_path / "old", people=40)
    old = (tmp_path / "old").read_bytes()
    rng = np.random.default_rng(2)
    hot = 0

    def work(say: Say) -> None:
        say("begin")
        opened(path).close()

    for kill in range(40):
        path = tmp_path / f"g{kill}"
        path.write_bytes(old)
        child, pipe = in_a_child(work)
        killed(child, pipe, lines=1, after_s=rng.uniform(0, 0.04))
        hot += path.with_name(f"{path.name}-journal").exists()
        with opened(path) as gallery:
            check_upgraded(gallery, truth)
        os.unlink(path)
    assert hot > 0
