"""ONNX graphs to TensorRT engines: one code path for TensorRT 10.3 to 11.x and TensorRT-RTX.

The precision lies in the ONNX graph alone: networks are strongly typed, and no precision flag is ever set (11
has none). Nothing of `tensorrt` may be touched before a driver was found: without one it crashes.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, get_args

import numpy as np
import onnx
from tqdm import tqdm

from s3clip_export.engine_layers import Layer, check_precisions, layers_from_inspector, layers_from_log
from s3clip_export.operators import MAX_OPSET, standard_opset, unsupported_operators
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.bundle import (
    Artefact,
    Engine,
    Manifest,
    Precision,
    Role,
    Target,
    sha256_file,
)
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
_TAIL = 8
"""Log lines that an error quotes: the reason stood in the last five of every refusal that was tried."""

_POLL_S = 0.5
"""Longest that Ctrl-C may go unseen, in seconds."""

_Made = TypeVar("_Made")


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


class Gpu(Protocol):
    """The GPU that engines are built on."""

    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> str:
        """Like "8.6"."""

    @property
    def driver(self) -> str: ...


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What came of a build.

    Attributes:
        layers: the fused layers with their precisions.
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


def open_tensorrt() -> tuple[TensorRT, Gpu]:
    """The installed TensorRT and the GPU that it builds for.

    Raises:
        BackendError: there is no usable driver, or TensorRT cannot be imported.
    """
    from s3clip_runtime.inference.backends.cuda import (  # type: ignore[import-not-found, unused-ignore]
        driver_problem,
        gpu,
    )

    problem = driver_problem()
    if problem is not None:
        raise BackendError(
            f"TensorRT engines are built on the GPU that runs them, and here none can be used: {problem}; "
            "export on the machine of deployment"
        )
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"tensorrt cannot be imported ({error}); install TensorRT 10.3 or newer as NVIDIA's guide says"
        ) from error
    return cast(TensorRT, module), cast(Gpu, gpu())


def add_engines(
    folder: Path,
    manifest: Manifest,
    precision: Precision,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
    timing_cache: Path | None = None,
    fp32_nodes: Mapping[Role, Collection[str]] | None = None,
) -> Manifest:
    """Build an engine of each ONNX graph of one precision in a draft bundle.

    Args:
        folder: the draft; `ROLE.PRECISION.engine` is written into it.
        manifest: of the draft; must list the ONNX graphs of this precision.
        precision: of the graphs.
        workspace_bytes: most device memory that the builder may plan with.
        timing_cache: file of measured kernels that later builds on this GPU start from; None keeps none.
        fp32_nodes: nodes that the FP16 graphs keep in FP32 on purpose.

    Returns:
        The manifest with the engines.

    Raises:
        BackendError: no GPU, no TensorRT, a graph is refused, or an engine has another precision than asked.
        BundleError: the draft holds no ONNX graphs of this precision, or cannot be written.
    """
    graphs = {a.role: a for a in manifest.artefacts if a.target == Target("onnx", precision)}
    missing = [role for role in get_args(Role) if role not in graphs]
    if missing:
        raise BundleError(
            f"bundle {folder}: holds no {precision} ONNX graph {', '.join(missing)} to build an engine from; "
            f"export its {precision} graphs first"
        )
    trt, gpu = open_tensorrt()
    engines = []
    for role, graph in graphs.items():
        path = folder / f"{role}.{precision}.engine"
        report = build_engine(
            trt, folder / graph.file, path, workspace_bytes=workspace_bytes, timing_cache=timing_cache
        )
        try:
            check_precisions(report.layers, precision, fp32_nodes=(fp32_nodes or {}).get(role, ()))
        except BackendError as error:
            path.unlink()
            raise BackendError(f"{path.name}: {error}") from error
        engines.append(_artefact(role, precision, path, report, trt.__version__, gpu))
    others = tuple(a for a in manifest.artefacts if a.target != Target("tensorrt", precision))
    return manifest.model_copy(update={"artefacts": (*others, *engines)})


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
    opset = _check_readable(onnx_path, graph)
    log = _derive(_Log, trt.ILogger)
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
    with _progress(trt, config, onnx_path.name) as progress:
        plan = _interruptible(lambda: builder.build_serialized_network(network, config), progress.cancel)
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


class _Log:
    """A logger that keeps what an error or the report needs: the whole log of one build has megabytes."""

    def __init__(self) -> None:
        super().__init__()  # the base that is mixed in is C++ and must be initialised
        self.warnings: list[str] = []
        self.layers = ""
        self.numbers: dict[str, int] = {}
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, also from its own threads."""
        if msg.startswith("Layers:"):
            self.layers = msg
            return
        name, _, rest = msg.partition(":")
        if name in ("Total Activation Memory", "Total Weights Memory"):
            self.numbers[name] = int(rest.split()[0])
        if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            self.warnings.append(" ".join(msg.split()))
        if msg.strip(" -"):
            self._tail.append(" ".join(msg.split()))

    def tail(self) -> str:
        """The errors and the last lines, joined to one."""
        return " | ".join(dict.fromkeys([*self.warnings[-3:], *self._tail])) or "its log is empty"


