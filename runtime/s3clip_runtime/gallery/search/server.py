"""Search on the server, for galleries larger than memory: exact, or by an HNSW index where there is one."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.records import Match, Space
from s3clip_runtime.gallery.search.prototypes import exact_scores
from s3clip_runtime.gallery.storage.database import Database
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase

M = 16
"""Neighbours of a vector in each layer of the graph."""

EF_CONSTRUCTION = 100
"""Vectors looked at to place a new one."""

EF_SEARCH = 1000
"""Vectors looked at by a search, all of them candidates: the most that pgvector takes. The ten nearest
prototypes among 200,000 are found with a tenth of it; ten people need more, for each has several
(docs/results-gallery.md)."""

_ALL = "SELECT id, identity, vector <#> ? AS far FROM prototype WHERE space = ?"

_NEAR = (
    "WITH scored AS MATERIALIZED ({source}), "
    "best AS (SELECT min(far) AS far FROM scored GROUP BY identity ORDER BY 1 OFFSET ? LIMIT 1) "
    "SELECT i.name, p.platform, p.vector FROM scored s JOIN prototype p ON p.id = s.id "
    "JOIN identity i ON i.id = s.identity "
    "WHERE s.far <= coalesce((SELECT far FROM best), 'Infinity') + ? ORDER BY p.id"
)
"""Of rough scores: the prototypes that could be of one of the k best identities. `far` is minus the score."""


class ServerSearch:
    """Search of one gallery on its server. Not for several threads at once.

    Args:
        database: stays open as long as this is used.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def nearest(self, space: str, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
        """The k best identities of each query, best first; equal scores by name.

        Without an index of the space each query reads all its prototypes and gives what the search in
        memory gives, to the last tie. With one, a few prototypes are missed: a person may be missed, or get
        the score of the second best view. Of equally near prototypes of a person the oldest one tells the
        platform.

        Args:
            space: hash of the embedding space.
            queries: float32 (n, dim), rows of length 1.
            k: matches of one query, >= 1; fewer are given if there are fewer identities.

        Raises:
            GalleryError: the gallery is encrypted, or its vectors have another length.
            GalleryUnavailable: see `database.Database`.
        """
        with self._database.snapshot():
            stored = self._database.rows("SELECT vector FROM prototype WHERE space = ? LIMIT 1", space)
            if not stored:
                return [[] for _ in queries]
            if stored[0][0] is None:
                raise GalleryError(
                    f"{self._database.name}: it is encrypted, and the server cannot search what it cannot "
                    "read; search in memory"
                )
            self._database.unpacked(stored[0], queries.shape[1])
            indexed = self.index(space)
            if indexed:
                self._prefer_index()
            return [self._search(space, query, k, indexed) for query in queries]

    def index(self, space: str) -> bool:
        """Whether searches of this space go by an index, and so may miss some."""
        query = (
            "SELECT count(*) FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
            "WHERE relname = ? AND relnamespace = current_schema()::regnamespace AND indisvalid"
        )
        return bool(self._database.rows(query, _index_name(space))[0][0])

    def make_index(self, space: str, dim: int, *, memory_mb: int = 2048) -> None:
        """Build the HNSW index of a space, anew if there is one. Others go on enrolling and searching.

        Args:
            space: hash of the embedding space.
            dim: numbers of its vectors; the index takes 4000 at most.
            memory_mb: maintenance_work_mem of the server for it. The graph, some 3.5 KB for each prototype of
                1280 numbers, should fit; otherwise building takes many times as long.

        Raises:
            GalleryError: the name of the space holds other letters than `a-z A-Z 0-9 _ . : -`.
            GalleryUnavailable: another box builds it, or see `database.Database`.
        """
        if not re.fullmatch(r"[\w.:-]+", space, re.ASCII):
            raise GalleryError(
                f"a space must be named by letters, digits and _ . : -, found {space!r}; rename it"
            )
        name, database = _index_name(space), self._database
        lock = "(hashtextextended(current_schema() || ?, 0))"
        if not database.rows(f"SELECT pg_try_advisory_lock{lock}", name)[0][0]:
            raise GalleryUnavailable(
                f"{database.name}: another box builds this index now; wait until it is done"
            )
        try:
            database.run(f"DROP INDEX IF EXISTS {name}")
            database.run(f"SET maintenance_work_mem = '{memory_mb}MB'")
            database.build_index(
                name,
                f"CREATE INDEX {name} ON prototype USING hnsw ((vector::halfvec({dim})) halfvec_ip_ops) "
                f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION}) WHERE space = '{space}'",
            )
        finally:
            database.run("RESET maintenance_work_mem")
            database.rows(f"SELECT pg_advisory_unlock{lock}", name)

    def drop_index(self, space: str) -> None:
        """Search exactly again."""
        self._database.run(f"DROP INDEX IF EXISTS {_index_name(space)}")

    def _prefer_index(self) -> None:
        # The planner does not know what a graph costs, and takes the table where it is small. The space is a
        # condition of the index, so each plan must be made for the space that is asked for.
        for setting in (
            "enable_seqscan = off",
            "plan_cache_mode = force_custom_plan",
            f"hnsw.ef_search = {EF_SEARCH}",
        ):
            self._database.run(f"SET LOCAL {setting}")

    def _search(self, space: str, query: NDArray[np.float32], k: int, indexed: bool) -> list[Match]:
        if indexed:
            ranked = f"{_ALL} ORDER BY (vector::halfvec({len(query)})) <#> ? LIMIT {EF_SEARCH}"
            matches = self._near(ranked, space, query, k)
            if len(matches) == k:
                return matches  # else the candidates were of too few people
        return self._near(_ALL, space, query, k)

    def _near(self, source: str, space: str, query: NDArray[np.float32], k: int) -> list[Match]:
        packed = self._database.packed(query.astype(np.float16))
        values = (packed, space, packed)[: source.count("?")]
        rows = self._database.rows(_NEAR.format(source=source), *values, k - 1, _margin(query))
        return self._ranked(rows, query, k)

    def _ranked(self, rows: list[tuple[Any, ...]], query: NDArray[np.float32], k: int) -> list[Match]:
        if not rows:
            return []
        vectors = self._database.unpacked([vector for _, _, vector in rows], len(query))
        best: dict[str, Match] = {}
        for (name, platform, _), score in zip(rows, exact_scores(vectors, query).tolist(), strict=True):
            if name not in best or score > best[name].score:
                best[name] = Match(name, score, platform)
        return sorted(best.values(), key=lambda match: (-match.score, match.identity))[:k]


def server_search(database: Database, space: Space) -> ServerSearch | None:
    """Search on the server where it has an index of the space (`s3clip-gallery index`), else None: memory."""
    if not isinstance(database, PostgresDatabase):
        return None
    search = ServerSearch(database)
    return search if search.index(space.hash) else None


def _index_name(space: str) -> str:
    return f"prototype_hnsw_{hashlib.blake2b(space.encode(), digest_size=8).hexdigest()}"


def _margin(query: NDArray[np.float32]) -> float:
    """Most by which two of the server's scores of unit vectors can err against each other.

    The server takes the query in float16 (half a unit in the last of 11 bits, or 2**-25 below the normal
    numbers) and adds in float32, in whatever order.
    """
    dim, length = len(query), math.sqrt(float(query @ query))
    rounded = 2.0**-11 * length + 2.0**-25 * math.sqrt(dim)
    added = dim * 2.0**-24 * (length + rounded)
    return 2.02 * (rounded + added)
