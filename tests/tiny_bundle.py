"""A bundle of three tiny ONNX graphs that obey the contract, and the same arithmetic in plain numpy.

Tokens are means of runs of pixel values. The embedding is a fixed projection of all tokens' means, frame by
frame, so it depends on the order of frames, on the platform and on LR or HR.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from s3clip_runtime.inference import spec
from s3clip_runtime.inference.bundle import write_manifest
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.manifest import PLAIN, Artefact, Contract, Engine, Manifest, Role, Target
from s3clip_runtime.inference.records import sha256_file

WIDTH = 6
DIM = 10
SPACE = "ab" * 32
_rng = np.random.default_rng(7)
PROJECTION = _rng.normal(size=(spec.CLIP_LENGTH * WIDTH, DIM)).astype(np.float32)
PLATFORM_VECTOR = _rng.normal(size=DIM).astype(np.float32)
LR_SCALE, HR_SCALE = 1 / 64, 1 / 200


def tokens_of(batch: NDArray[np.uint8], scale: float) -> NDArray[np.float64]:
    """What `enhance` (LR_SCALE) and `patchify` (HR_SCALE) compute: (N, 128, WIDTH)."""
    runs = batch.reshape(len(batch), spec.PATCHES, WIDTH, -1).astype(np.float64)
    tokens: NDArray[np.float64] = runs.mean(axis=3) * scale
    return tokens


def embedding_of(tokens: NDArray[np.float64], platform: int) -> NDArray[np.float64]:
    """What `encode` computes for one clip: tokens (8, 128, WIDTH) to a unit vector (DIM,)."""
    raw = tokens.mean(axis=1).reshape(-1) @ PROJECTION + platform * PLATFORM_VECTOR
    unit: NDArray[np.float64] = raw / np.sqrt((raw**2).sum())
    return unit


def write_tiny_bundle(folder: Path, *, count_batch: bool = False, encode_weight: float = 1.0) -> Path:
    """Write a valid bundle.

    Args:
        folder: made if it does not exist.
        count_batch: `enhance` adds its batch size to every token, which shows how many crops it was given.
        encode_weight: factor of the projection; NaN makes embeddings that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graphs: dict[Role, onnx.ModelProto] = {
        "enhance": crops_graph(spec.LR_SIZE, LR_SCALE, picture=True, count_batch=count_batch),
        "patchify": crops_graph(spec.FRAME_SIZE, HR_SCALE, picture=False, count_batch=False),
        "encode": encode_graph(encode_weight),
    }
    for role, graph in graphs.items():
        onnx.checker.check_model(graph, full_check=True)
        (folder / f"{role}.onnx").write_bytes(graph.SerializeToString())
    write_manifest(folder, manifest_of(folder))
    return folder


def manifest_of(folder: Path) -> Manifest:
    """The manifest of the three graphs in `folder` as they are now."""
    roles: tuple[Role, ...] = ("enhance", "patchify", "encode")
    artefacts = tuple(
        Artefact(
            role=role,
            file=f"{role}.onnx",
            precision="fp32",
            backend="onnx",
            opset=18,
            sha256=sha256_file(folder / f"{role}.onnx"),
            bytes=(folder / f"{role}.onnx").stat().st_size,
        )
        for role in roles
    )
    proof = Proof(
        target="onnx-fp32",
        device="cpu",
        tracklets=2,
        crops=16,
        stages={"enhance": 1e-6, "patchify": 1e-6, "encode": 1e-6},
        cosine_mean=1.0,
        cosine_p1=0.99999,
        cosine_min=0.99999,
        max_abs_error=1e-6,
        top1_agreement=1.0,
        top10_agreement=1.0,
        kendall_tau=1.0,
        rank1_change=None,
        map_change=None,
        bounds={"cosine_min": 0.999},
    )
    return Manifest(
        name="tiny",
        created=datetime(2026, 11, 23, tzinfo=UTC),
        s3clip_version="0.1.0",
        embedding_space=SPACE,
        contract=Contract.current(WIDTH, DIM),
        artefacts=artefacts,
        training={"run": "none", "config": {"seed": 1}},
        proofs=(proof,),
    )


