"""The gallery's database on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from postgres_server import Postgres

from s3clip_runtime.errors import ConfigError, GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.storage.database import COLUMNS, Halves
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase
from s3clip_runtime.gallery.storage.postgres_connection import address

PROTOTYPE = (
    "INSERT INTO prototype (identity, space, origin, source, seen_s, added_s, vector) "
    "VALUES (?, 'space', 'enrolled', 'test', 0.0, 0.0, ?)"
)
CLIP = "INSERT INTO clip (identity, platform, seen_s, hr, pictures) VALUES (?, 'ground', 1.0, 0, ?)"


@pytest.fixture
def database(dsn: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase.open(dsn)
    yield opened
    opened.close()


def process(code: str, dsn: str, *more: str) -> subprocess.Popen[str]:
    """Another box: runs the code with `database` open; it ends with the test at the latest."""
    start = "import sys, time\nfrom s3clip_runtime.gallery.storage.postgres import PostgresDatabase\n"
    opened = "database = PostgresDatabase.open(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + opened + code, dsn, *more], stdout=subprocess.PIPE, text=True
    )


def unit(rng: np.random.Generator, count: int, dim: int) -> Halves:
    rows = rng.standard_normal((count, dim))
    halves: Halves = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return halves


def test_two_boxes_that_start_at_once_make_the_tables_once(dsn: str) -> None:
    code = "print(database.rows('SELECT count(*) FROM log')[0][0])"
    boxes = [process(code, dsn) for _ in range(3)]
    assert [box.communicate(timeout=60)[0] for box in boxes] == ["0\n"] * 3
    assert [box.returncode for box in boxes] == [0] * 3
    database = PostgresDatabase.open(dsn)
    found = database.rows("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1")
    assert {name for (name,) in found} == set(COLUMNS)
    database.close()


def test_a_transaction_keeps_all_other_boxes_out(dsn: str, database: PostgresDatabase) -> None:
    # Reading and writing apart loses steps unless each transaction sees what the one before it wrote.
    database.run("INSERT INTO meta VALUES ('count', '0')")
    code = """
for _ in range(100):
    with database.transaction():
        count = int(database.rows("SELECT value FROM meta WHERE key = 'count'")[0][0])
        database.run("UPDATE meta SET value = ? WHERE key = 'count'", str(count + 1))
"""
    boxes = [process(code, dsn) for _ in range(2)]
    assert [box.wait(timeout=60) for box in boxes] == [0, 0]
    assert database.rows("SELECT value FROM meta WHERE key = 'count'") == [("200",)]


def test_a_killed_box_leaves_nothing_and_frees_the_lock(dsn: str, database: PostgresDatabase) -> None:
    code = """
with database.transaction():
    database.run("INSERT INTO meta VALUES ('half', 'done')")
    print("inside", flush=True)
    time.sleep(60)
