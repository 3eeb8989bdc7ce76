"""Seconds and memory of the ranking metrics at scale, beside the obvious version that sorts every row.

    OMP_NUM_THREADS=2 python -m benchmarks.ranking --queries 10000 --gallery 100000

The embeddings are random with planted identities; the time does not depend on how good they are. The obvious
version runs on some queries only and is extrapolated, and the table says so.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.inference.ranking import (
    RankingResult,
    bootstrap_interval,
    cosine_distance,
    evaluate_embeddings,
    sign_flip_p_value,
)

NOISE = 4.0
"""Deviation of a tracklet from its person, in deviations of the persons: hits at all ranks."""


@dataclass(frozen=True)
class Side:
    """Embeddings float32 (N, D), ids (N,) and cameras (N,)."""

    vectors: NDArray[np.float32]
    ids: NDArray[np.int64]
    cams: NDArray[np.int64]


def make_side(count: int, people: NDArray[np.float32], rng: np.random.Generator) -> Side:
    """Noisy views of random people by three cameras."""
    ids = rng.integers(0, len(people), count)
    vectors = people[ids]
    for row in vectors:  # row by row, for the noise of all would be as large again
        row += NOISE * rng.standard_normal(len(row), dtype=np.float32)
    return Side(vectors, ids, rng.integers(0, 3, count))


def sorted_ranks(query: Side, gallery: Side) -> NDArray[np.int64]:
    """First hit ranks by the obvious version: the whole matrix, and a stable sort of each row."""
    distance = cosine_distance(query.vectors, gallery.vectors)
    first = np.zeros(len(distance), dtype=np.int64)
    for i, row in enumerate(distance):
        order = np.argsort(row, kind="stable")
        hit, own = gallery.ids[order] == query.ids[i], gallery.cams[order] == query.cams[i]
        rank = np.flatnonzero(hit[~(hit & own)])
        first[i] = rank[0] + 1 if len(rank) else 0
    return first


def measure(query: Side, gallery: Side) -> tuple[RankingResult, float]:
    """The result and its seconds."""
    start = time.perf_counter()
    result = evaluate_embeddings(
        query.vectors, gallery.vectors, query.ids, gallery.ids, query.cams, gallery.cams
    )
    return result, time.perf_counter() - start


def peak_gb() -> float:
    """Largest memory of this process so far, in 10^9 bytes; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report_intervals(result: RankingResult) -> None:
    """Seconds of the statistics over all valid queries."""
    ap = result.ap[result.valid]
    start = time.perf_counter()
    bootstrap_interval(ap)
    middle = time.perf_counter()
    sign_flip_p_value(ap, ap[::-1])
    end = time.perf_counter()
    print(f"bootstrap interval of {len(ap)} queries: {middle - start:.1f} s")
    print(f"sign-flip p-value of {len(ap)} queries: {end - middle:.1f} s; peak {peak_gb():.2f} GB")


@click.command()
@click.option("--queries", default=10_000, show_default=True)
@click.option("--gallery", "entries", default=100_000, show_default=True)
@click.option("--width", default=1280, show_default=True)
@click.option("--people", default=10_000, show_default=True)
@click.option("--reference", default=200, show_default=True, help="Queries of the obvious version.")
def main(queries: int, entries: int, width: int, people: int, reference: int) -> None:
    """Measure one size in this process."""
    rng = np.random.default_rng(0)
    persons = rng.standard_normal((people, width), dtype=np.float32)
    query, gallery = make_side(queries, persons, rng), make_side(entries, persons, rng)
    print(f"{cpu_name()}; {queries} queries x {entries} gallery, {width} wide; synthetic embeddings")
    print(f"inputs: {(query.vectors.nbytes + gallery.vectors.nbytes) / 1e9:.2f} GB")
    before = peak_gb()
    result, seconds = measure(query, gallery)
    print(f"evaluate_embeddings: {seconds:.1f} s, peak {peak_gb():.2f} GB (before it {before:.2f} GB)")
    report_intervals(result)
    few = Side(query.vectors[:reference], query.ids[:reference], query.cams[:reference])
    start = time.perf_counter()
    ranks = sorted_ranks(few, gallery)
    slow = (time.perf_counter() - start) * queries / len(few.ids)
    same = np.mean(ranks == result.first_hit_rank[: len(few.ids)])
    print(
        f"sorting every row: {slow:.0f} s, extrapolated from {len(few.ids)} queries (first hit ranks equal "
        f"in {100 * same:.1f} %); its matrix alone: {4 * queries * entries / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    main()
