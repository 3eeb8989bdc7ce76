"""A GPU made of host memory: the parts of `cuda.bindings.runtime` and `tensorrt` that the runtime uses.

As strict as the real ones where mistakes are likely: what is enqueued runs only when its stream is waited
for, new memory holds garbage, every address must lie in live memory, a capture records without running, and a
context whose graph was captured must not change. `FakeGpu.violations` lists what a real GPU would not tell.
An engine file is JSON with the profile and an ONNX graph, which ONNX Runtime executes on the CPU.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_bundle import manifest_of

from s3clip_runtime.inference.backends import TensorInfo, cuda
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.manifest import Artefact, Engine, Precision, Role, Target
from s3clip_runtime.inference.records import sha256_file

VERSION = "10.16.1.11"
GPU = cuda.Gpu("NVIDIA Imaginary 1", "8.6", "13.0 (580.95.05)")
GARBAGE = 0xA5
SCRATCH = 4096


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNotReady = 600
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


Work = Callable[[], None]


class Handle:
    """An opaque handle with an address, as cuda-python has them."""

    _next = 0x1000

    def __init__(self) -> None:
        Handle._next += 0x10
        self._address = Handle._next

    def __int__(self) -> int:
        return self._address


class FakeStream(Handle):
    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Work] = []
        self.capture: list[Work] | None = None
        self.invalid = False

    def enqueue(self, work: Work) -> None:
        (self.queue if self.capture is None else self.capture).append(work)


class FakeGraph(Handle):
    def __init__(self, work: list[Work]) -> None:
        super().__init__()
        self.work = work


class FakeEvent(Handle):
    """Takes the host's time when its stream reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached_s: float | None = None


