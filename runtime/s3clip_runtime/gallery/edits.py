"""What people and the run change in a gallery, each with what undoing it needs. Within a transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Action, Identity, Kind, LogEntry, Space
from s3clip_runtime.gallery.search.bound import bounded
from s3clip_runtime.gallery.storage.book import Book, Views

MAX_PROTOTYPES = 32
"""Prototypes of one identity in one space. Bounds memory and search; 32 views cover poses and platforms."""

MAX_OF_CAMERA = 8
"""Of these from one camera: a person who passes the gate daily must not push out the few views from above."""

_RANK: dict[Kind, int] = {"candidate": 0, "unknown": 1, "known": 2}


class Edits:
    """Changes of identities. The caller holds a transaction of the book's database.

    Args:
        book: what they are written to.

    Raises (all methods):
        GalleryError: a name is not there, is taken, or does not do; the message says which.
    """

    def __init__(self, book: Book) -> None:
        self.book = book

    def find(self, name: str) -> Identity:
        """The identity of this name."""
        found = self.book.named(name)
        if found is None:
            raise GalleryError(f"identity {name!r} is not in the gallery; see s3clip-gallery list")
        return found

    def enrol(self, name: str, views: Sequence[Views]) -> Identity:
        """Add prototypes to a person, who is made if new. Above the bounds, those stay that cover most."""
        check_name(name)
        found = self.book.named(name)
        identity = found or self.book.add_identity(name, "known")
        self.add_views(identity, views, "enrol", made=found is None)
        return identity

    def add_views(self, identity: Identity, views: Sequence[Views], action: Action, *, made: bool) -> None:
        """Add prototypes within the bounds and tell the log. Only enrolments push out what was enrolled."""
        added = [id for one in views for id in self.book.add_prototypes(identity.id, one)]
        dropped = self._bound(identity, keep_enrolled=action != "enrol")
        self.book.log.append(action, identity.id, made=made, added=added, dropped=dropped)

    def name(self, old: str, new: str) -> Identity:
        """From now on `old`, an unknown or a known person, is `new`; if `new` is there, both become one."""
        check_name(new)
        identity = self.find(old)
        target = self.book.named(new)
        if target is not None and target.id != identity.id:
            return self.merge(new, old)
        changed = replace(identity, name=new, kind="known")
        self.book.put_identity(changed)
        taken = self.book.adopt(identity.id)
        self.book.log.append("name", identity.id, before=identity.name, kind=identity.kind, adopted=taken)
        return changed

    def note(self, name: str, text: str) -> None:
        """Write a note about a person, in place of an older one."""
        identity = self.find(name)
        self.book.put_identity(replace(identity, note=text))
        self.book.log.append("note", identity.id, before=identity.note)

    def merge(self, into: str, other: str) -> Identity:
        """Two identities are one person: `other` becomes part of `into`."""
        kept, gone = self.find(into), self.find(other)
        if kept.id == gone.id:
            raise GalleryError(f"identity {into!r} cannot be merged with itself; name another one")
        if _RANK[gone.kind] > _RANK[kept.kind]:
            raise GalleryError(
                f"{into!r} is {kept.kind} and {other!r} is {gone.kind}; merge the other way round"
            )
        prototypes = [one.id for one in self.book.prototypes(gone.id)]
        self.book.move_prototypes(prototypes, kept.id)
        sightings = self.book.move_sightings(gone.id, kept.id)
        adopted = self.book.adopt(kept.id) if kept.kind == "known" else []
        self.book.remove_identity(gone.id)
        seen_s = max((one for one in (kept.seen_s, gone.seen_s) if one is not None), default=None)
        merged = replace(kept, seen_s=seen_s)
        self.book.put_identity(merged)
        dropped = self._bound(merged, keep_enrolled=False)
        self.book.log.append(
            "merge", kept.id, gone.id, absorbed=asdict(gone), prototypes=prototypes, sightings=sightings,
            adopted=adopted, seen_s=kept.seen_s, dropped=dropped,
        )  # fmt: skip
        return merged

    def split(self, name: str, prototypes: Sequence[int], new: str) -> Identity:
        """Some prototypes of `name` are of another person, `new`, who must not be there yet.

        Sightings stay with `name`: nobody knows whose they were.
        """
        check_name(new)
        identity = self.find(name)
        if self.book.named(new) is not None:
            raise GalleryError(f"identity {new!r} is there already; split into a new name, then merge")
        own = {one.id for one in self.book.prototypes(identity.id)}
        if not prototypes or not own.issuperset(prototypes) or own == set(prototypes):
            ids = ", ".join(map(str, sorted(own)))
            raise GalleryError(f"{name!r} has the prototypes {ids}; name some of these, and not all")
        made = self.book.add_identity(new, identity.kind)
        self.book.move_prototypes(prototypes, made.id)
        self.book.log.append("split", identity.id, made.id, prototypes=list(prototypes))
        return made

    def calibrate(self, space: Space, open_set: str) -> None:
        """Store the thresholds of a space."""
        self.book.set_open_set(space.hash, open_set)
        self.book.log.append("calibrate")

    def undo(self, seq: int | None = None) -> LogEntry:
        """Take one change back: entry `seq` of the log, or the newest that a person made; returns it.

        Prototypes that were dropped by a bound do not come back.
        """
        entry = self._undoable(seq)
        undoing[entry.action](self, entry)
        by = self.book.log.append("undo", entry.identity, entry.other)
        self.book.log.mark_undone(entry.seq, by)
        return entry

    def _undoable(self, seq: int | None) -> LogEntry:
        if seq is None:
            # What runs do by themselves comes in between at any moment: nobody means that by the last change.
            newest = self.book.log.newest_of([action for action in undoing if action != "grow"])
            if newest is None:
                raise GalleryError("the log holds nothing that can be undone; see s3clip-gallery log")
            return newest
        entry = self.book.log.entry(seq)
        if entry is None or entry.action not in undoing or not _open(entry):
            what = (
                "is not there" if entry is None else f"({entry.action}) cannot be undone or is undone already"
            )
            raise GalleryError(f"entry {seq} of the log {what}; see s3clip-gallery log")
        return entry

    def _undo_adding(self, entry: LogEntry) -> None:
        identity = self._still_there(entry)
        own = {one.id for one in self.book.prototypes(identity.id)}
        self.book.remove_prototypes(own.intersection(_numbers(entry, "added")))
        if entry.detail["made"] and not self.book.prototypes(identity.id):
            self.book.remove_identity(identity.id)
            self.book.remove_sightings(identity.id)
            self.book.log.scrub(identity.id)  # old names and notes: nobody could ask to forget them any more

    def _undo_naming(self, entry: LogEntry) -> None:
        identity = self._still_there(entry)
        before = str(entry.detail["before"])
        if before != identity.name and self.book.named(before) is not None:
            raise GalleryError(f"the name {before!r} is taken since; rename that person first")
        self.book.put_identity(replace(identity, name=before, kind=cast(Kind, entry.detail["kind"])))
        self.book.disown(_numbers(entry, "adopted"))

    def _undo_note(self, entry: LogEntry) -> None:
        self.book.put_identity(replace(self._still_there(entry), note=str(entry.detail["before"])))

    def _undo_merge(self, entry: LogEntry) -> None:
        kept = self._still_there(entry)
        gone = Identity(**cast(dict[str, Any], entry.detail["absorbed"]))
        if self.book.named(gone.name) is not None:
            raise GalleryError(f"the name {gone.name!r} is taken since; rename that person first")
        self.book.put_identity(gone)
        own = {one.id for one in self.book.prototypes(kept.id)}
        self.book.move_prototypes(own.intersection(_numbers(entry, "prototypes")), gone.id)
        self.book.move_sightings_back(_numbers(entry, "sightings"), gone.id)
        self.book.disown(_numbers(entry, "adopted"))
        self.book.put_identity(replace(kept, seen_s=cast("float | None", entry.detail["seen_s"])))

    def _undo_split(self, entry: LogEntry) -> None:
        identity = self._still_there(entry)
        made = None if entry.other is None else self.book.identity(entry.other)
        if made is None:
            raise GalleryError(f"entry {entry.seq}: the person it made is not there any more; merge by hand")
        own = {one.id for one in self.book.prototypes(made.id)}
        self.book.move_prototypes(own.intersection(_numbers(entry, "prototypes")), identity.id)
        if not self.book.prototypes(made.id):
            self.book.move_sightings(made.id, identity.id)
            self.book.remove_identity(made.id)

    def _still_there(self, entry: LogEntry) -> Identity:
        found = None if entry.identity is None else self.book.identity(entry.identity)
        if found is None:
            raise GalleryError(
                f"entry {entry.seq}: its person was merged or forgotten since; undo the merge first"
            )
        return found

    def _bound(self, identity: Identity, *, keep_enrolled: bool) -> int:
        """Drop prototypes beyond the bounds; how many."""
        own = self.book.prototypes(identity.id)
        most = max(Counter((one.space, one.platform, one.camera) for one in own).values(), default=0)
        if len(own) <= MAX_PROTOTYPES and most <= MAX_OF_CAMERA:
            return 0  # the numbers are not needed
        dropped = 0
        for space in self.book.spaces():
            prototypes, vectors = self.book.vectors(identity.id, space)
            groups = [None if one.camera is None else (one.platform, one.camera) for one in prototypes]
            fixed = [i for i, one in enumerate(prototypes) if keep_enrolled and one.origin == "enrolled"]
            kept = set(bounded(vectors, groups, fixed, per_group=MAX_OF_CAMERA, total=MAX_PROTOTYPES))
            gone = [one.id for i, one in enumerate(prototypes) if i not in kept]
            self.book.remove_prototypes(gone)
            dropped += len(gone)
        return dropped


undoing: dict[Action, Callable[[Edits, LogEntry], None]] = {
    "enrol": Edits._undo_adding,
    "grow": Edits._undo_adding,
    "name": Edits._undo_naming,
    "note": Edits._undo_note,
    "merge": Edits._undo_merge,
    "split": Edits._undo_split,
}


def check_name(name: str) -> None:
    """A name must be printable and without surrounding blanks.

    Raises:
        GalleryError: it is not.
    """
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise GalleryError(
            f"identity {name!r} must be a printable name without surrounding blanks; choose another"
        )


def _open(entry: LogEntry) -> bool:
    return entry.undone is None and bool(entry.detail)


def _numbers(entry: LogEntry, key: str) -> list[int]:
    return cast(list[int], entry.detail[key])