"""
    box = process(code, dsn)
    assert box.stdout is not None
    assert box.stdout.readline() == "inside\n"
    os.kill(box.pid, signal.SIGKILL)
    box.wait(timeout=10)
    start = time.monotonic()
    with database.transaction():
        assert database.rows("SELECT * FROM meta") == []
    assert time.monotonic() - start < 5


def test_a_failed_transaction_leaves_nothing(database: PostgresDatabase) -> None:
    def fail() -> None:
        with database.transaction():
            database.run("INSERT INTO meta VALUES ('a', 'b')")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert database.rows("SELECT * FROM meta") == []


def test_a_transaction_whose_statement_failed_does_not_end_well(database: PostgresDatabase) -> None:
    def swallow() -> None:
        with database.transaction():
            database.run("INSERT INTO meta VALUES ('a', 'b')")
            with contextlib.suppress(GalleryError):
                database.run("INSERT INTO meta VALUES ('a', 'c')")

    with pytest.raises(GalleryError, match="nothing was kept"):
        swallow()
    assert database.rows("SELECT * FROM meta") == []


def test_a_snapshot_sees_one_state(dsn: str, database: PostgresDatabase) -> None:
    other = PostgresDatabase.open(dsn)
    with other.snapshot():
        assert other.rows("SELECT count(*) FROM meta") == [(0,)]
        with database.transaction():  # nor does the writer wait for the reader
            database.run("INSERT INTO meta VALUES ('a', 'b')")
        assert other.rows("SELECT count(*) FROM meta") == [(0,)]
    assert other.rows("SELECT count(*) FROM meta") == [(1,)]
    other.close()


def test_a_snapshot_takes_no_writes(database: PostgresDatabase) -> None:
    def write() -> None:
        with database.snapshot():
            database.run("INSERT INTO meta VALUES ('a', 'b')")

    with pytest.raises(GalleryUnavailable, match="read-only"):
        write()


def test_every_finite_float16_comes_back_bit_for_bit(database: PostgresDatabase) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))].view(np.float16)  # with subnormals and -0
    rows = finite.reshape(-1, 1024)
    database.run_many(PROTOTYPE, [("a", database.packed(row)) for row in rows])
    found = database.rows("SELECT vector FROM prototype ORDER BY id")
    back = database.unpacked([vector for (vector,) in found], 1024)
    assert back.dtype == np.float16
    assert (back.view(np.uint16) == rows.view(np.uint16)).all()


def test_a_vector_of_another_length_is_refused(database: PostgresDatabase) -> None:
    database.run(PROTOTYPE, "a", database.packed(np.ones(3, np.float16)))
    stored = database.rows("SELECT vector FROM prototype")[0]
    with pytest.raises(GalleryError, match="must have 4 numbers, found 3"):
        database.unpacked(stored, 4)
    assert database.unpacked([], 4).shape == (0, 4)


def test_text_is_ordered_by_code_points(database: PostgresDatabase) -> None:
    names = ["a", "Z", "ä", "z", "Ä", "_", "👩", "é", "漢", "１"]
    insert = "INSERT INTO identity (id, name, kind, note, added_s) VALUES (?, ?, 'known', '', 0.0)"
    database.run_many(insert, [(str(i), name) for i, name in enumerate(names)])
    assert [name for (name,) in database.rows("SELECT name FROM identity ORDER BY name")] == sorted(names)


def test_values_come_back_as_they_went(database: PostgresDatabase) -> None:
    insert = (
        "INSERT INTO log (time_s, box, actor, action, identity, detail, undone) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq"
    )
    values = (1753000000.123456789, "box", "täter % ? 100%s", "note", None, "{}", 2**40)
    first = database.rows(insert, *values)[0][0]
    assert database.rows(insert, *values)[0][0] > first
    read = "SELECT time_s, box, actor, action, identity, detail, undone FROM log WHERE seq = ?"
    assert database.rows(read, first) == [values]
    assert database.run("DELETE FROM log") == 2
    picture = bytes(range(256))
    database.run(CLIP, "a", picture)
    assert database.rows("SELECT pictures, seen_s FROM clip") == [(picture, 1.0)]


def test_a_stopped_server_is_told_at_once_and_found_again(postgres: Postgres) -> None:
    database = PostgresDatabase.open(postgres.dsn(user="postgres:hunter2"))
    database.run("INSERT INTO meta VALUES ('kept', 'yes')")
    postgres.stop()
    try:
        start = time.monotonic()
        texts = []
        for _ in range(200):
            with pytest.raises(GalleryUnavailable) as caught:
                database.rows("SELECT 1")
            texts.append(str(caught.value))
        assert time.monotonic() - start < 1
        assert any("next attempt" in text for text in texts)
        assert not any("hunter2" in text for text in texts)
        with pytest.raises(GalleryUnavailable, match="gallery postgres on"):
            PostgresDatabase.open(postgres.dsn(user="postgres:hunter2"))
    finally:
        postgres.start()
    time.sleep(1.1)
    assert database.rows("SELECT value FROM meta WHERE key = 'kept'") == [("yes",)]
    database.close()


def test_a_connection_lost_within_a_transaction_is_not_replaced(
    dsn: str,
    database: PostgresDatabase,
) -> None:
    other = PostgresDatabase.open(dsn)

    def cut() -> None:
        with database.transaction():
            database.run("INSERT INTO meta VALUES ('first', 'half')")
            mine = database.rows("SELECT pg_backend_pid()")[0][0]
            other.rows("SELECT pg_terminate_backend(?, 5000)", mine)
            with pytest.raises(GalleryUnavailable):
                database.run("INSERT INTO meta VALUES ('second', 'half')")
            database.run("INSERT INTO meta VALUES ('third', 'half')")

    with pytest.raises(GalleryUnavailable, match="within a transaction"):
        cut()
    assert database.rows("SELECT * FROM meta") == []
    other.close()


@pytest.mark.slow
def test_waiting_for_another_box_ends(dsn: str, database: PostgresDatabase) -> None:
    other = PostgresDatabase.open(dsn)
    start = time.monotonic()
    held = pytest.raises(GalleryUnavailable, match="another box has held the lock")
    with other.transaction(), held, database.transaction():
        pass
    assert 9 < time.monotonic() - start < 20
    with database.transaction():
        pass
    other.close()


def files_with(postgres: Postgres, needle: bytes) -> list[str]:
    """Files of the server that hold the bytes; the write-ahead log is out of reach of forgetting."""
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("CHECKPOINT")  # what is in the server's memory alone goes to its files
    files = [file for file in postgres.folder.rglob("*") if file.is_file() and "pg_wal" not in file.parts]
    assert any("base" in file.parts for file in files)
    return [str(file.relative_to(postgres.folder)) for file in files if needle in file.read_bytes()]


@pytest.mark.parametrize("dim", [64, 1280])
def test_no_file_holds_a_scrubbed_vector(postgres: Postgres, database: PostgresDatabase, dim: int) -> None:
    from s3clip_runtime.gallery.search.server import ServerSearch

    vectors = unit(np.random.default_rng(), 40, dim)  # no other test leaves the same ones on the server
    database.run_many(PROTOTYPE, [(f"person{i}", database.packed(row)) for i, row in enumerate(vectors)])
    database.run(CLIP, "person7", vectors[7].tobytes()[::-1])
    search = ServerSearch(database)
    search.make_index("space", dim)
    database.run("ANALYZE")  # its samples must hold no vector either
    needles = [vectors[7].tobytes()[:100], vectors[7].tobytes()[::-1][:100]]
    assert all(files_with(postgres, needle) for needle in needles)
    database.run("DELETE FROM prototype WHERE identity = 'person7'")
    database.run("DELETE FROM clip")
    assert all(files_with(postgres, needle) for needle in needles), "deleting alone does not erase"
    database.scrub()
    assert [files_with(postgres, needle) for needle in needles] == [[], []]
    assert files_with(postgres, vectors[8].tobytes()[:100])
    assert search.index("space")
    assert database.rows("SELECT count(*) FROM prototype") == [(39,)]


def test_scrub_waits_for_a_reader_of_the_old_rows(
    postgres: Postgres, dsn: str, database: PostgresDatabase
) -> None:
    vector = unit(np.random.default_rng(), 1, 1280)[0]
    database.run(PROTOTYPE, "person", database.packed(vector))
    code = """
