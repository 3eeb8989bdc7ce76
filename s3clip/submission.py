"""The CSV file of the VReID-XFD challenge: every query's full ranking (method.md 8.2)."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from s3clip.datasets import Tracklet
from s3clip.evaluate import RankedProtocol
from s3clip_runtime.errors import DataError

COLUMNS = ("row_id", "case", "query_tracklet", "ranked_gallery_tracklets")

CASES = {"aerial_to_ground": 1, "ground_to_aerial": 2, "aerial_to_aerial": 3}
"""Case numbers of the protocols; others are not in the file."""


def write_submission(path: Path, protocols: Iterable[RankedProtocol]) -> int:
    """Write the rankings of the challenge's cases, in the order of their numbers, row by row.

    A ranking holds the whole gallery, also the query's own camera, as the challenge has no camera rule.
    `row_id` counts from 0 over all cases.

    Returns:
        Number of rows.

    Raises:
        DataError: no protocol is one of the cases, or two tracklets of one side share a name.
    """
    cases = sorted(
        (one for one in protocols if one.protocol.name in CASES), key=lambda one: CASES[one.protocol.name]
    )
    if not cases:
        raise DataError(
            f"{path.name} needs one of the protocols {', '.join(CASES)}; the test split has none of them, so "
            "evaluate without --csv"
        )
    part = path.with_name(path.name + ".part")
    rows = 0
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in cases:
            for query, ranking in _rankings(one):
                writer.writerow((rows, CASES[one.protocol.name], query, " ".join(ranking)))
                rows += 1
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return rows


def submission_name(tracklet: Tracklet) -> str:
    """Such as 0024_5453: the identity with four digits and the last part of the tracklet's name."""
    return f"{tracklet.identity:04d}_{tracklet.name.rpartition('/')[2]}"


def _rankings(one: RankedProtocol) -> Iterator[tuple[str, list[str]]]:
    """Query and gallery names, nearest first; queries by identity, then by name."""
    queries = one.protocol.query
    names = _names(queries, f"{one.protocol.name} queries")
    entries = _names(one.protocol.gallery, f"{one.protocol.name} gallery")
    order = sorted(range(len(queries)), key=lambda i: (queries[i].identity, names[i]))
    for first, block in one.distances(order):
        for position, row in enumerate(block, first):
            yield names[order[position]], [entries[g] for g in np.argsort(row, kind="stable")]


def _names(tracklets: Sequence[Tracklet], side: str) -> list[str]:
    names = [submission_name(tracklet) for tracklet in tracklets]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{side}: the name {name} stands for {times} tracklets; rename their folders")
    return names
