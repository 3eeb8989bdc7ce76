"""Erasing people from a gallery: which rows, and how they stay erased when a backup is restored."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from s3clip_runtime.gallery.edits import Edits
from s3clip_runtime.gallery.records import Action
from s3clip_runtime.gallery.storage.book import Book

What = Literal["identity", "time", "camera", "retention"]

Rows = dict[str, dict[int, float]]
"""Of each table: numbers of rows with their times. Both together name a row in every copy of the gallery."""

_TIMES = {"prototype": "seen_s", "clip": "seen_s", "sighting": "told_s"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Who is to be erased: one person, or what cameras saw.

    Attributes:
        identity: name of a person: all that there is of the person. With it nothing else is given.
        camera: what this camera saw; None: every camera.
        since_s, until_s: Unix seconds between which it was seen.
        collected: only what runs collected by themselves, not what somebody enrolled: for limits of storage.
    """

    identity: str | None = None
    camera: str | None = None
    since_s: float = 0.0
    until_s: float = float("inf")
    collected: bool = False

    @property
    def what(self) -> What:
        """The kind of the request."""
        if self.identity is not None:
            return "identity"
        if self.camera is not None:
            return "camera"
        return "retention" if self.collected else "time"


@dataclass(slots=True)
class Chosen:
    """What an erasure takes from one database.

    Attributes:
        rows: all that go.
        people: ids of those who go whole, and of all who were merged into them, with their own rows.
        partly: ids of those who lose rows and stay.
        selection: what it was chosen by; None: by ids.
    """

    rows: Rows = field(default_factory=lambda: defaultdict(dict))
    people: dict[str, Rows] = field(default_factory=dict)
    partly: list[str] = field(default_factory=list)
    selection: Selection | None = None


@dataclass(slots=True)
class Forgotten:
    """What was erased of a gallery so far, by its log.

    Attributes:
        people: ids of those who went whole, with the rows that they had.
        selections: what was erased of cameras and times.
    """

    people: dict[str, Rows] = field(default_factory=dict)
    selections: list[Selection] = field(default_factory=list)


def choose(book: Book, selection: Selection) -> Chosen:
    """What a selection takes; who has no prototype left goes whole.

    Raises:
        GalleryError: there is no such person.
    """
    if selection.identity is not None:
        return choose_people(book, [Edits(book).find(selection.identity).id])
    rows: Rows = {}
    touched: set[str] = set()
    for table, column in _TIMES.items():
        where, values = _where(selection, table, column)
        found = book.database.rows(f"SELECT id, {column}, identity FROM {table} WHERE {where}", *values)
        rows[table] = {id: time_s for id, time_s, _ in found}
        touched.update(identity for _, _, identity in found)
    prototypes = book.database.rows("SELECT id, identity FROM prototype")
    left = {identity for id, identity in prototypes if id not in rows["prototype"]}
    chosen = choose_people(book, sorted(touched - left))
    for table, own in rows.items():
        chosen.rows[table].update(own)
    chosen.partly = sorted(touched & left)
    chosen.selection = selection
    return chosen


def choose_people(book: Book, ids: Iterable[str], known_rows: Mapping[str, Rows] | None = None) -> Chosen:
    """All that there is of some people, whether they are there or not.

    Args:
        ids: of the people.
        known_rows: rows that they have in another copy: after a split they may be somebody else's here.
    """
    chosen = Chosen()
    everyone = dict.fromkeys(one for id in ids for one in book.log.merged_into(id))
    for id in everyone:
        own: Rows = defaultdict(dict)
        for table, column in _TIMES.items():
            own[table].update(book.database.rows(f"SELECT id, {column} FROM {table} WHERE identity = ?", id))
            for number, time_s in (known_rows or {}).get(id, {}).get(table, {}).items():
                query = f"SELECT identity FROM {table} WHERE id = ? AND {column} = ?"
                for (identity,) in book.database.rows(query, number, time_s):
                    own[table][number] = time_s
                    chosen.partly.append(identity)
            chosen.rows[table].update(own[table])
        chosen.people[id] = own
    chosen.partly = sorted(set(chosen.partly) - set(chosen.people))
    return chosen


def remove(book: Book, chosen: Chosen, action: Action = "forget") -> Counter[str]:
    """Delete what was chosen, within the transaction in which it was; rows by table.

    `log` counts the entries whose details were emptied.
    """
    counts = Counter[str]()
    if chosen.selection is not None and any(chosen.rows.values()):
        _tell_selection(book, chosen.selection, action)
    for table, rows in chosen.rows.items():
        book.database.run_many(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in rows])
        counts[table] += len(rows)
    for id, own in chosen.people.items():
        counts["identity"] += book.database.run("DELETE FROM identity WHERE id = ?", id)
        counts["log"] += book.log.scrub(id)
        # Sightings are not noted: there may be many, and none of them is ever given to a person by a split.
        book.log.append(action, id, rows={table: own.get(table, {}) for table in ("prototype", "clip")})
    for id in chosen.partly:
        book.log.append(action, id)
    return counts


