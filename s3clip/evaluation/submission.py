"""The CSV file of the VReID-XFD challenge: every query's full ranking (method.md 8.2)."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from s3clip.datasets import Protocol, Tracklet
from s3clip.evaluation.evaluate import RankedProtocol
from s3clip_runtime.errors import DataError

COLUMNS = ("row_id", "case", "query_tracklet", "ranked_gallery_tracklets")

CASES = {"aerial_to_ground": 1, "ground_to_aerial": 2, "aerial_to_aerial": 3}
"""Case numbers of the protocols; others are not in the file."""


class SubmissionWriter:
    """Writes the file row by row; it appears under its name when the `with` block ends without an error.

    `row_id` counts from 0 over all protocols.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._rows = 0

    def __enter__(self) -> SubmissionWriter:
        """Begin the file."""
        self._file = self._part.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the whole file in its place, or remove a part of one."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if error is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()

    def add(self, one: RankedProtocol) -> None:
        """Append a case's rankings. They hold the whole gallery, for the challenge has no camera rule.

        Raises:
            DataError: two tracklets of one side share a name.
        """
        for query, ranking in _rankings(one):
            row = (self._rows, CASES[one.protocol.name], query, " ".join(ranking))
            self._writer.writerow(row)
            self._rows += 1


def challenge_cases(protocols: Iterable[Protocol]) -> list[str]:
    """Names of those protocols that are cases of the challenge.

    Raises:
        DataError: there are none.
    """
    names = [protocol.name for protocol in protocols if protocol.name in CASES]
    if not names:
        raise DataError(
            f"a submission needs one of the protocols {', '.join(CASES)}, and the test split has none; "
            "evaluate without --csv"
        )
    return names


def submission_name(tracklet: Tracklet) -> str:
    """Such as 0024_5453: the identity with four digits and the last part of the tracklet's name."""
    return f"{tracklet.identity:04d}_{tracklet.name.rpartition('/')[2]}"


def _rankings(one: RankedProtocol) -> Iterator[tuple[str, list[str]]]:
    """Query and gallery names, nearest first; queries by identity, then by name."""
    queries, entries = _names(one)
    order = sorted(range(len(queries)), key=lambda i: (one.protocol.query[i].identity, queries[i]))
    for first, block in one.distances(order):
        for position, row in enumerate(block, first):
            yield queries[order[position]], [entries[g] for g in np.argsort(row, kind="stable")]


def _names(one: RankedProtocol) -> tuple[list[str], list[str]]:
    """Names of the queries and of the gallery, each unique on its side."""
    sides = (one.protocol.query, one.protocol.gallery)
    queries, entries = ([submission_name(tracklet) for tracklet in side] for side in sides)
    for names in (queries, entries):
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise DataError(
                f"protocol {one.protocol.name}: the name {name} stands for {times} tracklets of one side; "
                "rename their folders"
            )
    return queries, entries
