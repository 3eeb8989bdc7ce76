"""The gallery's speed and memory beside numpy, faiss and usearch.

    python -m benchmarks.gallery -o docs/results-gallery.json --page docs/results-gallery.md

Vectors are random with planted persons; times and memory do not depend on how good they are. Each contender
has a process of its own and is asked in turn; ratios are those within a round, with median and quartiles.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime
from tqdm import tqdm

from benchmarks.gallery_rivals import (
    DIM,
    EACH,
    OURS,
    PRODUCT,
    RIVALS,
    ROWS,
    TOP,
    Answer,
    RivalApart,
    made_queries,
)
from s3clip_runtime.bench.load import LoadMeter
from s3clip_runtime.bench.machine import fingerprint
from s3clip_runtime.bench.records import Machine, Spread
from s3clip_runtime.bench.report_file import check_writable
from s3clip_runtime.bench.rounds import REST_S, order
from s3clip_runtime.cli.errors import Command, needs_extra
from s3clip_runtime.inference.records import Record, write_record

BATCHES = (1, 32)


class SearchRow(Record):
    """One contender with one gallery and one size of batch.

    Attributes:
        ms: wall time of a batch.
        against_product: its time over the one of the product in the same round.
        recall: share of the `TOP` persons of ours that it found; None where it finds nobody.
        bytes_per_vector: memory that the process has more since the vectors came, over their number.
        moment_bytes_per_vector: more for a moment during a search of 32.
    """

    contender: str
    prototypes: int
    batch: int
    ms: Spread
    against_product: Spread
    recall: float | None
    bytes_per_vector: float
    moment_bytes_per_vector: float


class InMemory(Record):
    """Exact search in memory. `foreign_load`: largest share of the cores that other processes took."""

    threads: int
    rounds: int
    foreign_load: float
    rows: tuple[SearchRow, ...]


class GalleryReport(Record):
    """What was measured; each part may have been measured alone."""

    created: AwareDatetime
    machine: Machine
    in_memory: InMemory


@click.command(cls=Command)
@click.option("--sizes", default="1000,10000,100000", show_default=True, help="Prototypes.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("docs/results-gallery.json"))
@click.option("--page", type=click.Path(path_type=Path), help="Also write docs/results-gallery.md.")
def main(sizes: str, rounds: int, threads: int, out: Path, page: Path | None) -> None:
    """Measure, and write the report."""
    check_writable(out)
    with needs_extra("dev"):
        importlib.import_module("faiss")
        importlib.import_module("usearch.index")
    found = measure([int(word) for word in sizes.split(",")], rounds, threads)
    report = GalleryReport(created=datetime.now(UTC), machine=fingerprint(), in_memory=found)
    write_record(out, report)
    text = page_of(report)
    if page is not None:
        page.write_text(text, "utf-8")
    print(text)


def measure(sizes: Sequence[int], rounds: int, threads: int) -> InMemory:
    """All contenders with galleries of these sizes, a multiple of `EACH` and at least `ROWS`."""
    rows: list[SearchRow] = []
    foreign = 0.0
    for size in tqdm(sizes, desc="sizes", unit="gallery"):
        with ExitStack() as opened:
            field = {name: opened.enter_context(RivalApart(name, size, threads)) for name in RIVALS}
            for batch in BATCHES:
                meter = LoadMeter()
                answers = _interleaved(field, made_queries(size, batch), rounds)
                foreign = max(foreign, meter.read().foreign)
                rows += [_row(name, size, batch, answers, field[name]) for name in field]
    return InMemory(threads=threads, rounds=rounds, foreign_load=foreign, rows=tuple(rows))


def _interleaved(
    field: Mapping[str, RivalApart], queries: NDArray[np.float32], rounds: int
) -> dict[str, list[Answer]]:
    answers: dict[str, list[Answer]] = {name: [] for name in field}
    for rival in field.values():
        rival.search(queries)
    for number in range(rounds):
        for name in order(list(field), number):
            time.sleep(REST_S)
            answers[name].append(field[name].search(queries))
    return answers


def _row(
    name: str, size: int, batch: int, answers: Mapping[str, Sequence[Answer]], rival: RivalApart
) -> SearchRow:
    seconds, product = (np.array([a.seconds for a in answers[one]]) for one in (name, PRODUCT))
    return SearchRow(
        contender=name,
        prototypes=size,
        batch=batch,
        ms=_spread(1e3 * seconds),
        against_product=_spread(seconds / product),
        recall=_recall(answers[name][0].people, answers[OURS][0].people),
        bytes_per_vector=rival.memory.held / size,
        moment_bytes_per_vector=rival.memory.moment / size,
    )


def _spread(values: NDArray[np.float64]) -> Spread:
    low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return Spread(median=median, low=low, high=high)


def _recall(found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]]) -> float | None:
    if not found:
        return None
    hits = [len(set(one) & set(all_)) / len(all_) for one, all_ in zip(found, exact, strict=True)]
    return float(np.mean(hits))


def page_of(report: GalleryReport) -> str:
    """The page docs/results-gallery.md."""
    machine = report.machine
    head = f"""# Results: the gallery

Written by `python -m benchmarks.gallery --page docs/results-gallery.md`; do not edit. Measured
{report.created:%Y-%m-%d} on {machine.cpu}, {machine.cores} cores, {machine.system}, numpy
{machine.versions.get("numpy", "unknown")}. Vectors are random with planted persons: nothing here says how
accurate recognition is.
"""
    return "\n".join([head, *_memory_part(report.in_memory)])


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


if __name__ == "__main__":
    main()
