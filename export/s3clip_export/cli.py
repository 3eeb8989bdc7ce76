"""s3clip-export: a finished run in, a proven bundle out; and the proof on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.errors import DefaultGroup, needs_extra
from s3clip_runtime.errors import ConfigError

if TYPE_CHECKING:
    from s3clip_runtime.inference.bundle import Proof

_PATH = click.Path(path_type=Path)


@click.group(cls=DefaultGroup, default="run", name="s3clip-export")
def main() -> None:
    """Export a model: `s3clip-export RUN -o BUNDLE` is short for `s3clip-export run RUN -o BUNDLE`."""


@main.command
@click.argument("run_folder", metavar="RUN", type=_PATH)
@click.option("-o", "--out", required=True, type=_PATH, help="Folder of the new bundle.")
@click.option("--fp16", is_flag=True, help="Also FP16 graphs, after an audit of their ranges.")
@click.option("--trt", is_flag=True, help="Also FP16 TensorRT engines, built on this machine's GPU for it.")
@click.option(
    "--verify", "data", type=_PATH, metavar="DATA", help="Data set of the proof; default the run's."
)
@click.option("--tracklets", type=click.IntRange(2), default=64, show_default=True, help="To prove it on.")
@click.option(
    "--reference",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    metavar="N",
    help="Tracklets whose crops are kept in the bundle, for s3clip-doctor. They show people; 0 keeps none.",
)
def run(
    run_folder: Path, out: Path, fp16: bool, trt: bool, data: Path | None, tracklets: int, reference: int
) -> None:
    """Export RUN (a folder of s3clip-train) to graphs that are proven against PyTorch."""
    if reference == 1:
        raise ConfigError("--reference 1 cannot be ranked; keep at least 2 tracklets, or 0")
    with needs_extra("export"):
        from s3clip_export.write import Wanted, export_run

    wanted = Wanted(fp16=fp16, engines=trt, reference=reference, tracklets=tracklets)
    proofs = export_run(run_folder, out, data=data, wanted=wanted)
    _say(out, proofs)


@main.command
@click.argument("bundle", type=_PATH)
@click.argument("data", type=_PATH)
@click.option("--run", "run_folder", type=_PATH, metavar="RUN", help="Its run; else looked for in runs/.")
@click.option("--tracklets", type=click.IntRange(2), default=64, show_default=True, help="To prove it on.")
def verify(bundle: Path, data: Path, run_folder: Path | None, tracklets: int) -> None:
    """Prove every target of BUNDLE against PyTorch on the test split of DATA, and write the new report."""
    with needs_extra("export"):
        from s3clip_export.write import find_run, verify_bundle
        from s3clip_runtime.inference.bundle import Bundle

    draft = Bundle.draft(bundle)
    proofs = verify_bundle(draft, find_run(draft, run_folder), data, tracklets)
    _say(bundle, proofs)


def _say(bundle: Path, proofs: Sequence[Proof]) -> None:
    for proof in proofs:
        click.echo(
            f"{proof.target} on {proof.device}, {proof.tracklets} tracklets: "
            f"cosine min {proof.cosine_min:.7f} mean {proof.cosine_mean:.7f}, "
            f"max abs error {proof.max_abs_error:.2e}, top-1 {proof.top1_agreement:.1%}, "
            f"Kendall tau {proof.kendall_tau:.4f}"
        )
    click.echo(f"bundle {bundle}: every bound holds; its report is the report-*.html in it")
