"""Two-phase S3-CLIP against the bicubic baseline with the same budget, on unseen synthetic identities.

    python -m benchmarks.accuracy --out runs/accuracy            (about an hour on two cores)

Each seed trains both; both start from the same encoder and draw the same batches. Per seed the difference is
paired over queries; over seeds the mean and the spread are printed. Results are JSON beside the runs.
"""

from __future__ import annotations

import json
import platform
import threading
from pathlib import Path
from typing import TypedDict

import click
import numpy as np
from numpy.typing import NDArray

from s3clip.checkpoint import read_run
from s3clip.config import TrainConfig, load_config
from s3clip.datasets import cross_view_protocols
from s3clip.evaluate import embed_tracklets, rank_protocol
from s3clip.model import build_model
from s3clip.train import load_data, train
from s3clip.weights import load_strict
from s3clip_runtime.inference.ranking import RankingResult, paired_bootstrap

ROOT = Path(__file__).parents[1]
FIGURES = ("rank1", "rank1_bicubic", "map", "map_bicubic")
VARIANTS: dict[str, list[str]] = {"two_phase": [], "bicubic": ["sr.kind=bicubic"]}


class Row(TypedDict):
    """One protocol of one seed; a difference is mean, low, high."""

    seed: int
    protocol: str
    queries: int
    figures: dict[str, float]
    differences: dict[str, list[float]]


def rankings(run: Path) -> dict[str, RankingResult]:
    """Every protocol's ranking by the trained model of a run."""
    config, weights, _ = read_run(run)
    model = build_model(config)
    load_strict(model, weights, str(run))
    protocols = cross_view_protocols(load_data(config.data, "test"))
    tracklets = {t.name: t for p in protocols for t in (*p.query, *p.gallery)}
    embedded = embed_tracklets(model, list(tracklets.values()), device="cpu")
    vectors = dict(zip(tracklets, embedded, strict=True))
    return {protocol.name: rank_protocol(protocol, vectors) for protocol in protocols}


def measure(config: TrainConfig, folder: Path) -> dict[str, RankingResult]:
    """Train, or resume, or only read, and rank."""
    if not (folder / "results.json").exists():
        train(config, folder, threading.Event())
    return rankings(folder)


def compare(seed: int, ours: dict[str, RankingResult], base: dict[str, RankingResult]) -> list[Row]:
    """One row a protocol: Rank-1 and mAP of both in percent, paired differences with 95 % intervals."""
    rows = []
    for name, mine in ours.items():
        theirs, valid = base[name], mine.valid
        rank1 = paired_bootstrap(_first(mine)[valid], _first(theirs)[valid])
        ap = paired_bootstrap(mine.ap[valid], theirs.ap[valid])
        values = (mine.cmc[0], theirs.cmc[0], mine.map, theirs.map)
        rows.append(
            Row(
                seed=seed,
                protocol=name,
                queries=int(valid.sum()),
                figures={key: 100 * float(value) for key, value in zip(FIGURES, values, strict=True)},
                differences={
                    key: [round(100 * part, 1) for part in difference]
                    for key, difference in (("rank1", rank1), ("map", ap))
                },
            )
        )
    return rows


def _first(result: RankingResult) -> NDArray[np.float64]:
    hits: NDArray[np.float64] = (result.first_hit_rank == 1).astype(np.float64)
    return hits


def print_table(rows: list[Row]) -> None:
    """All rows, then mean and standard deviation over the seeds."""
    columns = ("R1 two-phase", "R1 bicubic", "mAP two-phase", "mAP bicubic")
    print(f"{'protocol':<20}{'seed':>6}{''.join(f'{name:>15}' for name in columns)}")
    for row in rows:
        figures = "".join(f"{row['figures'][key]:>15.1f}" for key in FIGURES)
        print(f"{row['protocol']:<20}{row['seed']:>6}{figures}   difference {row['differences']}")
    for name in dict.fromkeys(row["protocol"] for row in rows):
        cells = [row["figures"] for row in rows if row["protocol"] == name]
        text = ", ".join(
            f"{key} {np.mean([c[key] for c in cells]):.1f} +- {np.std([c[key] for c in cells], ddof=1):.1f}"
            for key in FIGURES
        )
        print(f"{name}: {text} (mean +- standard deviation over {len(cells)} seeds)")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/accuracy"), show_default=True)
@click.option("--seeds", default="1,2,3", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="A.B=V")
def main(out: Path, seeds: str, overrides: tuple[str, ...]) -> None:
    """Compare both variants over several seeds."""
    rows: list[Row] = []
    for seed in [int(word) for word in seeds.split(",")]:
        ranked = {
            name: measure(
                load_config(ROOT / "configs" / "synthetic.toml", [*overrides, f"seed={seed}", *extra]),
                out / f"{name}-{seed}",
            )
            for name, extra in VARIANTS.items()
        }
        rows += compare(seed, ranked["two_phase"], ranked["bicubic"])
    print_table(rows)
    report = {"machine": f"{platform.processor() or platform.machine()}", "rows": rows}
    (out / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
