"""Two evaluations of the same queries: paired differences with intervals and p-values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from s3clip.datasets import Tracklet
from s3clip.evaluation.figures import bucket_name, height_buckets, heights_of
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.ranking import (
    PairedDifference,
    RankingResult,
    paired_bootstrap,
    sign_flip_p_value,
)

EVALUATION = "evaluation.json"
QUERIES = "queries.npz"
FOLDER = "evaluation"
"""Where a run's evaluation is, below the run."""


@dataclass(frozen=True)
class QueryValues:
    """Values of each query of a protocol, which a paired comparison needs.

    Attributes:
        name: (Q,) names of the tracklets.
        valid: bool (Q,). first_hit_rank: int64 (Q,). ap, ap_xfd: float64 (Q,). See `RankingResult`.
        height: float64 (Q,), median native frame height in pixels.
    """

    name: NDArray[np.str_]
    valid: NDArray[np.bool_]
    first_hit_rank: NDArray[np.int64]
    ap: NDArray[np.float64]
    ap_xfd: NDArray[np.float64]
    height: NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What `s3clip-train evaluate` wrote: evaluation.json, and the queries' values by protocol."""

    folder: Path
    report: dict[str, Any]
    queries: dict[str, QueryValues]


class Difference(NamedTuple):
    """First minus second evaluation over the same queries, as a share; p is two-sided."""

    interval: PairedDifference
    p: float


class Comparison(NamedTuple):
    """One row: a protocol's valid queries, or those of one height bucket."""

    protocol: str
    bucket: str
    queries: int
    rank1: Difference
    map: Difference


def query_values(queries: Sequence[Tracklet], result: RankingResult) -> QueryValues:
    """The values of a protocol's queries."""
    return QueryValues(
        name=np.array([tracklet.name for tracklet in queries]),
        valid=result.valid,
        first_hit_rank=result.first_hit_rank,
        ap=result.ap,
        ap_xfd=result.ap_xfd,
        height=heights_of(queries),
    )


def write_queries(path: Path, queries: Mapping[str, QueryValues]) -> None:
    """Arrays PROTOCOL/FIELD in one .npz file, atomically; no pickle."""
    arrays = {f"{name}/{key}": getattr(one, key) for name, one in queries.items() for key in _FIELDS}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


_FIELDS = tuple(QueryValues.__dataclass_fields__)


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation of a run, or one that was written elsewhere with --out.

    Raises:
        ConfigError: there is none, or its files do not belong together.
    """
    folder = path if (path / EVALUATION).exists() else path / FOLDER
    for name in (EVALUATION, QUERIES):
        if not (folder / name).exists():
            raise ConfigError(f"{path}: no {name} here; make it with s3clip-train evaluate {path}")
    report = cast(dict[str, Any], json.loads((folder / EVALUATION).read_text("utf-8")))
    with np.load(folder / QUERIES, allow_pickle=False) as file:
        wanted = [f"{name}/{key}" for name in report["protocols"] for key in _FIELDS]
        if sorted(wanted) != sorted(file.files):
            raise ConfigError(f"{folder}: {QUERIES} is not of its {EVALUATION}; evaluate again")
        queries = {
            name: QueryValues(**{key: file[f"{name}/{key}"] for key in _FIELDS})
            for name in report["protocols"]
        }
    return Evaluation(folder, report, queries)


def compare(a: Evaluation, b: Evaluation) -> list[Comparison]:
    """A row for every protocol that both have, and one for each of its height buckets with a query.

    Raises:
        ConfigError: no protocol is common, or the queries or the gallery of one differ.
    """
    common = [name for name in a.queries if name in b.queries]
    if not common:
        raise ConfigError(
            f"{a.folder} and {b.folder} have no protocol in common: {', '.join(a.queries)} against "
            f"{', '.join(b.queries)}; evaluate both on one data set"
        )
    rows = []
    for name in common:
        _check_same(name, a, b)
        rows += _compare_protocol(name, a.queries[name], b.queries[name])
    return rows


def _check_same(name: str, a: Evaluation, b: Evaluation) -> None:
    mine, theirs = a.queries[name], b.queries[name]
    if not np.array_equal(mine.name, theirs.name):
        different = set(mine.name.tolist()) ^ set(theirs.name.tolist())
        raise ConfigError(
            f"protocol {name}: a paired comparison needs the same queries, {a.folder} has {len(mine.name)}, "
            f"{b.folder} has {len(theirs.name)}, and {len(different)} are in one only; evaluate both on one "
            "data set with --data"
        )
    galleries = [one.report["gallery_sha256"][name] for one in (a, b)]
    if galleries[0] != galleries[1] or not np.array_equal(mine.valid, theirs.valid):
        raise ConfigError(
            f"protocol {name}: {a.folder} and {b.folder} rank different galleries (names, identities or "
            "cameras differ), so their figures cannot be compared; evaluate both on one data set with --data"
        )


def describe(evaluation: Evaluation) -> str:
    """Such as "runs/a/evaluation: run a, clips one, cosine, HR by tracklet"."""
    settings = evaluation.report["settings"]
    ranking = "cosine" if settings["rerank"] is None else "re-ranked"
    run = evaluation.report["run"]
    return (
        f"{evaluation.folder}: run {run}, clips {settings['clips']}, {ranking}, HR by {settings['hr_rule']}"
    )


def _compare_protocol(name: str, a: QueryValues, b: QueryValues) -> list[Comparison]:
    buckets = [("all", a.valid)]
    buckets += [(bucket_name(low, high), a.valid & inside) for low, high, inside in height_buckets(a.height)]
    return [
        Comparison(
            name,
            bucket,
            int(chosen.sum()),
            _difference(a.first_hit_rank[chosen] == 1, b.first_hit_rank[chosen] == 1),
            _difference(a.ap[chosen], b.ap[chosen]),
        )
        for bucket, chosen in buckets
        if chosen.any()
    ]


def _difference(
    a: NDArray[np.float64] | NDArray[np.bool_], b: NDArray[np.float64] | NDArray[np.bool_]
) -> Difference:
    mine, theirs = a.astype(np.float64), b.astype(np.float64)
    return Difference(paired_bootstrap(mine, theirs), sign_flip_p_value(mine, theirs))


def comparison_table(rows: Sequence[Comparison]) -> str:
    """A plain table of differences in percentage points, 95 % intervals in brackets, with p-values."""
    wide = max(20, *(len(row.protocol) + 2 for row in rows))
    head = f"{'Rank-1':>24}{'p':>8}{'mAP':>24}{'p':>8}"
    lines = [f"{'protocol':<{wide}}{'query height':<18}{'queries':>8}{head}"]
    for row in rows:
        cells = "".join(f"{_cell(one.interval):>24}{one.p:>8.4f}" for one in (row.rank1, row.map))
        lines.append(f"{row.protocol:<{wide}}{row.bucket:<18}{row.queries:>8}{cells}")
    lines.append(
        "Percentage points, first minus second; 95 % bootstrap intervals and sign-flip p-values over queries."
    )
    lines.append(f"The p-values are not corrected for there being {2 * len(rows)} of them.")
    return "\n".join(lines)


def _cell(difference: PairedDifference) -> str:
    mean, low, high = (100 * part for part in difference)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
