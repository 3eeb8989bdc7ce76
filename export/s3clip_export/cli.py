"""s3clip-export: a finished run, or published weights, in; a verified bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from s3clip.config import DataKind, DataSettings
from s3clip_runtime.cli.errors import Command, needs_extra
from s3clip_runtime.errors import ConfigError


@click.command(cls=Command, name="s3clip-export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the new bundle.")
@click.option(
    "--vsla",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="VSLA-CLIP weights in the official layout, with --sr in place of RUN.",
)
@click.option(
    "--sr",
    metavar="FILE|MODULE:FUNCTION",
    help="SwinIR-S x2 weights in the official layout, or a Python function that returns a torch.nn.Module "
    "from (N, 3, 64, 32) in [0, 1] to (N, 3, 128, 64).",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data set whose test crops prove parity; default: the run's.",
)
@click.option(
    "--data-kind",
    type=click.Choice(get_args(DataKind)),
    help="Layout of --data; default: the run's, or folder.",
)
@click.option("--tracklets", default=64, show_default=True, help="Tracklets to measure parity on.")
def main(
    run: Path | None,
    out: Path,
    vsla: Path | None,
    sr: str | None,
    data: Path | None,
    data_kind: DataKind | None,
    tracklets: int,
) -> None:
    """Export RUN (a folder of s3clip-train), or a VSLA-CLIP and a super-resolver of your own, to ONNX graphs
    that are proven against PyTorch."""
    _check_choice(run, vsla, sr)
    if data is None and (run is None or data_kind is not None):
        raise ConfigError(
            f"{'--vsla' if run is None else '--data-kind'} needs --data, and it is not given; "
            "name a data set whose test crops prove parity"
        )
    with needs_extra("export"):
        from s3clip_export.origin import origin_of_checkpoints, origin_of_run
        from s3clip_export.write import export

    if run is not None:
        origin = origin_of_run(run)
    else:
        assert vsla is not None  # as _check_choice demands
        assert sr is not None
        origin = origin_of_checkpoints(vsla, sr)
    proof = export(origin, out, data=_data(origin.config.data, data, data_kind), tracklets=tracklets)
    click.echo(
        f"bundle {out}: parity on {proof.tracklets} tracklets, cosine worst {proof.cosine_min:.8f} "
        f"mean {proof.cosine_mean:.8f}, max abs error {proof.max_abs_error:.2e}, "
        f"top-1 agreement {proof.top1_agreement:.1%}"
    )


def _check_choice(run: Path | None, vsla: Path | None, sr: str | None) -> None:
    """Exactly one of RUN and the pair of --vsla and --sr."""
    if run is not None and (vsla is not None or sr is not None):
        given = " and ".join(name for name, value in (("--vsla", vsla), ("--sr", sr)) if value is not None)
        raise ConfigError(f"what to export must be named once, found RUN {run} and {given}; remove one")
    if run is None and vsla is None and sr is None:
        raise ConfigError("nothing to export is named; give RUN, or --vsla and --sr")
    if run is None and (vsla is None or sr is None):
        given, missing = ("--sr", "--vsla") if vsla is None else ("--vsla", "--sr")
        raise ConfigError(f"{given} must come with {missing}, which is not given; add it")


def _data(own: DataSettings, root: Path | None, kind: DataKind | None) -> DataSettings:
    """The data set of the proof: the configuration's own, or another one."""
    if root is None:
        return own
    return own.model_copy(update={"root": root, "synthetic": None, "kind": kind or own.kind})
