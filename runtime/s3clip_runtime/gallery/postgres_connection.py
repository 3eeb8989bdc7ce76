"""Connections to PostgreSQL: what a DSN means, timeouts, the tables, and errors in plain words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from s3clip_runtime.errors import ConfigError, GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.database import TABLES, Dialect, statements

if TYPE_CHECKING:
    import psycopg

DIALECT = Dialect(
    key="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    text='TEXT COLLATE "C"',  # of UTF-8: the order of code points
    blob="BYTEA",
    vector="HALFVEC",  # without a dimension: several spaces live in one table
)
LOCK_S = 10
STATEMENT_S = 60
UPKEEP_S = 3600
CONNECT_S = 5
_SCHEMA = "s3clip"
_MIN_SERVER = 130000
_MIN_VECTOR = (0, 8)

_DEFAULTS = {
    "connect_timeout": str(CONNECT_S),
    "application_name": "s3clip",
    # A server that lost its power says nothing: 25 s of silence end the connection.
    "keepalives": "1", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}  # fmt: skip

_ENCODING = {"client_encoding": "utf8"}
"""Whatever the DSN says."""

_SETTINGS = {
    "statement_timeout": f"{STATEMENT_S}s",
    "lock_timeout": f"{LOCK_S}s",
    # A box that stops within a transaction holds the lock of all: the server ends its connection.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",  # else the first look is from before the lock
}  # fmt: skip

_UNAVAILABLE = ("08", "25", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE that pass, or that somebody at the server can end: the data are fine."""

_CURES = {
    "25006": "the server takes no writes, such as a standby; connect to the primary",
    "42501": "grant the role the right, or let an administrator do it once",
    "42P01": "the schema is not of a gallery, or tables were dropped; restore them from a backup",
    "53100": "the server's disk is full; free space there",
    "55P03": f"another box has held the lock for {LOCK_S} s; try again when it is done",
    "57014": f"it took longer than {STATEMENT_S} s; try again when the server is less busy",
    "XX001": "the server's data are damaged; restore a backup",
    "XX002": "an index is damaged; REINDEX it, or restore a backup",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gallery is.

    Attributes:
        parameters: of libpq, the password among them.
        schema: the PostgreSQL schema that holds its tables.
        name: for messages, without a password.
    """

    parameters: dict[str, str] = field(repr=False)
    schema: str
    name: str

    @property
    def lock(self) -> int:
        """Number of the advisory lock that makes transactions of all boxes wait for each other."""
        digest = hashlib.blake2b(f"s3clip gallery {self.schema}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)


def address(dsn: str) -> Address:
    """Read a DSN: `postgresql://user:password@host:port/database`, or libpq's `key=value` form.

    The schema is libpq's own option: `?options=-csearch_path%3Dnorth` names the schema `north`.

    Raises:
        ConfigError: it is none, or the extra `postgres` is not installed. The message does not repeat it.
    """
    _need_packages()
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    rule = "the gallery's DSN must be postgresql://user:password@host:port/database"
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    except psycopg.Error:  # its text repeats parts of the DSN, the password perhaps
        cure = "write letters such as @ : / % of the password as %40 %3A %2F %25"
        raise ConfigError(f"{rule}, found something that libpq cannot read; {cure}") from None
    if "@" in given.get("host", "") + given.get("port", ""):
        raise ConfigError(f"{rule}, found a second @; write an @ of the password as %40")
    found = re.search(r"search_path\s*=\s*(\S+)", given.get("options", ""))
    schema = found[1] if found else _SCHEMA
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", schema):
        raise ConfigError(
            f"the gallery's schema must be one name of a-z, 0-9 and _, found {schema!r}; choose such a one"
        )
    known = {option.keyword: option.val for option in psycopg.pq.Conninfo.get_defaults() if option.val}
    parts = {key.decode(): value.decode() for key, value in known.items()} | given
    host, port = parts.get("host", parts.get("hostaddr", "localhost")), parts.get("port", "5432")
    database = parts.get("dbname", parts.get("user", "postgres"))
    place = "" if schema == _SCHEMA else f" (schema {schema})"
    return Address(_DEFAULTS | given | _ENCODING, schema, f"gallery {database} on {host}:{port}{place}")


def connect(place: Address) -> psycopg.Connection[Any]:
    """A connection with its timeouts, in autocommit, whose tables are there.

    Raises:
        GalleryUnavailable: the server is away or refuses.
        GalleryError: it cannot hold a gallery, or the schema holds something else.
    """
    import psycopg

    with explained(place.name):
        connection = psycopg.connect(**place.parameters, autocommit=True)  # type: ignore[arg-type]
    try:
        with explained(place.name):
            _check_server(connection, place.name)
            for key, value in _SETTINGS.items():
                connection.execute("SELECT set_config(%s, %s, false)", (key, value))
            _make_tables(connection, place)
            _register(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn errors of psycopg into GalleryErrors with a cure."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate
        if state is None and not isinstance(error, psycopg.OperationalError):
            raise  # values that do not fit the statement: a bug, not a fault of the server
        text = error.diag.message_primary or " ".join(str(error).split())
        if state is None:  # no connection, or no longer; where it was refused the server's words tell why
            cure = "see that the server runs and is reached, and that user, password and database are right"
            raise GalleryUnavailable(f"{name}: {text}; {cure}") from error
        away = state.startswith(_UNAVAILABLE)
        cure = _CURES.get(state, "try again when the server is back" if away else "see the server's log")
        raise (GalleryUnavailable if away else GalleryError)(f"{name}: {text}; {cure}") from error


@contextmanager
def patience(connection: psycopg.Connection[Any], lock_s: float) -> Iterator[None]:
    """Let statements take an hour, and wait `lock_s` for a lock."""
    change = "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)"
    connection.execute(change, (f"{UPKEEP_S}s", f"{lock_s:g}s"))
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(change, (f"{STATEMENT_S}s", f"{LOCK_S}s"))


def _need_packages() -> None:
    try:
        import pgvector  # noqa: F401  only whether it is there
        import psycopg  # noqa: F401
    except ModuleNotFoundError as error:
        cure = 'a gallery on PostgreSQL needs: pip install "s3clip[postgres]"'
        raise ConfigError(f"{error.name} is not installed; {cure}") from error


def _check_server(connection: psycopg.Connection[Any], name: str) -> None:
    if connection.info.server_version < _MIN_SERVER:
        found = connection.info.server_version // 10000
        raise GalleryError(f"{name}: PostgreSQL must be 13 or later, found {found}; update the server")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        cure = "make a database WITH ENCODING 'UTF8' TEMPLATE template0"
        raise GalleryError(f"{name}: the database's encoding must be UTF8, found {encoding}; {cure}")


@dataclass(frozen=True, slots=True)
class _Found:
    """What the database holds already: pgvector's version and schema, whether ours is there, its tables."""

    vector: str | None
    home: str
    schema: bool
    tables: frozenset[str]


def _look(connection: psycopg.Connection[Any], schema: str) -> _Found:
    extension = connection.execute(
        "SELECT extversion, nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE extname = 'vector'"
    ).fetchone()
    tables = connection.execute(
        "SELECT relname FROM pg_namespace n LEFT JOIN pg_class c ON relnamespace = n.oid "
        "AND relkind IN ('r', 'p') WHERE nspname = %s",
        (schema,),
    ).fetchall()
    version, home = extension or (None, "public")
    return _Found(version, home, bool(tables), frozenset(name for (name,) in tables if name))


def _make_tables(connection: psycopg.Connection[Any], place: Address) -> None:
    """Make what is not there yet, one box at a time, and set the search path."""
    found = _look(connection, place.schema)
    if found.vector is None or not found.tables:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (place.lock,))
            found = _look(connection, place.schema)  # another box may have been faster
            if found.vector is None:
                _add_extension(connection, place.name)
            _set_path(connection, place.schema, found.home)
            if not found.schema:
                connection.execute(f"CREATE SCHEMA {place.schema}".encode())
            if not found.tables:
                for statement in statements(DIALECT):
                    connection.execute(statement.encode())
                _tune_columns(connection, place.schema)
        found = _look(connection, place.schema)
    _set_path(connection, place.schema, found.home)
    _check_version(found.vector or "none", place.name)
    if not found.tables.issuperset(TABLES):
        raise GalleryError(
            f"{place.name}: the schema {place.schema} must hold a gallery's tables or none, found "
            f"{', '.join(sorted(found.tables))}; name another schema with ?options=-csearch_path%3DNAME"
        )


