"""s3clip-calib: 8-bit graphs for a bundle, found and proven on tracklets.

The heavy imports sit in the function: `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.errors import Command, needs_extra

if TYPE_CHECKING:
    from s3clip_calib.candidates import Verdict

_PATH = click.Path(path_type=Path)


@click.command(name="s3clip-calib", cls=Command)
@click.argument("bundle", type=_PATH)
@click.argument("data", type=_PATH)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="onnx-int8, openvino-int8, onnx-int8-fp16 or onnx-fp8-fp16; all that can be made by default.",
)
@click.option("--tracklets", type=int, default=32, show_default=True, help="To take ranges from.")
@click.option(
    "--held",
    type=int,
    default=16,
    show_default=True,
    help="To choose by, and as many to prove the choice on.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every choice.")
def main(bundle: Path, data: Path, targets: tuple[str, ...], tracklets: int, held: int, seed: int) -> None:
    """Put 8-bit graphs into BUNDLE: int8 for CPUs, int8 and fp8 to build TensorRT engines from.

    DATA is a folder of tracklets, each a folder of pictures below ground/ or aerial/; identities are not
    needed. Takes a minute for a tiny model and an hour for a full-size one; killed, it goes on where it was.
    What does not rank like the float32 model is left out, and the report in the bundle says why.
    """
    with needs_extra("calib"):
        from s3clip_calib.calibrate import calibrate
        from s3clip_calib.selection import Wanted
    from s3clip_runtime.inference.manifest import Target

    wanted = Wanted(tuple(map(Target.parse, targets)) or None, tracklets, held, seed)
    outcome = calibrate(bundle, data, wanted)
    for verdict in outcome.verdicts:
        click.echo(_line(verdict))
    for target, why in outcome.left_out.items():
        click.echo(f"{target}: left out: {why}")
    click.echo(f"report: {bundle / outcome.report}", err=True)
    if any(verdict.artefacts for verdict in outcome.verdicts):
        click.echo(f"which target is fastest here is measured by s3clip-bench run {bundle}", err=True)


def _line(verdict: Verdict) -> str:
    if verdict.point is None or verdict.proof is None or verdict.held_out is None:
        return f"{verdict.target}: refused: {'; '.join(verdict.tried)}"
    return (
        f"{verdict.target}: {len(verdict.point.layers)} layers of encode in 8 bits "
        f"({verdict.point.share:.0%} of the operations) by {verdict.method}; cosine min "
        f"{verdict.proof.cosine_min:.6f} beside PyTorch, {verdict.held_out.cosine_min:.6f} on "
        f"{verdict.held_out.tracklets} held-out tracklets"
    )
