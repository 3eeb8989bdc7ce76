"""The page docs/results-gallery.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.gallery.records import GalleryReport, InMemory, OnServer, SearchRow
from benchmarks.gallery.rivals import DIM, EACH, ROWS, TOP
from s3clip_runtime.bench.records import Spread


def page_of(report: GalleryReport) -> str:
    """The page docs/results-gallery.md."""
    machine = report.machine
    head = f"""# Results: the gallery

Written by `python -m benchmarks.gallery`; do not edit. Measured
{report.created:%Y-%m-%d} on {machine.cpu}, {machine.cores} cores, {machine.system}, numpy
{machine.versions.get("numpy", "unknown")}. Vectors are random with planted persons: nothing here says how
accurate recognition is.
"""
    parts = [head]
    if report.in_memory is not None:
        parts += _memory_part(report.in_memory)
    if report.on_server is not None:
        parts += _server_part(report.on_server)
    return "\n".join(parts)


def _memory_part(found: InMemory) -> list[str]:
    columns = (
        "prototypes", "batch", "contender", "ms (quartiles)", "times the product (quartiles)",
        f"recall@{TOP}", "bytes a vector", "for a moment",
    )  # fmt: skip
    text = f"""## In memory

Exact search of the {TOP} best persons, {EACH} prototypes each, {DIM} numbers a vector ({2 * DIM} bytes in
float16). {found.threads} threads and a process of its own for everybody, {found.rounds} interleaved rounds;
other processes took up to {found.foreign_load:.0%} of the cores, from which those suffer most whose threads
wait for each other often. Ratios are within a round, over one matrix product in float32 that finds nobody.
Ours gives persons. The others give {ROWS} rows, for so many can stand in front of the tenth person; their way
from rows to persons is not timed. Recall is against ours, whose answer is exact for the stored numbers.
Bytes are those that the process has more, "for a moment" during a search of 32: in small galleries these
are buffers that do not grow with it.
"""
    return [text, _table(columns, [_cells(row) for row in found.rows]), ""]


def _server_part(found: OnServer) -> list[str]:
    exact = _growth([(row.prototypes, row.exact.median) for row in found.sizes])
    nearest = _growth([(row.prototypes, row.indexed.median) for row in found.sizes])
    text = f"""## On a PostgreSQL server

{found.version} with pgvector on the same cores, shared_buffers {found.buffers}, all else as it comes. Ten
prototypes each, {found.dim} numbers. HNSW on halfvec, m {found.m}, ef_construction {found.ef_construction};
`nearest` looks at {found.ef_search} candidates and scores them exactly. {found.queries} single queries, new
views of people who are there; medians and quartiles. People differ in {found.traits} traits and two views of
one have a cosine of some 0.65; of independent random vectors no index finds the nearest. "read" is all
vectors from the server into a box's memory. Recall is of the ten nearest people, strangers but for the first.
"""
    growth = f"""
Time grows as n^{exact:.2f} for exact search (1 is linear) and n^{nearest:.2f} by the index. On paper an HNSW
search visits ef_search + m log n vectors, 2.6 KB each, so from here on it grows with log n as long as the
index lies in the server's memory; once it does not, each visit is a random read. Building grows as n log n.

By the index alone, with ef_search candidates:
"""
    sizes = _table(
        ("prototypes", "read s", "build s", "table MB", "index MB", "exact ms", "nearest ms", "recall@10"),
        [
            (
                f"{row.prototypes:,}", f"{row.read_s:.1f}", f"{row.build_s:.0f}", f"{row.table_mb:,.0f}",
                f"{row.index_mb:,.0f}", _told(row.exact), _told(row.indexed), f"{row.recall:.3f}",
            )
            for row in found.sizes
        ],
    )  # fmt: skip
    index = _table(
        ("prototypes", "ef_search", "ms", "recall@10 of prototypes", "of people", "own person first"),
        [
            (
                f"{row.prototypes:,}", str(row.ef), _told(row.ms), f"{row.recall:.3f}",
                f"{row.identities:.3f}", f"{row.person:.3f}",
            )
            for row in found.index
        ],
    )  # fmt: skip
    return [text, sizes, growth, index, ""]


def _cells(row: SearchRow) -> tuple[str, ...]:
    return (
        f"{row.prototypes:,}", str(row.batch), row.contender, _told(row.ms), _told(row.against_product),
        "-" if row.recall is None else f"{row.recall:.3f}", f"{row.bytes_per_vector:,.0f}",
        f"{row.moment_bytes_per_vector:,.0f}",
    )  # fmt: skip


def _told(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _growth(points: Sequence[tuple[int, float]]) -> float:
    """Slope of log(time) over log(n)."""
    logs = np.array([(math.log(n), math.log(value)) for n, value in points])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
