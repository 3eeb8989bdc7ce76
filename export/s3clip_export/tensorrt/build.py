"""ONNX graphs to TensorRT engines: one code path for TensorRT 10.3 to 11.x and TensorRT-RTX.

The precision lies in the ONNX graph alone: networks are strongly typed, and no precision flag is ever set (11
has none). Nothing of `tensorrt` may be touched before a driver was found: without one it crashes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import onnx

from s3clip_export.tensorrt.layers import Layer, layers_from_inspector, layers_from_log
from s3clip_export.tensorrt.operators import MAX_OPSET, standard_opset, unsupported_operators
from s3clip_export.tensorrt.quantised import quantised_products
from s3clip_export.tensorrt.watch import BuildLog, derived, interruptible, progress_of
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.spec import BATCH_PROFILE

if TYPE_CHECKING:
    import tensorrt

WORKSPACE_BYTES = 4 << 30
"""Most device memory that a builder may plan with. The largest graph, encode in FP32 at batch 64, needs
2.9 GB of activations, and TensorRT-RTX 1.7 refuses to build it with 1 GiB."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
}


class TensorRT(Protocol):
    """The part of the module `tensorrt`, or of `tensorrt_rtx`, that building needs."""

    __version__: str

    @property
    def Builder(self) -> type[tensorrt.Builder]: ...
    @property
    def ILogger(self) -> type[tensorrt.ILogger]: ...
    @property
    def IProgressMonitor(self) -> type[tensorrt.IProgressMonitor]: ...
    @property
    def LayerInformationFormat(self) -> type[tensorrt.LayerInformationFormat]: ...
    @property
    def MemoryPoolType(self) -> type[tensorrt.MemoryPoolType]: ...
    @property
    def NetworkDefinitionCreationFlag(self) -> type[tensorrt.NetworkDefinitionCreationFlag]: ...
    @property
    def OnnxParser(self) -> type[tensorrt.OnnxParser]: ...
    @property
    def ProfilingVerbosity(self) -> type[tensorrt.ProfilingVerbosity]: ...
    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What came of a build.

    Attributes:
        layers: the fused layers with their precisions.
        quantised_nodes: the graph's products that should compute in 8 bits, see `quantised_products`.
        inputs: name to kind of every input of the network; `outputs` likewise.
        onnx_sha256: of the graph that was parsed.
        opset: of its standard operators.
        activation_bytes: device memory of all intermediate tensors at the largest batch; None if the builder
            does not tell. `weights_bytes` likewise.
        parse_s: seconds of parsing; `build_s` of building.
        bytes: size of the engine's file.
        timing_cache: what became of it, a clause for the log.
        warnings: the builder's own.
    """

    layers: tuple[Layer, ...]
    quantised_nodes: tuple[str, ...]
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    onnx_sha256: str
    opset: int
    activation_bytes: int | None
    weights_bytes: int | None
    parse_s: float
    build_s: float
    bytes: int
    timing_cache: str
    warnings: tuple[str, ...]


def build_engine(
    trt: TensorRT,
    onnx_path: Path,
    engine_path: Path,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
    timing_cache: Path | None = None,
    target_capabilities: Sequence[str] | None = None,
    batches: tuple[int, int, int] = BATCH_PROFILE,
) -> EngineReport:
    """Build one engine and write it, or nothing.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        onnx_path: self-contained graph whose inputs have a dynamic batch and nothing else dynamic.
        engine_path: where the engine goes.
        workspace_bytes: most device memory that the builder may plan with.
        timing_cache: file that is read before the build and replaced after it.
        target_capabilities: compute capabilities like "8.6" to build for without a GPU, which TensorRT-RTX
            alone can; None builds for the GPU of this machine.
        batches: smallest, usual and largest batch.

    Raises:
        BackendError: the graph's operators or opset are not supported, or it is refused by the parser (names
            node and operator) or by the builder (quotes its log).
        BundleError: the graph cannot be read or a file cannot be written.
        KeyboardInterrupt: on Ctrl-C, after the builder has stopped.
    """
    graph = _read(onnx_path)
    opset, quantised_nodes = _examine(onnx_path, graph)
    log = derived(BuildLog, trt.ILogger)
    builder = trt.Builder(cast("tensorrt.ILogger", log))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    begin = time.perf_counter()
    parser = _parse(trt, onnx_path, graph, network, log)
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    _add_profile(builder, config, network, batches, onnx_path, log)
    if target_capabilities is not None:
        _set_targets(trt, config, target_capabilities)
        timing_cache_use = "unused: kernels cannot be timed for a GPU that is not here"
    else:
        timing_cache_use = _attach_timing_cache(config, timing_cache)
    with progress_of(config, trt.IProgressMonitor, onnx_path.name) as progress:
        plan = interruptible(lambda: builder.build_serialized_network(network, config), progress.cancel)
    if plan is None:
        raise BackendError(f"{onnx_path}: TensorRT {trt.__version__} built no engine: {log.tail()}")
    built = time.perf_counter()
    del parser  # only now: the network's weights lie in the parser's memory, not in its own
    layers = layers_from_log(log.layers) if target_capabilities is not None else _inspect(trt, plan, log)
    _write(engine_path, plan)
    if timing_cache is not None and target_capabilities is None:
        timing_cache_use += _save_timing_cache(config, timing_cache)
    return EngineReport(
        layers=layers,
        quantised_nodes=quantised_nodes,
        inputs=_infos(network.get_input(i) for i in range(network.num_inputs)),
        outputs=_infos(network.get_output(i) for i in range(network.num_outputs)),
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        opset=opset,
        activation_bytes=log.numbers.get("Total Activation Memory"),
        weights_bytes=log.numbers.get("Total Weights Memory"),
        parse_s=parsed - begin,
        build_s=built - parsed,
        bytes=plan.nbytes,
        timing_cache=timing_cache_use,
        warnings=tuple(log.warnings),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the graph cannot be read ({error.strerror}); export it again") from error


def _examine(path: Path, graph: bytes) -> tuple[int, tuple[str, ...]]:
    """Refuse what the parser would not read; the opset and the quantised products of the rest."""
    model = onnx.load_from_string(graph)
    opset = standard_opset(model)
    if not 9 <= opset <= MAX_OPSET:
        raise BackendError(
            f"{path}: its opset is {opset}, TensorRT 10.3 reads 9 to {MAX_OPSET}; export it with opset 18"
        )
    refused = unsupported_operators(model)
    if refused:
        raise BackendError(
            f"{path}: TensorRT's parser has no {', '.join(refused)}; write the graph with operators of "
            "operators.json, and never give it a graph that ONNX Runtime has optimised"
        )
    return opset, quantised_products(model)


def _parse(
    trt: TensorRT, path: Path, graph: bytes, network: tensorrt.INetworkDefinition, log: BuildLog
) -> tensorrt.OnnxParser:
    parser = trt.OnnxParser(network, cast("tensorrt.ILogger", log))
    if parser.parse(graph):
        return parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = [
        f"node {error.node_name() or '?'} ({error.node_operator() or '?'}): {' '.join(error.desc().split())}"
        for error in errors
    ]
    raise BackendError(
        f"{path}: TensorRT {trt.__version__} cannot parse {'; '.join(dict.fromkeys(said)) or 'it'}; "
        f"its log ends: {log.tail()}"
    )


def _add_profile(
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    network: tensorrt.INetworkDefinition,
    batches: tuple[int, int, int],
    path: Path,
    log: BuildLog,
) -> None:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        first, *rest = tensor.shape
        if first != -1 or -1 in rest:
            raise BackendError(
                f"{path}: the batch of input {tensor.name} must be dynamic and nothing else, its shape is "
                f"{_info(tensor)}; export it again"
            )
        smallest, usual, largest = ((n, *rest) for n in batches)
        profile.set_shape(tensor.name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:  # TensorRT reports a refused profile by -1 alone
        raise BackendError(f"{path}: TensorRT refuses the batches {batches}: {log.tail()}")


def _set_targets(trt: TensorRT, config: tensorrt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    if not hasattr(trt, "ComputeCapability"):
        raise BackendError(
            f"TensorRT {trt.__version__} builds only for the GPU of its machine; leave out the target "
            f"{', '.join(capabilities)}, or build with tensorrt_rtx"
        )
    rtx_config: Any = config  # only TensorRT-RTX has these names: they are looked up, and not in the stub
    rtx_config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        known = getattr(trt.ComputeCapability, name, None)
        if known is None or not rtx_config.set_compute_capability(known, i):
            raise BackendError(
                f"TensorRT-RTX {trt.__version__} cannot build for compute capability {capability}; "
                "it knows 7.5, 8.0, 8.6, 8.9 and 12.0"
            )


def _attach_timing_cache(config: tensorrt.IBuilderConfig, path: Path | None) -> str:
    """Start from the measured kernels of earlier builds. A foreign or damaged cache is replaced."""
    if path is None:
        return "unused: none was asked for"
    old = path.read_bytes() if path.is_file() else b""
    if old:
        cache = config.create_timing_cache(old)
        if cache is not None and config.set_timing_cache(cache, False):
            return f"started from {len(old)} bytes"
    fresh = config.create_timing_cache(b"")
    if not config.set_timing_cache(fresh, False):
        return "unused: the builder refuses it"
    return "is of another GPU or version, started anew" if old else "started anew"


def _save_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> str:
    cache = config.get_timing_cache()
    if cache is None:
        return ""
    measured = cache.serialize()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, measured)
    return f", saved {measured.nbytes} bytes"


def _inspect(trt: TensorRT, plan: tensorrt.IHostMemory, log: BuildLog) -> tuple[Layer, ...]:
    engine = trt.Runtime(cast("tensorrt.ILogger", log)).deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(
            f"TensorRT {trt.__version__} cannot open the engine it has just built: {log.tail()}"
        )
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_from_inspector(text)


def _infos(tensors: Iterator[tensorrt.ITensor]) -> dict[str, TensorInfo]:
    return {tensor.name: _info(tensor) for tensor in tensors}


def _info(tensor: tensorrt.ITensor) -> TensorInfo:
    if tensor.dtype.name not in _DTYPES:
        raise BackendError(
            f"tensor {tensor.name} has type {tensor.dtype.name}; engines take {', '.join(_DTYPES)}"
        )
    shape = tuple(None if n == -1 else n for n in tensor.shape)
    return TensorInfo(shape, _DTYPES[tensor.dtype.name])


def _write(path: Path, data: tensorrt.IHostMemory) -> None:
    """After a crash there is the old file or the new one, never half."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
    finally:
        draft.unlink(missing_ok=True)
