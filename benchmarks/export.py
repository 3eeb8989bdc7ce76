"""The full-size graphs: nodes, export time, memory, FP16 against FP32, and engines of TensorRT for RTX.

    python -m benchmarks.export

Random weights with a fixed seed on crops of the synthetic world (configs/seeded-full.toml): figures of cost
and of rounding, and nothing about accuracy. The engines are built without a GPU and never run.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import click
import onnx
import torch

from s3clip.config import DataSettings, load_config
from s3clip.models.model import S3Clip, build_model
from s3clip_export.fp16.convert import read_ranges, write_fp16
from s3clip_export.onnx import OPSET
from s3clip_export.proof.verify import begin_trial, prove
from s3clip_export.tensorrt.build import build_engine
from s3clip_export.write import export_graphs
from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.gate import broken_bounds
from s3clip_runtime.inference.manifest import Manifest

CONFIG = Path(__file__).parents[1] / "configs" / "seeded-full.toml"
CAPABILITY = "8.6"


@click.command()
@click.option("--tracklets", default=8, show_default=True, help="To prove the graphs on.")
def main(tracklets: int) -> None:
    """Export, convert, prove and build."""
    config = load_config(CONFIG)
    torch.manual_seed(config.seed)
    model = build_model(config).eval().requires_grad_(False)
    print(f"{cpu_name()}, torch {torch.__version__} with {torch.get_num_threads()} threads, opset {OPSET}")
    with tempfile.TemporaryDirectory(prefix="s3clip-export-") as name:
        folder = Path(name)
        build_all(folder, export_both(model, folder, config.data, tracklets))


def export_both(model: S3Clip, folder: Path, data: DataSettings, tracklets: int) -> Manifest:
    """FP32 and FP16 graphs with their proofs."""
    start = time.perf_counter()
    manifest = export_graphs(model, folder, name="full", training={})
    print(f"export of three FP32 graphs: {time.perf_counter() - start:.0f} s, peak {peak_gib():.2f} GiB")
    trial = begin_trial(model, data, tracklets, folder)
    start = time.perf_counter()
    manifest = write_fp16(folder, manifest, trial.reference.clips)
    print(
        f"audit and FP16 graphs on {len(trial.reference.clips)} clips: {time.perf_counter() - start:.0f} s, "
        f"peak {peak_gib():.2f} GiB"
    )
    write_manifest(folder, manifest)
    for role, audit in read_ranges(folder, manifest).graphs.items():
        print(f"largest activation of {role}: {audit.nodes[0]}")
    for target in Bundle.draft(folder).targets:
        start = time.perf_counter()
        proof, _ = prove(folder, target, trial)
        stages = ", ".join(f"{stage} {error:.1e}" for stage, error in proof.stages.items())
        print(
            f"{target}: cosine min {proof.cosine_min:.8f}, max abs error {proof.max_abs_error:.1e}, "
            f"top-1 {proof.top1_agreement:.3f}, tau {proof.kendall_tau:.4f}; {stages}; "
            f"breaches {broken_bounds(proof) or 'none'} ({time.perf_counter() - start:.0f} s)"
        )
    return manifest


def build_all(folder: Path, manifest: Manifest) -> None:
    """Nodes and files of every graph, and its engine."""
    try:
        import tensorrt_rtx as rtx
    except ImportError:
        raise SystemExit("install tensorrt-rtx to build engines: pip install s3clip[trt-check]") from None
    print("graph             nodes  casts  ONNX MB  parse s  build s  engine MB  layers  activations MB (64)")
    for artefact in manifest.artefacts:
        path = folder / artefact.file
        nodes = onnx.load(path).graph.node
        row = (
            f"{artefact.role:<9} {artefact.precision:<6} {len(nodes):>6} "
            f"{sum(node.op_type == 'Cast' for node in nodes):>6} {artefact.bytes / 1e6:>8.1f}"
        )
        try:
            report = build_engine(rtx, path, path.with_suffix(".engine"), target_capabilities=(CAPABILITY,))
        except BackendError as error:
            print(f"{row}  {error}")
            continue
        print(
            f"{row} {report.parse_s:>8.1f} {report.build_s:>8.1f} {report.bytes / 1e6:>10.1f} "
            f"{len(report.layers):>7} {(report.activation_bytes or 0) / 1e6:>15.0f}"
        )
    print(f"TensorRT for RTX {rtx.__version__}, compute capability {CAPABILITY}; peak {peak_gib():.2f} GiB")


def peak_gib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