with database.snapshot():
    database.rows("SELECT 1")
    print("reads", flush=True)
    time.sleep(2)
"""
    box = process(code, dsn)
    assert box.stdout is not None
    box.stdout.readline()
    database.run("DELETE FROM prototype")
    database.scrub()
    assert files_with(postgres, vector.tobytes()[:100]) == []
    assert box.wait(timeout=10) == 0


@pytest.mark.parametrize("holder", ["SELECT 1", "INSERT INTO foreign_numbers VALUES (1)"])
@pytest.mark.parametrize("waits", [True, False])
def test_scrub_does_not_claim_what_an_older_transaction_prevents(
    postgres: Postgres, database: PostgresDatabase, holder: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if waits:
        monkeypatch.setattr("s3clip_runtime.gallery.storage.postgres._SNAPSHOTS_S", 0.3)
    else:  # as if the transaction began just after the wait
        monkeypatch.setattr(PostgresDatabase, "_await_readers", lambda _: None)
    vector = unit(np.random.default_rng(), 1, 1280)[0]
    database.run(PROTOTYPE, "person", database.packed(vector))
    with psycopg.connect(postgres.dsn(schema="public")) as other:
        other.execute("CREATE TABLE IF NOT EXISTS foreign_numbers (number INTEGER)")
        other.commit()
        if holder == "SELECT 1":
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute(holder)
        database.run("DELETE FROM prototype")
        with pytest.raises(GalleryUnavailable, match="scrub again"):
            database.scrub()
        assert files_with(postgres, vector.tobytes()[:100])
        other.rollback()
    database.scrub()
    assert files_with(postgres, vector.tobytes()[:100]) == []


def test_scrub_by_a_role_that_may_not_is_an_error(postgres: Postgres) -> None:
    dsn = postgres.dsn(schema="owned")
    PostgresDatabase.open(dsn).close()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA owned TO guest")
        connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA owned TO guest")
    guest = PostgresDatabase.open(postgres.dsn(schema="owned", user="guest"))
    with pytest.raises(GalleryError, match="owner"):
        guest.scrub()
    guest.close()


def test_a_foreign_schema_is_refused(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA foreign_one")
        connection.execute("CREATE TABLE foreign_one.invoices (id INTEGER)")
    with pytest.raises(GalleryError, match="found invoices"):
        PostgresDatabase.open(postgres.dsn(schema="foreign_one"))


def test_a_database_without_pgvector_says_what_to_do(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
        connection.execute("CREATE ROLE pauper LOGIN")
        connection.execute("GRANT CREATE ON DATABASE bare TO pauper")
    with pytest.raises(GalleryError, match="run CREATE EXTENSION vector in this database once"):
        PostgresDatabase.open(postgres.dsn(user="pauper", database="bare"))
    control = next(postgres.server.bin_path.parent.glob("share/**/vector.control"))
    hidden = control.with_suffix(".hidden")
    control.rename(hidden)
    try:
        with pytest.raises(GalleryError, match=r"does not have the extension vector; install pgvector"):
            PostgresDatabase.open(postgres.dsn(database="bare"))
    finally:
        hidden.rename(control)


def test_wrong_passwords_and_databases_are_told_without_the_password(postgres: Postgres) -> None:
    rules = postgres.folder / "pg_hba.conf"
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("CREATE ROLE careful LOGIN PASSWORD 'right'")
        old = rules.read_text("utf-8")
        rules.write_text(f"local all careful scram-sha-256\n{old}", "utf-8")
        connection.execute("SELECT pg_reload_conf()")
    time.sleep(0.2)
    with pytest.raises(GalleryUnavailable, match="password authentication failed") as caught:
        PostgresDatabase.open(postgres.dsn(user="careful:s3kr1t-w0rd"))
    assert "s3kr1t-w0rd" not in str(caught.value)
    with pytest.raises(GalleryUnavailable, match="does not exist; see that the server"):
        PostgresDatabase.open(postgres.dsn(database="nowhere"))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:s3kr@t@host/people",
        "postgresql://me:s3kr%zz@host/people",
        "password=s3kr et host=here",
        "host='s3kr",
        "postgresql://me:s3kr@[::1/people",
        "s3kr",
    ],
)
def test_a_dsn_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigError, match=r"must be postgresql://") as caught:
        PostgresDatabase.open(dsn)
    assert "s3kr" not in str(caught.value)


def test_what_a_dsn_means() -> None:
    place = address("postgresql://me:s3kr%40t@db.example:6000/people?options=-csearch_path%3Dnorth")
    assert (place.name, place.schema) == ("gallery people on db.example:6000 (schema north)", "north")
    assert place.parameters["password"] == "s3kr@t"
    assert "s3kr" not in repr(place)
    words = address("host=db.example dbname=people connect_timeout=2 client_encoding=latin1")
    assert (words.name, words.schema) == ("gallery people on db.example:5432", "s3clip")
    assert words.parameters["connect_timeout"] == "2"
    assert words.parameters["client_encoding"] == "utf8"


def test_a_schema_with_odd_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="one name of a-z"):
        PostgresDatabase.open("postgresql://me@host/people?options=-csearch_path%3Da%3BDROP")


@pytest.mark.slow
def test_a_server_that_answers_nothing_costs_five_seconds() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(GalleryUnavailable, match=f"people on 127.0.0.1:{port}"):
            PostgresDatabase.open(f"postgresql://me@127.0.0.1:{port}/people")
        assert time.monotonic() - start < 8


def test_a_missing_package_names_the_extra() -> None:
    code = """
import sys
sys.modules["psycopg"] = None
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.gallery.storage.postgres import PostgresDatabase
try:
    PostgresDatabase.open("postgresql://here/people")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (
        done.stdout
        == 'psycopg is not installed; a gallery on PostgreSQL needs: pip install "s3clip[postgres]"\n'
    )


def test_a_closed_gallery_says_so(database: PostgresDatabase) -> None:
    database.close()
    database.close()
    with pytest.raises(GalleryError, match="was closed"):
        database.rows("SELECT 1")
