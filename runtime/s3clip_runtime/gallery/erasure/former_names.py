"""The names that a person had: files that were written under them are still about the person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from s3clip_runtime.gallery.records import Identity, LogEntry


def all_names(identity: Identity, log: Sequence[LogEntry]) -> set[str]:
    """The person's name, those before it was named, and those of everybody who was merged into it.

    Names that were taken back by undo are not known any more.

    Args:
        log: of the whole gallery, oldest first; before the person is forgotten.
    """
    ids, names = {identity.id}, {identity.name}
    # The newest first: a merge stands after what the person who was merged had been called before.
    for entry in reversed(log):
        if entry.undone is not None or entry.identity not in ids:
            continue
        if entry.action == "name":
            names.add(str(entry.detail["before"]))
        elif entry.action == "merge" and entry.other is not None:
            ids.add(entry.other)
            names.add(str(cast(dict[str, object], entry.detail["absorbed"])["name"]))
    return names