class FakeGpu:
    """The state of the GPU, and what tests ask of it.

    Attributes:
        calls: number of calls of each CUDA function.
        failing: functions of the CUDA runtime that give this error instead of working.
        capturable: whether engines can be captured.
        violations: misuse that a real GPU would answer with wrong numbers or a crash.
        runs: inputs of every execution of an engine, by name.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failing: dict[str, Error] = {}
        self.capturable = True
        self.violations: list[str] = []
        self.runs: list[dict[str, NDArray[Any]]] = []
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, FakeStream] = {}
        self.graphs: set[int] = set()
        self.events: set[int] = set()

    def alive(self) -> dict[str, int]:
        """What is allocated and not yet given back."""
        kinds = {
            "device": self.device,
            "pinned": self.pinned,
            "streams": self.streams,
            "graphs": self.graphs,
            "events": self.events,
        }
        return {name: len(kind) for name, kind in kinds.items() if kind}

    def view(self, address: int, count: int, memory: dict[int, Any]) -> NDArray[np.uint8]:
        """The bytes at an address, which must lie in one live allocation."""
        for begin, block in memory.items():
            if begin <= address and address + count <= begin + len(block):
                return np.frombuffer(block, np.uint8)[address - begin : address - begin + count]
        self.violations.append(f"{count} bytes at {address:#x} are not allocated")
        return np.zeros(count, np.uint8)

    def allocate(self, memory: dict[int, Any], count: int) -> tuple[Error, int | None]:
        for stream in self.streams.values():
            if stream.capture is not None:
                stream.invalid = True
                return Error.cudaErrorStreamCaptureUnsupported, None
        block = (ctypes.c_ubyte * count)()
        ctypes.memset(block, GARBAGE, count)
        memory[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    def free(self, memory: dict[int, Any], address: int) -> tuple[Error]:
        if any(stream.queue for stream in self.streams.values()):
            self.violations.append("memory is freed while work is enqueued")
        return (Error.cudaErrorInvalidValue if memory.pop(address, None) is None else Error.cudaSuccess,)


class Runtime:
    """`cuda.bindings.runtime`: every public method is a function of it."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def cudaGetLastError(self) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaGetErrorName(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, f"text of {int(error)}".encode()

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        return self._gpu.allocate(self._gpu.device, size)

    def cudaFree(self, devPtr: int) -> tuple[Error]:
        return self._gpu.free(self._gpu.device, devPtr)

    def cudaMallocHost(self, size: int) -> tuple[Error, int | None]:
        return self._gpu.allocate(self._gpu.pinned, size)

    def cudaFreeHost(self, ptr: int) -> tuple[Error]:
        return self._gpu.free(self._gpu.pinned, ptr)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: FakeStream) -> tuple[Error]:
        stream.enqueue(lambda: self._gpu.view(devPtr, count, self._gpu.device).fill(value))
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: CopyKind, stream: FakeStream
    ) -> tuple[Error]:
        device, pinned = self._gpu.device, self._gpu.pinned
        to = pinned if kind == CopyKind.cudaMemcpyDeviceToHost else device
        of = pinned if kind == CopyKind.cudaMemcpyHostToDevice else device

        def copy() -> None:
            self._gpu.view(dst, count, to)[...] = self._gpu.view(src, count, of)

        stream.enqueue(copy)
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, FakeStream]:
        assert flags == 1
        stream = FakeStream()
        self._gpu.streams[int(stream)] = stream
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Error]:
        gone = self._gpu.streams.pop(int(stream), None)
        return (Error.cudaErrorInvalidValue if gone is None else Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: FakeStream) -> tuple[Error]:
        if stream.capture is not None:
            stream.invalid = True
            return (Error.cudaErrorStreamCaptureUnsupported,)
        while stream.queue:
            stream.queue.pop(0)()
        return (Error.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Error, FakeEvent]:
        event = FakeEvent()
        self._gpu.events.add(int(event))
        return Error.cudaSuccess, event

    def cudaEventRecord(self, event: FakeEvent, stream: FakeStream) -> tuple[Error]:
        event.reached_s = None

        def reach() -> None:
            event.reached_s = time.perf_counter()

        stream.enqueue(reach)
        return (Error.cudaSuccess,)

    def cudaEventElapsedTime(self, start: FakeEvent, end: FakeEvent) -> tuple[Error, float | None]:
        if start.reached_s is None or end.reached_s is None:
            return Error.cudaErrorNotReady, None
        return Error.cudaSuccess, (end.reached_s - start.reached_s) * 1e3

    def cudaEventDestroy(self, event: FakeEvent) -> tuple[Error]:
        self._gpu.events.remove(int(event))
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: CaptureMode) -> tuple[Error]:
        assert mode == CaptureMode.cudaStreamCaptureModeThreadLocal
        stream.capture, stream.invalid = [], False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> tuple[Error, FakeGraph | None]:
        work, stream.capture = stream.capture, None
        if work is None:
            return Error.cudaErrorInvalidValue, None
        if stream.invalid:
            return Error.cudaErrorStreamCaptureInvalidated, None
        return Error.cudaSuccess, self._graph(work)

    def cudaGraphInstantiate(self, graph: FakeGraph, flags: int) -> tuple[Error, FakeGraph]:
        assert flags == 0
        return Error.cudaSuccess, self._graph(graph.work)

    def cudaGraphLaunch(self, graphExec: FakeGraph, stream: FakeStream) -> tuple[Error]:
        for work in graphExec.work:
            stream.enqueue(work)
        return (Error.cudaSuccess,)

    def cudaGraphDestroy(self, graph: FakeGraph) -> tuple[Error]:
        self._gpu.graphs.remove(int(graph))
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: FakeGraph) -> tuple[Error]:
        self._gpu.graphs.remove(int(graphExec))
        return (Error.cudaSuccess,)

    def _graph(self, work: list[Work]) -> FakeGraph:
        graph = FakeGraph(work)
        self._gpu.graphs.add(int(graph))
        return graph


FUNCTIONS = tuple(name for name in vars(Runtime) if name.startswith("cuda"))
CONSTANTS: dict[str, object] = {
    "cudaError_t": Error,
    "cudaMemcpyKind": CopyKind,
    "cudaStreamCaptureMode": CaptureMode,
    "cudaStreamNonBlocking": 1,
}


