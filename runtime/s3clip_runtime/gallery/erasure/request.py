"""A request to be forgotten, from the rows over the backups to the signed receipt."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from s3clip_runtime.errors import GalleryError, GalleryUnavailable
from s3clip_runtime.gallery.backup import discard_unfinished
from s3clip_runtime.gallery.erasure.forget import Chosen, Selection, choose, choose_people, remove
from s3clip_runtime.gallery.erasure.receipts import BackupErasure, Receipt, Signer
from s3clip_runtime.gallery.erasure.traces import still_there, traces
from s3clip_runtime.gallery.storage.book import Book
from s3clip_runtime.gallery.storage.database import Database
from s3clip_runtime.gallery.storage.sqlite import SqliteDatabase

_OUT_OF_REACH = (
    "blocks that the file system or the disk keeps of deleted files",
    "copies that others made of the gallery",
    "events and pictures that s3clip-run has written or sent, beyond the folders named to this command",
)
_SERVER_OUT_OF_REACH = (
    "write-ahead log, replicas and base backups of the PostgreSQL server; its files were not searched",
)


def forget(book: Book, selection: Selection, asked: str, pictures: int = 0) -> tuple[Receipt, str]:
    """Erase, overwrite, search for what was erased, do the same to every backup, and sign what was done.

    Backups come first: whoever is stopped half-way can ask again, for the person is still in the gallery.

    Args:
        book: of an open gallery, in no transaction.
        selection: who.
        asked: the request in words, for the receipt.
        pictures: files of crops that the caller has deleted.

    Returns:
        The receipt, and the text of its signed file.

    Raises:
        GalleryError: there is no such person.
        GalleryUnavailable: it cannot be written now, and nothing was erased but in backups; ask again.
    """
    with book.database.snapshot():
        chosen = choose(book, selection)
        wanted = traces(book, chosen)
    backups = {row: _forget_backup(book, *row, selection, chosen, wanted) for row in _backups(book)}
    with book.database.transaction():
        chosen = choose(book, selection)
        wanted = traces(book, chosen)
        counts = remove(book, chosen)
        signer = _signer(book)
    scrubbed = _scrub(book.database)
    found = still_there(book.database, wanted)
    for row in _backups(book):  # one may have been under way
        if row not in backups or backups[row].erased is None:
            backups[row] = _forget_backup(book, *row, selection, chosen, wanted)
    counts["picture files"] = pictures
    searchable = bool(book.database.files())
    receipt = Receipt(
        schema="s3clip.receipt/1",
        receipt_id=secrets.token_hex(8),
        gallery=book.value("gallery") or "",
        what=selection.what,
        asked=asked,
        asked_by=book.log.author.actor,
        box=book.log.author.box,
        time=datetime.now(UTC),
        erased={name: count for name, count in counts.items() if count},
        backups=tuple(backups[row] for row in sorted(backups)),
        scrubbed=scrubbed,
        searched=len(wanted) if searchable else 0,
        found=found,
        not_reached=_OUT_OF_REACH if searchable else (*_OUT_OF_REACH, *_SERVER_OUT_OF_REACH),
    )
    return receipt, signer.sign(receipt)


def public_key(book: Book) -> str:
    """64 hex digits that check this gallery's receipts."""
    with book.database.transaction():
        return _signer(book).public_key


def _signer(book: Book) -> Signer:
    """The gallery's key; made when it is needed first."""
    kept = book.value("receipt_key")
    if kept is not None:
        return Signer.from_bytes(bytes.fromhex(kept))
    signer = Signer.new()
    book.set_value("receipt_key", signer.private_bytes().hex())
    return signer


def _backups(book: Book) -> list[tuple[str, str]]:
    rows = book.database.rows("SELECT path, box FROM backup ORDER BY box, path")
    return [(str(path), str(box)) for path, box in rows]


def _scrub(database: Database) -> str:
    """Scrub; what was done. The rows are erased by then, so a full disk must not cost the receipt."""
    try:
        database.scrub()
    except GalleryUnavailable as error:
        return f"not finished, only the rows were overwritten: {error}"
    return database.scrubbing


def _forget_backup(
    book: Book, path: str, box: str, selection: Selection, chosen: Chosen, wanted: set[bytes]
) -> BackupErasure:
    if box != book.log.author.box:
        return BackupErasure(path=path, not_reached=f"it lies on {box}; repeat the request there")
    try:
        if discard_unfinished(Path(path)):
            return BackupErasure(path=path, erased={"unfinished backup": 1})
        if not Path(path).is_file():
            return BackupErasure(path=path, not_reached="the file is not there; was it moved?")
        database = SqliteDatabase(Path(path))
        try:
            return _erase_in(database, book, path, selection, chosen, wanted)
        finally:
            database.close()
    except (GalleryError, OSError) as error:
        return BackupErasure(path=path, not_reached=str(error))


def _erase_in(
    database: Database, book: Book, path: str, selection: Selection, chosen: Chosen, wanted: set[bytes]
) -> BackupErasure:
    copy = book.of(database)
    with database.transaction():
        if selection.identity is None:
            taken = choose(copy, selection)
        else:  # by id: the person may have had another name then, or have been several
            taken = choose_people(copy, chosen.people, chosen.people)
        wanted = wanted | traces(copy, taken)
        counts = remove(copy, taken)
    database.scrub()
    left = still_there(database, wanted)
    if left:
        return BackupErasure(path=path, not_reached=f"{left} pieces of erased values are still in it")
    return BackupErasure(path=path, erased={name: count for name, count in counts.items() if count})
