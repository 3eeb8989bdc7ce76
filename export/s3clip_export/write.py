"""A network to a bundle: export, measure, and only then put it in its place."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from pydantic import JsonValue
from tqdm import tqdm

from s3clip.config import DataSettings
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.models.model import S3Clip
from s3clip_export.onnx import OPSET, export_graph, graph_sources
from s3clip_export.origin import Origin
from s3clip_export.verify import broken_bounds, choose_tracklets, measure_parity
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.bundle import (
    Artefact,
    Bundle,
    Contract,
    Manifest,
    Proof,
    Role,
    sha256_file,
    write_manifest,
)


def export(origin: Origin, out: Path, *, data: DataSettings, tracklets: int) -> Proof:
    """Write the bundle of a network to `out`, or nothing.

    Args:
        origin: the network.
        out: the bundle's folder; must not exist.
        data: the data set whose test split gives the crops.
        tracklets: how many tracklets the parity is measured on.

    Raises:
        BundleError: `out` exists, a graph breaks the contract, or the parity misses a bound.
    """
    if out.exists():
        raise BundleError(f"bundle {out}: exists already; choose another folder or delete it")
    model = origin.model
    chosen = choose_tracklets(protocol_tracklets(read_protocols(data)), tracklets)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        manifest = _export_graphs(model, staging, name=out.name, training=origin.training)
        parity = measure_parity(model, Bundle(staging, manifest), chosen)
        problems = broken_bounds(parity)
        if problems:
            raise BundleError(
                f"bundle {out} was not written, its graphs differ from PyTorch: {'; '.join(problems)}"
            )
        write_manifest(staging, manifest.model_copy(update={"proofs": (parity,)}))
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return parity


def _export_graphs(model: S3Clip, folder: Path, *, name: str, training: dict[str, JsonValue]) -> Manifest:
    artefacts = []
    for source in tqdm(graph_sources(model), desc="export", unit="graph"):
        path = folder / f"{source.role}.onnx"
        export_graph(source, path)
        artefacts.append(
            Artefact(
                role=_role(source.role),
                file=path.name,
                precision="fp32",
                backend="onnx",
                opset=OPSET,
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
            )
        )
    width, out_dim = model.visual.config.width, model.visual.config.out_dim
    return Manifest(
        name=name,
        created=datetime.now(UTC),
        s3clip_version=version("s3clip"),
        embedding_space=embedding_space(model),
        contract=Contract.current(width, width + out_dim, model.visual.config.patches),
        artefacts=tuple(artefacts),
        training=training,
        proofs=(),
    )


def embedding_space(model: S3Clip) -> str:
    """SHA-256 over the encoder's weights: names, shapes and float32 values in sorted order.

    Taken from PyTorch, so that graphs of other precisions of the same model share the space.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _role(text: str) -> Role:
    return next(role for role in get_args(Role) if role == text)