def runtime_module(gpu: FakeGpu) -> ModuleType:
    """The module `cuda.bindings.runtime`."""
    module, runtime = ModuleType("cuda.bindings.runtime"), Runtime(gpu)

    def function(name: str) -> Callable[..., tuple[object, ...]]:
        real = getattr(runtime, name)

        @functools.wraps(real)
        def call(*arguments: Any) -> tuple[object, ...]:  # noqa: ANN401
            gpu.calls[name] += 1
            if name in gpu.failing:
                if name == "cudaStreamEndCapture":  # ends the capture also if it fails
                    gpu.streams[int(arguments[0])].invalid = True
                    real(*arguments)
                return gpu.failing[name], None
            result: tuple[object, ...] = real(*arguments)
            return result

        return call

    module.__dict__.update(CONSTANTS, **{name: function(name) for name in FUNCTIONS})
    return module


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    UINT8 = 5
    INT64 = 8


class Mode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Strategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class FakeLogger:
    ERROR, WARNING = 1, 2

    def __init__(self, severity: int) -> None:
        self.severity = severity


_TYPES = {"uint8": DataType.UINT8, "int64": DataType.INT64, "float32": DataType.FLOAT}


class FakeEngine:
    """`ICudaEngine` over one plan."""

    device_memory_size_v2 = SCRATCH

    def __init__(self, gpu: FakeGpu, plan: bytes) -> None:
        data = json.loads(plan)
        self.gpu = gpu
        self.profile: list[int] = data["profile"]
        self.types: dict[str, str] = data.get("types", {})
        self.graph = onnxruntime.InferenceSession(
            base64.b64decode(data["onnx"]), providers=["CPUExecutionProvider"]
        )
        self.inputs = {tensor.name: tensor for tensor in self.graph.get_inputs()}
        self.outputs = {tensor.name: tensor for tensor in self.graph.get_outputs()}
        self.tensors = {**self.inputs, **self.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.tensors)[index])

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        if name in self.types:
            return DataType[self.types[name]]
        return _TYPES[self.numpy_type(name).name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else -1 for n in self.tensors[name].shape)

    def create_execution_context(self, strategy: Strategy = Strategy.STATIC) -> FakeContext:
        return FakeContext(self, strategy)

    def numpy_type(self, name: str) -> np.dtype[Any]:
        names = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float)": "float32"}
        return np.dtype(names[self.tensors[name].type])


class FakeContext:
    """`IExecutionContext`."""

    def __init__(self, engine: FakeEngine, strategy: Strategy) -> None:
        self._engine = engine
        self._needs_memory = strategy is Strategy.USER_MANAGED
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._warm = False
        self._captured = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= SCRATCH
        self._engine.gpu.view(memory, size, self._engine.gpu.device)
        self._needs_memory = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._captured:
            self._engine.gpu.violations.append("a context changed after its graph was captured")
        known = self._engine.get_tensor_shape(name)
        low, _, high = self._engine.profile
        if name not in self._engine.inputs or shape[1:] != known[1:] or not low <= shape[0] <= high:
            return False
        self._shapes[name], self._warm = shape, False
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.tensors or not isinstance(memory, int):
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self._engine.gpu
        stream = gpu.streams[stream_handle]
        ready = self._shapes.keys() == self._engine.inputs.keys() and (
            self._addresses.keys() == self._engine.tensors.keys()
        )
        if not ready or self._needs_memory:
            return False
        if stream.capture is not None:
            if not self._warm or not gpu.capturable:
                stream.invalid = True
                return False
            self._captured = True
        self._warm = True
        stream.enqueue(self._run)
        return True

    def _run(self) -> None:
        engine = self._engine
        feeds = {name: self._array(name, shape).copy() for name, shape in self._shapes.items()}
        engine.gpu.runs.append(feeds)
        batch = next(iter(self._shapes.values()))[0]
        for name, array in zip(engine.outputs, engine.graph.run(None, feeds), strict=True):
            self._array(name, (batch, *engine.get_tensor_shape(name)[1:]))[...] = array

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        kind = self._engine.numpy_type(name)
        count = int(np.prod(shape)) * kind.itemsize
        memory = self._engine.gpu.view(self._addresses[name], count, self._engine.gpu.device)
        array: NDArray[Any] = memory.view(kind).reshape(shape)
        return array


