"""The log of decisions: who did what to which identity, in one order for all boxes."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Action, LogEntry
from s3clip_runtime.gallery.storage.database import COLUMNS, Database

_COLUMNS = ", ".join(COLUMNS["log"])


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes: the machine, and the person or program on it."""

    box: str
    actor: str


class Log:
    """The decisions of one gallery. Entries are appended within the transaction that does what they tell.

    Args:
        database: holds it.
        author: of new entries.
    """

    def __init__(self, database: Database, author: Author) -> None:
        self._database = database
        self.author = author

    def append(
        self, action: Action, identity: str | None = None, other: str | None = None, **detail: object
    ) -> int:
        """Add an entry; returns its number. `detail` must be JSON; it is lost when a person is forgotten."""
        rows = self._database.rows(
            "INSERT INTO log (time_s, box, actor, action, identity, other, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq",
            time.time(), self.author.box, self.author.actor, action, identity, other, json.dumps(detail),
        )  # fmt: skip
        return int(rows[0][0])

    def newest(self) -> int:
        """The highest number; 0 if there is none."""
        return int(self._database.rows("SELECT coalesce(max(seq), 0) FROM log")[0][0])

    def changed_since(self, seq: int) -> set[str]:
        """Ids that entries after `seq` name."""
        rows = self._database.rows("SELECT identity, other FROM log WHERE seq > ?", seq)
        return {one for row in rows for one in row if one is not None}

    def entries(self, *, identity: str | None = None, last: int | None = None) -> list[LogEntry]:
        """Entries in order.

        Args:
            identity: only those that name this id.
            last: the newest so many.
        """
        where, values = "", list[object]()
        if identity is not None:
            where, values = "WHERE identity = ? OR other = ? ", [identity, identity]
        query = f"SELECT {_COLUMNS} FROM log {where}ORDER BY seq DESC"
        if last is not None:
            query, values = f"{query} LIMIT ?", [*values, last]
        return [_entry(row) for row in reversed(self._database.rows(query, *values))]

    def entry(self, seq: int) -> LogEntry | None:
        """The entry of this number."""
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM log WHERE seq = ?", seq)
        return _entry(rows[0]) if rows else None

    def newest_of(self, actions: Collection[Action]) -> LogEntry | None:
        """The newest entry with one of these actions that was not undone, and tells how to undo it."""
        query = (
            f"SELECT {_COLUMNS} FROM log WHERE action IN ({', '.join('?' * len(actions))}) "
            "AND undone IS NULL AND detail <> '{}' ORDER BY seq DESC LIMIT 1"
        )
        rows = self._database.rows(query, *actions)
        return _entry(rows[0]) if rows else None

    def mark_undone(self, seq: int, by: int) -> None:
        """Note that entry `by` undid entry `seq`."""
        self._database.run("UPDATE log SET undone = ? WHERE seq = ?", by, seq)

    def merged_into(self, identity: str) -> list[str]:
        """The id, and those of people who were merged into it, and into these."""
        found = [identity]
        for one in found:
            query = "SELECT other FROM log WHERE identity = ? AND action = 'merge' AND undone IS NULL"
            found += [row[0] for row in self._database.rows(query, one) if row[0] not in found]
        return found

    def scrub(self, identity: str) -> int:
        """Empty the details of all entries that name an id; how many had some."""
        return self._database.run(
            "UPDATE log SET detail = '{}' WHERE (identity = ? OR other = ?) AND detail <> '{}'",
            identity,
            identity,
        )


def _entry(row: tuple[Any, ...]) -> LogEntry:
    seq, time_s, box, actor, action, identity, other, text, undone = row
    try:
        detail = json.loads(text)
    except ValueError as error:
        rule = f"entry {seq} of the gallery's log must be JSON, found {text!r:.40}"
        raise GalleryError(f"{rule}: it is damaged; restore a backup") from error
    return LogEntry(seq, time_s, box, actor, action, identity, other, detail, undone)