def with_targets(manifest: Manifest, *targets: Target) -> Manifest:
    """The manifest with the plain graphs once more under each of these names; engines open nowhere."""
    engine = Engine(
        tensorrt="10.3", compute_capability="8.7", gpu="Orin", driver="540", onnx_sha256="ab" * 32,
        profile=(1, 8, 64), inputs={}, outputs={},
    )  # fmt: skip
    artefacts, proofs = list(manifest.artefacts), list(manifest.proofs)
    for backend, precision in targets:
        changes = {
            "backend": backend,
            "precision": precision,
            "engine": engine if backend == "tensorrt" else None,
        }
        artefacts += [one.model_copy(update=changes) for one in manifest.artefacts if one.target == PLAIN]
        proofs.append(manifest.proofs[0].model_copy(update={"target": str(Target(backend, precision))}))
    return manifest.changed(artefacts=tuple(artefacts), proofs=tuple(proofs))


def edit_manifest(folder: Path, **changes: Any) -> None:  # noqa: ANN401  any JSON, also wrong one
    """Change top-level keys of the JSON behind the writer's back."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data))


def crops_graph(size: tuple[int, int], scale: float, *, picture: bool, count_batch: bool) -> onnx.ModelProto:
    """uint8 crops (N, *size, 3) to tokens, and for `picture` to the crops doubled in height and width."""
    height, width = size
    nodes = [
        helper.make_node("Cast", ["crops"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "token_shape"], ["runs"]),
        helper.make_node("ReduceMean", ["runs", "last"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["scaled"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "token_shape": np.array([-1, spec.PATCHES, WIDTH, height * width * 3 // spec.PATCHES // WIDTH]),
        "last": np.array([3]),
        "scale": np.array(scale, np.float32),
    }
    outputs = [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["N", spec.PATCHES, WIDTH])]
    if count_batch:
        nodes += [
            helper.make_node("Shape", ["crops"], ["batch"], start=0, end=1),
            helper.make_node("Cast", ["batch"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["scaled", "count"], ["tokens"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["scaled"], ["tokens"]))
    if picture:
        nodes += [
            helper.make_node("Reshape", ["crops", "apart"], ["cells"]),
            helper.make_node("Tile", ["cells", "twice"], ["tiles"]),
            helper.make_node("Reshape", ["tiles", "doubled"], ["picture"]),
        ]
        constants["apart"] = np.array([-1, height, 1, width, 1, 3])
        constants["twice"] = np.array([1, 1, 2, 1, 2, 1])
        constants["doubled"] = np.array([-1, height * 2, width * 2, 3])
        shape: list[str | int | None] = ["N", height * 2, width * 2, 3]
        outputs.append(helper.make_tensor_value_info("picture", TensorProto.UINT8, shape))
    inputs = [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["N", height, width, 3])]
    return _model(nodes, inputs, outputs, constants)


def encode_graph(weight: float) -> onnx.ModelProto:
    """tokens (B, 8, 128, WIDTH) and platform (B,) to unit vectors (B, DIM)."""
    nodes = [
        helper.make_node("ReduceMean", ["tokens", "patches"], ["frames"], keepdims=0),
        helper.make_node("Flatten", ["frames"], ["flat"]),
        helper.make_node("MatMul", ["flat", "projection"], ["projected"]),
        helper.make_node("Cast", ["platform"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "one"], ["column"]),
        helper.make_node("Mul", ["column", "platform_vector"], ["offset"]),
        helper.make_node("Add", ["projected", "offset"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=1, p=2),
    ]
    shape: list[str | int | None] = ["B", spec.CLIP_LENGTH, spec.PATCHES, WIDTH]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("platform", TensorProto.INT64, ["B"]),
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", DIM])]
    constants = {
        "patches": np.array([2]),
        "one": np.array([1]),
        "projection": PROJECTION * np.float32(weight),
        "platform_vector": PLATFORM_VECTOR,
    }
    return _model(nodes, inputs, outputs, constants)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, NDArray[Any]],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