def tensorrt_module(gpu: FakeGpu) -> ModuleType:
    """The module `tensorrt`."""

    class FakeRuntime:
        def __init__(self, logger: FakeLogger) -> None:
            assert isinstance(logger, FakeLogger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
            try:
                return FakeEngine(gpu, serialized_engine)
            except ValueError:
                return None

    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__=VERSION,
        Logger=FakeLogger,
        Runtime=FakeRuntime,
        DataType=DataType,
        TensorIOMode=Mode,
        ExecutionContextAllocationStrategy=Strategy,
    )
    return module


def install(patch: pytest.MonkeyPatch) -> FakeGpu:
    """Let the runtime find this GPU, its driver, cuda-python and TensorRT."""
    gpu = FakeGpu()
    patch.setitem(sys.modules, "cuda.bindings.runtime", runtime_module(gpu))
    patch.setitem(sys.modules, "tensorrt", tensorrt_module(gpu))
    patch.setattr(cuda, "driver_problem", lambda: None)
    patch.setattr("s3clip_runtime.inference.targets.driver_problem", lambda: None)
    patch.setattr(cuda, "gpu", lambda: GPU)
    return gpu


def write_plan(
    onnx: Path,
    plan: Path,
    profile: tuple[int, int, int] = (1, 8, 64),
    *,
    types: Mapping[str, str] | None = None,
) -> Engine:
    """Write an engine of an ONNX file and return its entry; `types` gives tensors another TensorRT type."""
    graph = base64.b64encode(onnx.read_bytes()).decode()
    plan.write_text(json.dumps({"profile": profile, "onnx": graph, "types": dict(types or {})}))
    session = OrtSession(onnx, threads=1)

    def told(tensors: Any) -> dict[str, str]:  # noqa: ANN401
        infos: dict[str, TensorInfo] = dict(tensors)
        return {name: str(info) for name, info in infos.items()}

    return Engine(
        tensorrt=VERSION,
        compute_capability=GPU.compute_capability,
        gpu=GPU.name,
        driver=GPU.driver,
        onnx_sha256=sha256_file(onnx),
        profile=profile,
        inputs=told(session.inputs),
        outputs=told(session.outputs),
    )


def add_engines(
    folder: Path,
    precision: Precision = "fp16",
    *,
    profile: tuple[int, int, int] = (1, 8, 64),
    changes: Mapping[str, str] | None = None,
) -> Bundle:
    """Give a tiny bundle engines; `changes` are made to every engine's entry."""
    manifest = manifest_of(folder)
    target = Target("tensorrt", precision)
    artefacts = list(manifest.artefacts)
    roles: tuple[Role, ...] = ("enhance", "patchify", "encode")
    for role in roles:
        plan = folder / f"{role}.{precision}.engine"
        entry = write_plan(folder / f"{role}.onnx", plan, profile).model_copy(update=dict(changes or {}))
        artefacts.append(
            Artefact(
                role=role,
                file=plan.name,
                precision=precision,
                backend="tensorrt",
                opset=18,
                sha256=sha256_file(plan),
                bytes=plan.stat().st_size,
                engine=entry,
            )
        )
    proof = manifest.proofs[0].model_copy(update={"target": str(target), "device": GPU.name})
    write_manifest(
        folder,
        manifest.model_copy(update={"artefacts": tuple(artefacts), "proofs": (*manifest.proofs, proof)}),
    )
    return Bundle.open(folder)