class _Progress:
    """A progress monitor on the console. Each phase of the builder adds its steps to the one bar."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self._left: dict[str, int] = {}
        self._cancelled = False

    def cancel(self) -> None:
        """Let the builder stop at its next step."""
        self._cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT."""
        self._left[phase_name] = num_steps
        if self.bar is not None:
            self.bar.total = (self.bar.total or 0) + num_steps
            self.bar.set_postfix_str(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False stops the build."""
        self._advance(phase_name, 1)
        return not self._cancelled

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT. Phases end early where there is nothing to do."""
        self._advance(phase_name, self._left.get(phase_name, 0))

    def _advance(self, phase: str, steps: int) -> None:
        self._left[phase] = self._left.get(phase, 0) - steps
        if self.bar is not None:
            self.bar.update(steps)


_Own = TypeVar("_Own", _Log, _Progress)


def _derive(own: type[_Own], base: type[object]) -> _Own:
    """Our class made a subclass of TensorRT's, which is known only now: the module is an argument."""
    made: _Own = type(own.__name__, (own, base), {})()
    return made


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: the graph cannot be read ({error.strerror}); export it again") from error


def _check_readable(path: Path, graph: bytes) -> int:
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
            "tensorrt_ops.json, and never give it a graph that ONNX Runtime has optimised"
        )
    return opset


def _parse(
    trt: TensorRT, path: Path, graph: bytes, network: tensorrt.INetworkDefinition, log: _Log
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
    log: _Log,
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
    _write(path, measured)
    return f", saved {measured.nbytes} bytes"


@contextmanager
def _progress(trt: TensorRT, config: tensorrt.IBuilderConfig, name: str) -> Iterator[_Progress]:
    progress = _derive(_Progress, trt.IProgressMonitor)
    config.progress_monitor = cast("tensorrt.IProgressMonitor", progress)
    with tqdm(desc=f"engine of {name}", unit="step", disable=None) as bar:
        progress.bar = bar
        yield progress


def _interruptible(work: Callable[[], _Made], cancel: Callable[[], None]) -> _Made:
    """Run the builder in a thread of its own, so that Ctrl-C reaches this one.

    Raised inside TensorRT's callbacks, a KeyboardInterrupt would pass through C++ that does not expect it.
    """
    with ThreadPoolExecutor(1, "tensorrt") as pool:
        pool.submit(int).result()  # a pool does not wait for a thread that was interrupted while it started
        try:
            running = pool.submit(work)
            while not wait([running], _POLL_S).done:
                pass  # a signal that comes just before a wait does not end it, so none may be endless
            return running.result()
        except KeyboardInterrupt:
            cancel()
            raise  # the pool waits for the builder's next step first


def _inspect(trt: TensorRT, plan: tensorrt.IHostMemory, log: _Log) -> tuple[Layer, ...]:
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


def _artefact(
    role: Role, precision: Precision, path: Path, report: EngineReport, version: str, gpu: Gpu
) -> Artefact:
    return Artefact(
        role=role,
        file=path.name,
        precision=precision,
        backend="tensorrt",
        opset=report.opset,
        sha256=sha256_file(path),
        bytes=report.bytes,
        engine=Engine(
            tensorrt=version,
            compute_capability=gpu.compute_capability,
            gpu=gpu.name,
            driver=gpu.driver,
            onnx_sha256=report.onnx_sha256,
            profile=BATCH_PROFILE,
            inputs={name: str(info) for name, info in report.inputs.items()},
            outputs={name: str(info) for name, info in report.outputs.items()},
        ),
    )


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
