"""`s3clip-export detector`: a detector's ONNX file to a folder that s3clip-run verifies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from s3clip_runtime.cli.errors import needs_extra

_PATH = click.Path(path_type=Path)


def workspace_option(command: Callable[..., None]) -> Callable[..., None]:
    """The option `workspace` of all commands that build engines, in GiB."""
    option: Any = click.option(
        "--workspace",
        type=click.FloatRange(0, min_open=True),
        default=4.0,
        show_default=True,
        metavar="GIB",
        help="Most device memory that TensorRT may plan with.",
    )
    decorated: Callable[..., None] = option(command)
    return decorated


@click.command("detector")
@click.argument("graph", metavar="PATH.onnx", type=_PATH)
@click.option("-o", "--out", required=True, type=_PATH, help="Folder of the detector.")
@click.option("--layout", metavar="L", help="Its layout, where it is not recognised; docs/detectors.md.")
@click.option("--person-class", type=click.IntRange(0), metavar="K", help="Class of persons, from 0.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), metavar="T", help="Least score.")
@click.option(
    "--nms-iou", type=click.FloatRange(0, 1), metavar="U", help="Overlap above which the better box stays."
)
@click.option("--trt", is_flag=True, help="Also a TensorRT engine, built on this machine's GPU for it.")
@workspace_option
def detector_command(
    graph: Path,
    out: Path,
    layout: str | None,
    person_class: int | None,
    threshold: float | None,
    nms_iou: float | None,
    trt: bool,
    workspace: float,
) -> None:
    """Write a folder with a detector's graph, its settings and the hashes of both."""
    with needs_extra("trt"):
        from s3clip_export.detector import export_detector
        from s3clip_runtime.streams.detection.network import Settings

    settings = Settings(layout, person_class, threshold, nms_iou)
    made = export_detector(graph, out, settings=settings, trt=trt, workspace_bytes=int(workspace * 2**30))
    engine = "" if made.tensorrt is None else f", engine for {made.tensorrt.engine.gpu}"
    click.echo(
        f"detector {out}: {made.layout}, {made.precision}, person is class {made.person_class}, "
        f"threshold {made.threshold:g}{engine}"
    )
