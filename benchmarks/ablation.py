"""The parts of the recipe, one at a time, on unseen synthetic identities.

    python -m benchmarks.ablation --page docs/results.md

Each seed pretrains once and learns its prompts once; every variant starts stage 2 from there and draws the
same batches for the same number of steps. Runs are resumed, finished ones only read. Per query the metrics
are averaged over the seeds; differences to the baseline are paired over queries, with bootstrap intervals.
"""

from __future__ import annotations

import threading
from pathlib import Path

import click

from s3clip.config import TrainConfig, load_config
from s3clip.train import train

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "synthetic.toml"
SHORT = ["reid.epochs=2", "reid.milestones=[2]"]
"""Stage 2 of every variant: 82 updates, some four minutes on one core."""

VARIANTS: dict[str, list[str]] = {
    "baseline": ["sr.kind=bicubic"],
    "frozen_sr": ["reid.variant=frozen_sr"],
    "joint": ["reid.variant=joint"],
    "two_phase": [],
    "no_temporal": ["reid.temporal_weight=0.0"],
    "no_tdp": ["reid.tdp_weight=0.0"],
}


def train_all(out: Path, seeds: list[int], overrides: list[str]) -> None:
    """Every variant of every seed that is not finished."""
    for seed in seeds:
        start = out / f"start-{seed}"
        _finish(load_config(CONFIG, [*overrides, f"seed={seed}", "reid.epochs=0"]), start)
        for name, settings in VARIANTS.items():
            config = load_config(CONFIG, [*SHORT, *overrides, f"seed={seed}", f"start={start}", *settings])
            _finish(config, out / f"{name}-{seed}")


def _finish(config: TrainConfig, folder: Path) -> None:
    if not (folder / "results.json").exists():
        print(f"--- {folder}", flush=True)
        train(config, folder, threading.Event())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option("--seeds", default="1,2,3", show_default=True)
@click.option("--page", type=click.Path(path_type=Path), help="Also write the table here: docs/results.md.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=V")
def main(out: Path, seeds: str, page: Path | None, overrides: tuple[str, ...]) -> None:
    """Train what is missing, evaluate and compare."""
    numbers = [int(word) for word in seeds.split(",")]
    train_all(out, numbers, list(overrides))


if __name__ == "__main__":
    main()
