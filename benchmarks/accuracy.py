"""Two-phase S3-CLIP against the bicubic baseline with the same budget, on unseen synthetic identities.

    python -m benchmarks.accuracy --page docs/results.md

Each seed trains both; both start from the same encoder and draw the same batches. Per seed the difference is
paired over queries; over seeds the mean and the spread are printed. Results are JSON beside the runs.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TypedDict

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import cpu_name
from s3clip.checkpoint import read_run
from s3clip.config import TrainConfig, load_config
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.evaluate import embed_tracklets, rank_protocol
from s3clip.train import train
from s3clip_runtime.inference.ranking import RankingResult, paired_bootstrap

ROOT = Path(__file__).parents[1]
FIGURES = ("rank1", "rank1_bicubic", "map", "map_bicubic")
HEAD = """# Results
Written by `python -m benchmarks.accuracy`; do not edit. **Synthetic data**: drawn people, a tiny model,
60 unseen identities. It shows whether the recipe works here, and nothing about real video.

Two-phase S3-CLIP against the same network with a bicubic x2 in the place of SwinIR, with the same start
and the same batches. Differences are paired over queries, with 95 % bootstrap intervals. The rows of all
seeds give mean and standard deviation over the seeds.
""".splitlines()
COLUMNS = """
| protocol | seed | queries | Rank-1 | Rank-1 bicubic | difference | mAP | mAP bicubic | difference |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
""".strip().splitlines()
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
    config, model, _ = read_run(run)
    protocols = read_protocols(config.data)
    tracklets = protocol_tracklets(protocols)
    embedded = embed_tracklets(model, tracklets, device="cpu")
    vectors = dict(zip((t.name for t in tracklets), embedded, strict=True))
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


def report(rows: list[Row]) -> str:
    """The page docs/results.md: every row, then mean and standard deviation over the seeds."""
    lines = [*HEAD, f"Machine: {cpu_name()}, no GPU.", "", *COLUMNS]
    for row in rows:
        r1, r1_base, ap, ap_base = (f"{row['figures'][key]:.1f}" for key in FIGURES)
        d1, dap = (_interval(row["differences"][key]) for key in ("rank1", "map"))
        head = f"| {row['protocol']} | {row['seed']} | {row['queries']}"
        lines.append(f"{head} | {r1} | {r1_base} | {d1} | {ap} | {ap_base} | {dap} |")
    for name in dict.fromkeys(row["protocol"] for row in rows):
        cells = [row["figures"] for row in rows if row["protocol"] == name]
        r1, r1_base, ap, ap_base = (_spread([cell[key] for cell in cells]) for key in FIGURES)
        d1 = _spread([cell["rank1"] - cell["rank1_bicubic"] for cell in cells])
        dap = _spread([cell["map"] - cell["map_bicubic"] for cell in cells])
        lines.append(f"| **{name}** | all | | {r1} | {r1_base} | {d1} | {ap} | {ap_base} | {dap} |")
    return "\n".join(lines) + "\n"


def _interval(difference: list[float]) -> str:
    mean, low, high = difference
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _spread(values: list[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/accuracy"), show_default=True)
@click.option("--seeds", default="1,2,3", show_default=True)
@click.option("--page", type=click.Path(path_type=Path), help="Also write the table here: docs/results.md.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=V")
def main(out: Path, seeds: str, page: Path | None, overrides: tuple[str, ...]) -> None:
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
    text = report(rows)
    print(text)
    (out / "accuracy.json").write_text(
        json.dumps({"machine": cpu_name(), "rows": rows}, indent=2) + "\n", "utf-8"
    )
    if page is not None:
        page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
