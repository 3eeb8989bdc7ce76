"""s3clip-train: configuration in, run folder out."""

from __future__ import annotations

from pathlib import Path

import click

from s3clip_runtime.cli.errors import Command, needs_extra
from s3clip_runtime.cli.signals import stop_on_signals


@click.command(cls=Command, name="s3clip-train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/CONFIG-NAME.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=V", help="Change a setting; may be repeated.")
def main(config: Path, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Train S3-CLIP as CONFIG (TOML) says. Stopped runs resume with the same command."""
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
