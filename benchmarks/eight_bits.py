"""How many products of a calibrated bundle really compute in 8 bits, by the build log of TensorRT for RTX.

    python -m benchmarks.eight_bits BUNDLE

It builds without a GPU, and runs nothing. FP16's row stands beside those of 8 bits. Minutes at full size.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import cast

import click

from s3clip_export.tensorrt.build import EngineReport, TensorRT, build_engine
from s3clip_export.tensorrt.layers import eight_bit_products
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.inference.spec import CLIPS_PROFILE

TARGETS = (Target("onnx", "fp16"), Target("onnx", "int8-fp16"), Target("onnx", "fp8-fp16"))

CAPABILITY = "8.9"
"""Ada: the oldest that has int8 and FP8."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def main(bundle: Path) -> None:
    """Build `encode` of each target that the bundle holds, and print a Markdown table."""
    opened = Bundle.open(bundle)
    trt = cast(TensorRT, importlib.import_module("tensorrt_rtx"))
    names = ("target", "products in 8 bits", "layers that hold them", "of", "engine MB", "activations MB")
    print(f"| {' | '.join(names)} |")
    print(f"|{' --- |' * len(names)}")
    for target in TARGETS:
        if target in opened.targets:
            print(_row(target, _built(trt, opened.file("encode", target))))


def _built(trt: TensorRT, graph: Path) -> EngineReport:
    with tempfile.TemporaryDirectory(prefix="s3clip-eight-bits-") as scratch:
        path = Path(scratch) / "encode.engine"
        return build_engine(trt, graph, path, target_capabilities=[CAPABILITY], batches=CLIPS_PROFILE)


def _row(target: Target, report: EngineReport) -> str:
    quick = [] if target.precision == "fp16" else eight_bit_products(report.layers, target.precision)
    inside = {node for layer in quick for node in layer.nodes} & set(report.quantised_nodes)
    layers = sum(layer.is_product for layer in report.layers)
    activations = "-" if report.activation_bytes is None else f"{report.activation_bytes / 1e6:.0f}"
    return (
        f"| `{target}` | {len(inside)} of {len(report.quantised_nodes)} | {len(quick)} | {layers} | "
        f"{report.bytes / 1e6:.0f} | {activations} |"
    )


if __name__ == "__main__":
    main()
