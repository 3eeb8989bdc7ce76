"""ONNX Runtime on the CPU or on CUDA. `onnxruntime` is imported only when a session is opened."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.backends.batches import Batches, bucket_of
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.manifest import Precision

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
}
_FLOAT16: Final[frozenset[Precision]] = frozenset({"fp16", "int8-fp16", "fp8-fp16"})
"""Precisions whose graphs hold float16."""

_ERRORS_ONLY = 3
"""ONNX Runtime's log severity: errors and worse. Its warnings are about graph optimisation."""

_PROBE = (
    b'\x08\x08\x12\x00:7\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01'
    b"\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
"""An ONNX file, y = Relu(x) with float32 (1,): the smallest graph that shows whether a device works."""


class _OrtTensor(Protocol):
    """What ONNX Runtime, which has no types, says of an input or output."""

    name: str
    type: str
    shape: list[int | str | None]


class _OrtGraph(Protocol):
    """The part of onnxruntime.InferenceSession that is used here."""

    def get_inputs(self) -> Sequence[_OrtTensor]: ...
    def get_outputs(self) -> Sequence[_OrtTensor]: ...
    def get_providers(self) -> Sequence[str]: ...
    def run(self, names: None, feeds: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]: ...
    def io_binding(self) -> Any: ...  # noqa: ANN401
    def run_with_iobinding(self, binding: Any) -> None: ...  # noqa: ANN401


class OrtSession:
    """`backends.Session` over one ONNX file.

    Args:
        path: a self-contained ONNX file.
        device: "cpu" or "cuda". It is obeyed or refused; nothing falls back to another device.
        threads: CPU threads of one operator, >= 1; None takes all CPUs that this process may use.
        precision: of the graph. On the CPU those with float16 are optimised less: see `_optimisation`.

    Raises:
        BackendError: onnxruntime is not installed, the device cannot be had, or the graph cannot be loaded.
    """

    def __init__(
        self, path: Path, *, device: str = "cpu", threads: int | None = None, precision: Precision = "fp32"
    ) -> None:
        if device not in _PROVIDERS:
            raise BackendError(f"device {device!r} is unknown to onnxruntime; use cpu or cuda")
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be at least 1, found {threads}; leave it out to use all CPUs")
        self._path = path
        self._device = device
        graph = _load(str(path), str(path), device, threads or usable_cpus(), precision)
        self._batches = Batches(
            path,
            MappingProxyType({a.name: _info(path, a) for a in graph.get_inputs()}),
            MappingProxyType({a.name: _info(path, a) for a in graph.get_outputs()}),
        )
        self._graph: _OrtGraph | None = graph
        # On the CPU bound buffers would only add copies. A detector's fixed batch cannot be padded.
        bound = device == "cuda" and BoundGraph.fits(self._batches)
        self._bound = BoundGraph(graph, self._batches, device) if bound else None

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Name and kind of every input."""
        return self._batches.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Name and kind of every output."""
        return self._batches.outputs

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        return self._device

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph, see `backends.Session.run`."""
        if self._graph is None:
            raise BackendError(f"{self._path}: the session is closed; open a new one")
        return self._batches.run(inputs, partial(self._run_piece, self._graph))

    def close(self) -> None:
        """Free the graph. A second call does nothing."""
        self._graph = None
        self._bound = None

    def _run_piece(self, graph: _OrtGraph, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            if self._bound is not None:
                return self._bound.run(inputs)
            return dict(zip(self._batches.outputs, graph.run(None, inputs), strict=True))
        except Exception as error:  # the errors of ONNX Runtime have no base class but Exception
            raise BackendError(f"{self._path}: the run on {self._device} failed: {error}") from error


class BoundGraph:
    """One graph whose inputs and outputs stay on its device, in buffers that are used again.

    A batch is padded to its bucket, and every bucket keeps its own buffers. Rows of a batch are independent
    of each other, so what lies in the padding does not matter.

    Args:
        graph: a loaded graph.
        batches: its tensors; `fits` must be true of them.
        device: "cpu" or "cuda".
    """

    def __init__(self, graph: _OrtGraph, batches: Batches, device: str) -> None:
        self._graph = graph
        self._batches = batches
        self._device = device
        self._buckets: dict[int, _Binding] = {}

    @staticmethod
    def fits(batches: Batches) -> bool:
        """Whether the batch is the only dimension that is not known: only then can buffers be made once."""
        tensors = [*batches.inputs.values(), *batches.outputs.values()]
        return all(info.shape[:1] == (None,) and None not in info.shape[1:] for info in tensors)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch of at most `batches.largest` rows; the arrays returned are the caller's own."""
        batch = len(next(iter(inputs.values())))
        size = bucket_of(batch)
        if size not in self._buckets:
            self._buckets[size] = self._bind(size)
        binding = self._buckets[size]
        for name, array in inputs.items():
            staged = binding.staging[name]
            staged[:batch] = array
            binding.values[name].update_inplace(staged)
        binding.io.synchronize_inputs()
        self._graph.run_with_iobinding(binding.io)
        binding.io.synchronize_outputs()
        return {name: np.array(binding.values[name].numpy()[:batch]) for name in self._batches.outputs}

    def _bind(self, size: int) -> _Binding:
        ort = _import_onnxruntime()
        binding = _Binding(self._graph.io_binding(), {}, {})
        for name, info in self._batches.inputs.items():
            staged = np.zeros((size, *_known(info)), info.dtype)
            binding.staging[name] = staged
            value = ort.OrtValue.ortvalue_from_shape_and_type(staged.shape, info.dtype, self._device, 0)
            binding.values[name] = value
            binding.io.bind_ortvalue_input(name, value)
        for name, info in self._batches.outputs.items():
            shape = (size, *_known(info))
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, info.dtype, self._device, 0)
            binding.values[name] = value
            binding.io.bind_ortvalue_output(name, value)
        return binding


