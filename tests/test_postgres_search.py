"""Search on a real PostgreSQL: exact to the last tie, and by an HNSW index."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.records import Match
from s3clip_runtime.gallery.search.server import EF_SEARCH, ServerSearch
from s3clip_runtime.gallery.storage.database import Halves
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase

Row = tuple[str, str | None]


@pytest.fixture
def database(dsn: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase.open(dsn)
    yield opened
    opened.close()


def unit(rows: NDArray[np.float64]) -> Halves:
    halves: Halves = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)
    return halves


def fill(database: PostgresDatabase, rows: Sequence[Row], vectors: Halves, space: str = "space") -> None:
    """Prototypes by name and platform, in this order."""
    names = sorted({name for name, _ in rows})
    ids = {name: f"id{(7 * i) % 10007}" for i, name in enumerate(names)}  # another order than the names'
    insert = (
        "INSERT INTO prototype (identity, space, origin, platform, source, seen_s, added_s, vector) "
        "VALUES (?, ?, 'enrolled', ?, 'test', 0.0, 0.0, ?)"
    )
    with database.transaction():
        database.run_many(
            "INSERT INTO identity (id, name, kind, note, added_s) VALUES (?, ?, 'known', '', 0.0) "
            "ON CONFLICT DO NOTHING",
            [(ids[name], name) for name in names],
        )
        database.run_many(
            insert,
            [
                (ids[name], space, platform, database.packed(vector))
                for (name, platform), vector in zip(rows, vectors, strict=True)
            ],
        )


def brute_force(rows: Sequence[Row], vectors: Halves, query: NDArray[np.float32], k: int) -> list[Match]:
    best: dict[str, tuple[float, str | None]] = {}
    for (name, platform), vector in zip(rows, vectors, strict=True):
        score = float(np.sum(query.astype(np.float64) * vector.astype(np.float64)))
        if name not in best or score > best[name][0]:
            best[name] = (score, platform)
    ordered = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))
    return [Match(name, score, platform) for name, (score, platform) in ordered[:k]]


def crowd(rng: np.random.Generator, dim: int) -> tuple[list[Row], Halves, NDArray[np.float32]]:
    """People of whom many are equally near to the queries, or nearer by less than float32 can tell."""
    centre = rng.standard_normal(dim)
    far = unit(rng.standard_normal((400, dim)))
    near = unit(centre + 0.5 * rng.standard_normal(dim))
    equal = np.repeat(near[None], 30, axis=0)
    bits = equal.view(np.uint16)
    for i in range(10, 20):  # the smallest steps of one number
        bits[i, np.argsort(np.abs(near))[i % dim]] ^= 1
    vectors = np.concatenate([far[:200], equal, far[200:]])
    letters = ["ä", "Z", "a", "é", "漢", "👩", "_", "B"]
    names = [f"{letters[i % 8]}{(i * 37) % 150}" for i in range(len(vectors))]
    platforms = [("ground", "aerial", None)[i % 3] for i in range(len(vectors))]
    queries = np.stack([centre, *rng.standard_normal((3, dim))])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return list(zip(names, platforms, strict=True)), vectors, queries.astype(np.float32)


@pytest.mark.parametrize(("dim", "nearer"), [(8, 1e-3), (1280, 1e-8)])
def test_exact_search_is_brute_force_to_the_last_tie(
    database: PostgresDatabase, dim: int, nearer: float
) -> None:
    rows, vectors, queries = crowd(np.random.default_rng(dim), dim)
    fill(database, rows, vectors)
    search = ServerSearch(database)
    for k in (1, 4, 15, 29, 1000):  # within the ties, behind them, and more than there are
        found = search.nearest("space", queries, k)
        assert found == [brute_force(rows, vectors, query, k) for query in queries]
    scores = [match.score for match in brute_force(rows, vectors, queries[0], 25)]
    assert len(set(scores)) < 20, "the cut must go through ties"
    assert any(0 < a - b < nearer for a, b in pairwise(scores))


def test_spaces_are_not_mixed(database: PostgresDatabase) -> None:
    rng = np.random.default_rng(0)
    vectors, others = unit(rng.standard_normal((5, 16))), unit(rng.standard_normal((5, 24)))
    rows: list[Row] = [(f"p{i}", None) for i in range(5)]
    fill(database, rows, vectors, "old")
    fill(database, rows, others, "new")
    search = ServerSearch(database)
    query = others[3:4].astype(np.float32)
    assert search.nearest("new", query, 2) == [brute_force(rows, others, query[0], 2)]
    assert search.nearest("none", query, 2) == [[]]
    with pytest.raises(GalleryError, match="must have 24 numbers, found 16"):
        search.nearest("old", query, 2)
    search.make_index("new", 24)
    assert (search.index("new"), search.index("old")) == (True, False)


def test_an_encrypted_gallery_is_searched_in_memory(database: PostgresDatabase) -> None:
    database.run(
        "INSERT INTO prototype (identity, space, origin, source, seen_s, added_s, sealed) "
        "VALUES ('a', 'space', 'enrolled', 'test', 0.0, 0.0, ?)",
        b"secret",
    )
    with pytest.raises(GalleryError, match="search in memory"):
        ServerSearch(database).nearest("space", np.ones((1, 4), np.float32), 1)


def scans(database: PostgresDatabase) -> int:
    """How often indexes of vectors were used."""
    database.rows("SELECT pg_stat_force_next_flush()")
    query = (
        "SELECT sum(idx_scan)::bigint FROM pg_stat_user_indexes "
        "WHERE schemaname = current_schema() AND indexrelname ~ 'hnsw'"
    )
    return int(database.rows(query)[0][0])


def test_the_index_finds_nearly_all_and_scores_exactly(database: PostgresDatabase) -> None:
    rng = np.random.default_rng(3)
    people, views, dim = 250, 10, 128
    centres = rng.standard_normal((people, dim))
    made = centres[:, None] + 0.8 * rng.standard_normal((people, views, dim))
    vectors = unit(made.reshape(-1, dim))
    rows: list[Row] = [(f"p{i // views:03d}", "ground") for i in range(people * views)]
    fill(database, rows, vectors)
    queries = unit(centres[:40] + 0.8 * rng.standard_normal((40, dim))).astype(np.float32)
    search = ServerSearch(database)
    exact = search.nearest("space", queries, 10)
    search.make_index("space", dim)
    before = scans(database)
    found = search.nearest("space", queries, 10)
    assert scans(database) - before == 40
    common = sum(
        len({m.identity for m in a} & {m.identity for m in b}) for a, b in zip(exact, found, strict=True)
    )
    assert common / 400 >= 0.98
    assert [matches[0] for matches in found] == [matches[0] for matches in exact]
    assert all(matches == sorted(matches, key=lambda m: (-m.score, m.identity)) for matches in found)


@pytest.mark.parametrize("crowded", [EF_SEARCH - 50, EF_SEARCH + 50])
def test_one_person_with_many_views_does_not_hide_the_others(
    database: PostgresDatabase, crowded: int
) -> None:
    rng = np.random.default_rng(5)
    dim = 1280
    centre = rng.standard_normal(dim)
    near = unit(centre + 0.1 * rng.standard_normal((crowded, dim)))
    others = unit(rng.standard_normal((60, dim)))
    vectors = np.concatenate([near, others])
    names = ["star"] * crowded + [f"p{i}" for i in range(60)]
    rows: list[Row] = [(name, None) for name in names]
    fill(database, rows, vectors)
    search = ServerSearch(database)
    search.make_index("space", dim)
    query = unit(centre).astype(np.float32)
    before = scans(database)
    found = search.nearest("space", query[None], 3)[0]
    assert scans(database) - before == 1, "the planner takes the index of a small table too"
    wanted = brute_force(rows, vectors, query, 3)
    assert [match.identity for match in found] == [match.identity for match in wanted]


def test_an_index_is_built_by_one_box_while_others_write(dsn: str, database: PostgresDatabase) -> None:
    rows: list[Row] = [(f"p{i}", None) for i in range(50)]
    fill(database, rows, unit(np.random.default_rng(6).standard_normal((50, 16))))
    code = (
        "import sys\nfrom s3clip_runtime.gallery.storage.postgres import PostgresDatabase\n"
        "from s3clip_runtime.gallery.search.server import ServerSearch\n"
        "ServerSearch(PostgresDatabase.open(sys.argv[1])).make_index('space', 16)"
    )
    writer = PostgresDatabase.open(dsn)
    with writer.transaction():
        writer.run("DELETE FROM prototype WHERE id = 1")  # what building waits for
        builder = subprocess.Popen([sys.executable, "-c", code, dsn])
        end = time.monotonic() + 20
        waits = "SELECT count(*) FROM pg_stat_progress_create_index"
        while not database.rows(waits)[0][0]:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert not ServerSearch(database).index("space")
        with pytest.raises(GalleryUnavailable, match="another box builds this index"):
            ServerSearch(database).make_index("space", 16)
    assert builder.wait(timeout=30) == 0
    assert ServerSearch(database).index("space")
    ServerSearch(database).make_index("space", 16)  # anew
    writer.close()


def test_a_space_of_odd_letters_gets_no_index(database: PostgresDatabase) -> None:
    with pytest.raises(GalleryError, match='found "a\'b"'):
        ServerSearch(database).make_index("a'b", 4)
