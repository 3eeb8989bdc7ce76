"""s3clip-export: a finished run, or published weights, in; a proven bundle out; and the proof on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from s3clip.config import DataKind, DataSettings
from s3clip_export.detector_command import detector_command, workspace_option
from s3clip_runtime.cli.errors import DefaultGroup, needs_extra
from s3clip_runtime.errors import ConfigError

if TYPE_CHECKING:
    from s3clip_export.origin import Origin
    from s3clip_runtime.inference.evidence import Proof
    from s3clip_runtime.inference.manifest import Precision, Target

_PATH = click.Path(path_type=Path)


def _weights(command: Callable[..., None]) -> Callable[..., None]:
    """Options that name published weights in the place of a run."""
    sr: Any = click.option(
        "--sr",
        metavar="FILE|MODULE:FUNCTION",
        help="SwinIR-S x2 weights in the official layout, or a Python function that returns a "
        "torch.nn.Module from (N, 3, 64, 32) in [0, 1] to (N, 3, 128, 64).",
    )
    vsla: Any = click.option(
        "--vsla",
        metavar="FILE",
        type=_PATH,
        help="VSLA-CLIP weights in the official layout, with --sr in place of a run.",
    )
    decorated: Callable[..., None] = vsla(sr(command))
    return decorated


def _trial(command: Callable[..., None]) -> Callable[..., None]:
    """Options of what a proof is made on."""
    kind: Any = click.option(
        "--data-kind",
        type=click.Choice(get_args(DataKind)),
        help="Layout of DATA; default the run's, or folder.",
    )
    count: Any = click.option(
        "--tracklets",
        type=click.IntRange(2),
        default=64,
        show_default=True,
        help="About how many to prove it on.",
    )
    decorated: Callable[..., None] = kind(count(command))
    return decorated


@click.group(cls=DefaultGroup, default="export", name="s3clip-export")
def main() -> None:
    """Export a model: `s3clip-export RUN -o BUNDLE` is short for `s3clip-export export RUN -o BUNDLE`."""


main.add_command(detector_command)


@main.command("export")
@click.argument("run_folder", metavar="[RUN]", required=False, type=_PATH)
@click.option("-o", "--out", required=True, type=_PATH, help="Folder of the new bundle.")
@_weights
@click.option("--fp16", is_flag=True, help="Also FP16 graphs, after an audit of their ranges.")
@click.option("--bf16", is_flag=True, help="Also for OpenVINO in bfloat16, on CPUs that compute in it.")
@click.option("--int8", is_flag=True, help="Also for OpenVINO with an int8 encoder, a quarter of the size.")
@click.option("--trt", is_flag=True, help="Also FP16 TensorRT engines, built on this machine's GPU for it.")
@workspace_option
@click.option(
    "--verify", "data", type=_PATH, metavar="DATA", help="Data set of the proof; default the run's."
)
@_trial
@click.option(
    "--reference",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    metavar="N",
    help="Tracklets whose crops are kept in the bundle, for s3clip-doctor. They show people; 0 keeps none.",
)
def export_command(
    run_folder: Path | None,
    out: Path,
    vsla: Path | None,
    sr: str | None,
    fp16: bool,
    bf16: bool,
    int8: bool,
    trt: bool,
    workspace: float,
    data: Path | None,
    data_kind: DataKind | None,
    tracklets: int,
    reference: int,
) -> None:
    """Export RUN (a folder of s3clip-train), or a VSLA-CLIP and a super-resolver of your own, to graphs that
    are proven against PyTorch."""
    if run_folder is None and vsla is None and sr is None:
        raise ConfigError("nothing to export is named; give RUN, or --vsla and --sr")
    _check_choice(run_folder, vsla, sr)
    if data is None and (run_folder is None or data_kind is not None):
        raise ConfigError(
            f"{'--vsla' if run_folder is None else '--data-kind'} needs --verify, and it is not given; "
            "name a data set whose test crops prove the bundle"
        )
    if reference == 1:
        raise ConfigError("--reference 1 cannot be ranked; keep at least 2 tracklets, or 0")
    with needs_extra("export"):
        from s3clip_export.write import Wanted, export

    wanted = Wanted(fp16, trt, _tiers(bf16, int8), reference, tracklets, _bytes(workspace))
    origin = _origin(run_folder, vsla, sr)
    _say(out, export(origin, out, data=_data(origin.config.data, data, data_kind), wanted=wanted))


@main.command
@click.argument("bundle", type=_PATH)
@click.argument("data", type=_PATH)
@click.option("--run", "run_folder", type=_PATH, metavar="RUN", help="Its run; else looked for below runs/.")
@_weights
@_trial
def verify(
    bundle: Path,
    data: Path,
    run_folder: Path | None,
    vsla: Path | None,
    sr: str | None,
    data_kind: DataKind | None,
    tracklets: int,
) -> None:
    """Prove every target of BUNDLE against PyTorch on the test split of DATA, and write the new report."""
    _check_choice(run_folder, vsla, sr)
    with needs_extra("export"):
        from s3clip_export.write import find_run, verify_bundle
        from s3clip_runtime.inference.bundle import Bundle

    draft = Bundle.draft(bundle)
    origin = _origin(run_folder or (find_run(draft) if vsla is None else None), vsla, sr)
    _say(bundle, verify_bundle(draft, origin, _data(origin.config.data, data, data_kind), tracklets))


@main.command
@click.argument("bundle", type=_PATH)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "int8-fp16", "fp8-fp16"]),
    default="fp16",
    show_default=True,
    help="Of the graphs to build from; s3clip-calib makes those of 8 bits. FP8 needs an Ada GPU or newer.",
)
@workspace_option
def engines(bundle: Path, precision: Precision, workspace: float) -> None:
    """Build TensorRT engines for this machine from the graphs in BUNDLE, and prove them.

    Needs no PyTorch: the proof is against the reference that lies in the bundle.
    """
    with needs_extra("trt"):
        from s3clip_export.tensorrt.engines import rebuild_engines

    _say(bundle, [rebuild_engines(bundle, _bytes(workspace), precision)])


@main.command
@click.argument("bundle", type=_PATH)
@click.option("--bf16", is_flag=True, help="OpenVINO in bfloat16.")
@click.option("--int8", is_flag=True, help="OpenVINO with an int8 encoder, a quarter of the size.")
def tiers(bundle: Path, bf16: bool, int8: bool) -> None:
    """Give BUNDLE targets for CPUs that compute in bfloat16 and int8, and prove them on this machine.

    Needs no PyTorch: the proof is against the reference that lies in the bundle.
    """
    if not bf16 and not int8:
        raise ConfigError("no tier is named; give --bf16, --int8 or both")
    with needs_extra("openvino"):
        from s3clip_export.tiers import add_proven_tiers

    _say(bundle, add_proven_tiers(bundle, _tiers(bf16, int8)))


def _tiers(bf16: bool, int8: bool) -> tuple[Target, ...]:
    from s3clip_export.tiers import BF16, INT8

    return (BF16,) * bf16 + (INT8,) * int8


def _bytes(gib: float) -> int:
    return int(gib * 2**30)


def _check_choice(run: Path | None, vsla: Path | None, sr: str | None) -> None:
    """At most one of a run and the pair of --vsla and --sr."""
    if run is not None and (vsla is not None or sr is not None):
        given = " and ".join(name for name, value in (("--vsla", vsla), ("--sr", sr)) if value is not None)
        raise ConfigError(f"the network must be named once, found RUN {run} and {given}; remove one")
    if (vsla is None) != (sr is None):
        given, missing = ("--sr", "--vsla") if vsla is None else ("--vsla", "--sr")
        raise ConfigError(f"{given} must come with {missing}, which is not given; add it")


def _origin(run: Path | None, vsla: Path | None, sr: str | None) -> Origin:
    from s3clip_export.origin import origin_of_checkpoints, origin_of_run

    if run is not None:
        return origin_of_run(run)
    assert vsla is not None  # as _check_choice demands
    assert sr is not None
    return origin_of_checkpoints(vsla, sr)


def _data(own: DataSettings, root: Path | None, kind: DataKind | None) -> DataSettings:
    """The data set of the proof: the configuration's own, or another one."""
    other = own.at(root)
    return other if kind is None else other.model_copy(update={"kind": kind})


def _say(bundle: Path, proofs: Sequence[Proof]) -> None:
    for proof in proofs:
        click.echo(
            f"{proof.target} on {proof.device}, {proof.tracklets} tracklets: "
            f"cosine min {proof.cosine_min:.7f} mean {proof.cosine_mean:.7f}, "
            f"max abs error {proof.max_abs_error:.2e}, top-1 {proof.top1_agreement:.1%}, "
            f"Kendall tau {proof.kendall_tau:.4f}"
        )
    click.echo(f"bundle {bundle}: every bound holds")