def foreseen(book: Book, selection: Selection) -> tuple[Counter[str], list[str]]:
    """What `erase` would delete now: rows by table, and the names of those whom they are about.

    Raises:
        GalleryError: there is no such person.
    """
    chosen = choose(book, selection)
    about = {*chosen.people, *chosen.partly}
    names = [one.name for one in book.identities() if one.id in about]
    return Counter({table: len(rows) for table, rows in chosen.rows.items()}), names


def erase(book: Book, selection: Selection, action: Action = "forget") -> Counter[str]:
    """Delete what a selection takes, within a transaction of the caller's; rows by table.

    Raises:
        GalleryError: there is no such person.
    """
    return remove(book, choose(book, selection), action)


def expire(book: Book, *, candidates_s: float, unknowns_s: float, keep_s: float | None) -> Counter[str]:
    """Erase unknown people who were not seen for long, and all that runs collected before `keep_s`.

    Args:
        candidates_s, unknowns_s: seconds since the last sighting of either kind.
        keep_s: seconds that anything collected is kept; None: no limit.

    Returns:
        Erased rows by table.
    """
    now_s = time.time()
    limits = {"candidate": now_s - candidates_s, "unknown": now_s - unknowns_s}
    old = [
        one.id
        for one in book.identities()
        if one.kind in limits and max(one.added_s, one.seen_s or 0.0) < limits[one.kind]
    ]
    counts = remove(book, choose_people(book, old), "expire")
    # One entry a sighting. Those of people who are there stay: a box that was away for long learns by them.
    stale = (
        "DELETE FROM log WHERE action IN ('meet', 'promote') AND time_s < ? "
        "AND identity NOT IN (SELECT id FROM identity)"
    )
    book.database.run(stale, min(limits.values()))
    if keep_s is None:
        return counts
    return counts + erase(book, Selection(until_s=now_s - keep_s, collected=True), "expire")


def forgotten(book: Book) -> Forgotten:
    """What the log tells of all erasures."""
    found = Forgotten()
    query = "SELECT identity, time_s, detail FROM log WHERE action IN ('forget', 'expire') ORDER BY seq"
    for identity, time_s, text in book.database.rows(query):
        detail = json.loads(text)
        if identity is None:
            until_s = time_s if detail["until_s"] is None else min(time_s, detail["until_s"])
            found.selections.append(
                Selection(None, detail["camera"], detail["since_s"], until_s, detail["collected"])
            )
        elif "rows" in detail:  # else the person stayed
            rows = detail["rows"].items()
            found.people[identity] = {t: {int(id): at_s for id, at_s in own.items()} for t, own in rows}
    return found


def forget_again(book: Book, earlier: Forgotten) -> list[str]:
    """Erase what was erased before, after a backup brought it back; ids of people who were back.

    The log tells of all of it again, so that the next restore knows too.
    """
    back = sorted(id for id in earlier.people if book.identity(id) is not None)
    chosen = choose_people(book, earlier.people, earlier.people)
    for id, rows in earlier.people.items():
        for table, own in rows.items():
            chosen.people[id][table].update(own)
    remove(book, chosen)
    for selection in earlier.selections:
        erase(book, selection)
    return back


def _tell_selection(book: Book, selection: Selection, action: Action) -> None:
    until_s = None if selection.until_s == float("inf") else selection.until_s  # JSON has no infinity
    book.log.append(
        action, camera=selection.camera, since_s=selection.since_s, until_s=until_s,
        collected=selection.collected,
    )  # fmt: skip


def _where(selection: Selection, table: str, time_column: str) -> tuple[str, list[object]]:
    conditions, values = ["camera IS NOT NULL"], list[object]()
    if selection.camera is not None:
        conditions, values = ["camera = ?"], [selection.camera]
    conditions.append(f"{time_column} >= ?")
    values.append(selection.since_s)
    if selection.until_s != float("inf"):
        conditions.append(f"{time_column} <= ?")
        values.append(selection.until_s)
    if selection.collected and table == "prototype":
        conditions.append("origin <> 'enrolled'")
    if selection.collected and table == "clip":
        conditions.append(
            "id NOT IN (SELECT clip FROM prototype WHERE clip IS NOT NULL AND origin = 'enrolled')"
        )
    return " AND ".join(conditions), values
