"""s3clip-train: configuration in, run folder out; and what is done with finished runs."""

from __future__ import annotations

from pathlib import Path

import click

from s3clip_runtime.cli.errors import Group, needs_extra
from s3clip_runtime.cli.signals import stop_on_signals


class _TrainGroup(Group):
    """`s3clip-train CONFIG` is short for `s3clip-train run CONFIG`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before anything that is no subcommand."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_TrainGroup, name="s3clip-train")
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