@dataclass(frozen=True, slots=True)
class _Binding:
    """Buffers of one bucket: `values` on the device, `staging` on the host for padding the inputs."""

    io: Any
    values: dict[str, Any]
    staging: dict[str, NDArray[Any]]


def _known(info: TensorInfo) -> tuple[int, ...]:
    return tuple(n for n in info.shape[1:] if n is not None)


def choose_device(device: str) -> tuple[str, str]:
    """Resolve "auto" to a device that works here; any other name is handed on unchanged.

    Returns:
        The device and the reason, a clause for the log. "auto" gives cuda only if a small graph really
        ran on it: `onnxruntime` lists the providers it was compiled with, not those that can start.

    Raises:
        BackendError: onnxruntime is not installed.
    """
    if device != "auto":
        return device, "as asked"
    _import_onnxruntime()  # without it there is no cpu either
    try:
        graph = _load("the probe graph", _PROBE, "cuda", 1)
        graph.run(None, {"x": np.zeros(1, np.float32)})
    except BackendError as error:
        return "cpu", f"cuda cannot be used: {error}"
    except Exception as error:  # the errors of ONNX Runtime have no base class but Exception
        return "cpu", f"cuda was created but cannot compute: {error}"
    return "cuda", "a probe graph ran on it"


def _load(
    name: str, model: str | bytes, device: str, threads: int, precision: Precision = "fp32"
) -> _OrtGraph:
    ort = _import_onnxruntime()
    wanted = _PROVIDERS[device]
    available = ort.get_available_providers()
    if wanted not in available:
        raise BackendError(
            f"this onnxruntime has no {wanted} (it has {', '.join(available)}); to use cuda, uninstall "
            'onnxruntime and pip install "s3clip[gpu]"'
        )
    if device == "cuda":
        _preload_cuda(ort)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # Set explicitly: left at 0, ONNX Runtime pins threads to all cores of the host, even in a container.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads would spin for 47 ms after every run, beside a detector and decoders that need cores.
    # Embedding beside a detector gave 5 to 10 clips a second without and 1 to 2 with it (demo, two cores).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = _optimisation(ort, device, precision)
    try:
        graph: _OrtGraph = ort.InferenceSession(model, options, providers=[wanted])
    except Exception as error:  # the errors of ONNX Runtime have no base class but Exception
        raise BackendError(f"{name}: onnxruntime cannot load it on {device}: {error}") from error
    obtained = graph.get_providers()
    if not obtained or obtained[0] != wanted:
        raise BackendError(
            f"{name}: asked onnxruntime for {wanted}, got {', '.join(obtained) or 'nothing'}; check the GPU "
            "driver and the CUDA and cuDNN libraries, or ask for --device cpu"
        )
    return graph


def _optimisation(ort: ModuleType, device: str, precision: Precision) -> object:
    """Level of ONNX Runtime's own graph optimisation.

    Its CPU provider crashes the process on float16 attention graphs if everything is enabled.
    """
    levels = ort.GraphOptimizationLevel
    return levels.ORT_ENABLE_BASIC if device == "cpu" and precision in _FLOAT16 else levels.ORT_ENABLE_ALL


def _preload_cuda(ort: ModuleType) -> None:
    """Let it load CUDA and cuDNN from pip's packages, where the dynamic loader does not look."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing; the session will tell
        ort.preload_dlls()


def _import_onnxruntime() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            f'onnxruntime cannot be imported ({error}); pip install "s3clip[cpu]", or "s3clip[gpu]" for CUDA'
        ) from error


def _info(path: Path, tensor: _OrtTensor) -> TensorInfo:
    if tensor.type not in _DTYPES:
        raise BackendError(
            f"{path}: {tensor.name} has type {tensor.type}; supported are {', '.join(_DTYPES)}"
        )
    shape = tuple(n if isinstance(n, int) else None for n in tensor.shape)
    return TensorInfo(shape, np.dtype(_DTYPES[tensor.type]))
