"""Exact search in memory beside one matrix product, numpy, faiss and usearch.

Vectors are random with planted persons; times and memory do not depend on how good they are. Each contender
has a process of its own and is asked in turn; ratios are those within a round, with median and quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.gallery.records import InMemory, SearchRow
from benchmarks.gallery.rivals import OURS, PRODUCT, RIVALS, Answer, RivalApart, made_queries
from s3clip_runtime.bench.load import LoadMeter
from s3clip_runtime.bench.records import Spread
from s3clip_runtime.bench.rounds import REST_S, order

BATCHES = (1, 32)


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
        ms=spread(1e3 * seconds),
        against_product=spread(seconds / product),
        recall=_recall(answers[name][0].people, answers[OURS][0].people),
        bytes_per_vector=rival.memory.held / size,
        moment_bytes_per_vector=rival.memory.moment / size,
    )


def spread(values: NDArray[np.float64]) -> Spread:
    low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return Spread(median=median, low=low, high=high)


def _recall(found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]]) -> float | None:
    if not found:
        return None
    hits = [len(set(one) & set(all_)) / len(all_) for one, all_ in zip(found, exact, strict=True)]
    return float(np.mean(hits))
