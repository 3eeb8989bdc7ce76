"""s3clip-train: configuration in, run folder out; and what is done with finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from s3clip_runtime.cli.errors import DefaultGroup, needs_extra
from s3clip_runtime.cli.signals import stop_on_signals


@click.group(cls=DefaultGroup, default="run", name="s3clip-train")
def main() -> None:
    """Train S3-CLIP: `s3clip-train CONFIG` is short for `s3clip-train run CONFIG`."""


@main.command
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/CONFIG-NAME.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=V", help="Change a setting; may be repeated.")
def run(config: Path, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Train as CONFIG (TOML) says. Stopped runs resume with the same command."""
    with needs_extra("train"):
        from s3clip.config import load_config
        from s3clip.loop import Interrupted
        from s3clip.train import train

    settings = load_config(config, overrides)
    with stop_on_signals("a checkpoint follows this step") as stop:
        try:
            train(settings, out or Path("runs") / config.stem, stop)
        except Interrupted as interruption:
            click.echo(str(interruption), err=True)  # a wanted stop: exit 0, so that a scheduler requeues


@main.command("evaluate")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results; default RUN/evaluation.")
@click.option("--data", type=click.Path(path_type=Path), help="Another data set's root; its test split.")
@click.option(
    "--clips",
    type=click.Choice(["one", "all"]),
    default="one",
    show_default=True,
    help="One clip a tracklet, or every frame in clips whose embeddings are averaged.",
)
@click.option("--rerank", "reranking", is_flag=True, help="k-reciprocal re-ranking: k1 50, k2 15, .3.")
@click.option(
    "--pair", "pairs", multiple=True, metavar="CAM:CAM", help="Also from camera to camera; may be repeated."
)
@click.option(
    "--hr-rule",
    type=click.Choice(["tracklet", "frame"]),
    default="tracklet",
    show_default=True,
    help="What skips super-resolution: the frames of an HR tracklet, or each HR frame.",
)
@click.option("--csv", is_flag=True, help="Also write the VReID-XFD challenge's submission.csv.")
@click.option("--device", help="PyTorch device; default the run's own.")
def evaluate_command(
    run_folder: Path,
    out: Path | None,
    data: Path | None,
    clips: Literal["one", "all"],
    reranking: bool,
    pairs: tuple[str, ...],
    hr_rule: Literal["tracklet", "frame"],
    csv: bool,
    device: str | None,
) -> None:
    """Measure a finished RUN: evaluation.json, queries.npz for `compare`, and the page index.html."""
    with needs_extra("train"):
        from s3clip.evaluation.command import evaluate_run, report_table
        from s3clip.evaluation.evaluate import EvaluationSettings
        from s3clip.evaluation.rerank import RerankSettings

    settings = EvaluationSettings(device, clips, RerankSettings() if reranking else None, pairs, hr_rule)
    folder = out or run_folder / "evaluation"
    with stop_on_signals("nothing will be written") as stop:
        report = evaluate_run(run_folder, folder, settings, data=data, csv=csv, stop=stop)
    click.echo(report_table(report))
    click.echo(f"wrote {folder / 'index.html'}", err=True)


@main.command("compare")
@click.argument("first", metavar="RUN_A", type=click.Path(path_type=Path))
@click.argument("second", metavar="RUN_B", type=click.Path(path_type=Path))
def compare_command(first: Path, second: Path) -> None:
    """RUN_A minus RUN_B over the same queries, with intervals and p-values. Both must be evaluated."""
    with needs_extra("train"):
        from s3clip.evaluation.compare import compare, comparison_table, describe, read_evaluation

    a, b = read_evaluation(first), read_evaluation(second)
    rows = compare(a, b)
    click.echo(f"first   {describe(a)}\nsecond  {describe(b)}\n\n{comparison_table(rows)}")