def _set_path(connection: psycopg.Connection[Any], schema: str, home: str) -> None:
    connection.execute("SELECT set_config('search_path', %s, false)", (f'{schema}, "{home}"',))


def _add_extension(connection: psycopg.Connection[Any], name: str) -> None:
    import psycopg

    try:
        connection.execute("CREATE EXTENSION vector SCHEMA public")
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
        cure = "install pgvector 0.8 or later on the server (package postgresql-NN-pgvector)"
        raise GalleryError(f"{name}: the server does not have the extension vector; {cure}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        cure = "let an administrator run CREATE EXTENSION vector in this database once"
        raise GalleryError(f"{name}: the role may not add the extension vector; {cure}") from error


def _check_version(version: str, name: str) -> None:
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _MIN_VECTOR:
        cure = "install a newer one and run ALTER EXTENSION vector UPDATE"
        raise GalleryError(f"{name}: pgvector must be 0.8 or later, found {version}; {cure}")


def _tune_columns(connection: psycopg.Connection[Any], schema: str) -> None:
    # Vectors stay in their row: a scan that fetched each from a side table would take several times as long.
    connection.execute("ALTER TABLE prototype ALTER vector SET STORAGE MAIN")
    # ANALYZE would copy samples of names and vectors into pg_statistic, out of reach of forgetting.
    query = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s "
        "AND data_type IN ('text', 'bytea', 'USER-DEFINED') AND column_name <> 'space'"
    )
    for table, column in connection.execute(query, (schema,)).fetchall():
        connection.execute(f"ALTER TABLE {table} ALTER {column} SET STATISTICS 0".encode())


def _register(connection: psycopg.Connection[Any]) -> None:
    """Write HalfVectors; read a vector as the bytes that came, for `unpacked` joins thousands at once."""
    from pgvector.psycopg.halfvec import register_halfvec_info
    from psycopg.types import TypeInfo
    from psycopg.types.string import ByteaBinaryLoader

    info = TypeInfo.fetch(connection, "halfvec")
    assert info is not None
    register_halfvec_info(connection, info)
    connection.adapters.register_loader(info.oid, ByteaBinaryLoader)
