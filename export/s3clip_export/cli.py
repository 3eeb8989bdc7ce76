"""s3clip-export: a finished run in, a verified bundle out."""

from __future__ import annotations

from pathlib import Path

import click

from s3clip_runtime.cli.errors import Command, needs_extra


@click.command(cls=Command, name="s3clip-export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the new bundle.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data set whose test crops prove parity; default: the run's.",
)
@click.option("--tracklets", default=64, show_default=True, help="Tracklets to measure parity on.")
def main(run: Path, out: Path, data: Path | None, tracklets: int) -> None:
    """Export RUN (a folder of s3clip-train) to ONNX graphs that are proven against PyTorch."""
    with needs_extra("export"):
        from s3clip_export.write import export_run

    parity = export_run(run, out, data=data, tracklets=tracklets)
    click.echo(
        f"bundle {out}: parity on {parity.tracklets} tracklets, cosine worst {parity.worst_cosine:.8f} "
        f"mean {parity.mean_cosine:.8f}, max abs error {parity.max_abs_error:.2e}, "
        f"top-1 agreement {parity.top1_agreement:.1%}"
    )
