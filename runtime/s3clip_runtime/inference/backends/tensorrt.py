"""TensorRT 10.3 to 11: one engine on GPU 0. `tensorrt` is imported only when a session is opened.

Only calls that exist in all these versions are used. Memory is allocated once, for the largest batch of the
engine's profile; a batch is padded to its bucket, and from the second run of a bucket on it is one launch of
a captured CUDA graph.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import TensorInfo, cuda
from s3clip_runtime.inference.backends.batches import Batches, bucket_of
from s3clip_runtime.inference.manifest import Engine

if TYPE_CHECKING:
    import tensorrt

_LOG = logging.getLogger(__name__)

_DTYPES = {
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "HALF": np.float16,
    "FLOAT": np.float32,
}
_REBUILD = "build it for this machine with s3clip-export engines BUNDLE on it"


@dataclass(slots=True)
class _Bucket:
    """An execution context set to one batch size, and its run as a CUDA graph once that is captured."""

    context: tensorrt.IExecutionContext
    graph: cuda.CapturedGraph | None = None


class TensorRtSession:
    """`backends.Session` over one TensorRT engine.

    For a device hand-over there are also its parts: `upload`, `enqueue`, `download` and `buffer`.

    Args:
        path: the engine's file.
        entry: what the manifest says of it; it must fit this machine and the file.
        stream: where all work is enqueued; None opens one of its own. A given one stays the caller's.

    Attributes:
        batches: its tensors, and the check of arrays against them.
        stream: where its work is enqueued.
        capture_problem: why runs are enqueued one by one instead of launched as CUDA graphs, None if nothing
            spoke against graphs so far.

    Raises:
        BackendError: there is no driver or no TensorRT, the engine was built for another TensorRT, compute
            capability or GPU, its tensors are not those of the entry, or the GPU has not enough memory.
    """

    def __init__(self, path: Path, entry: Engine, *, stream: cuda.Stream | None = None) -> None:
        # The order matters: a TensorRT object that is made without a driver ends the process. `cuda.gpu`,
        # asked by the first check, refuses if there is none.
        _check_gpu(path, entry)
        self._trt = _import_tensorrt()
        _check_version(path, entry, self._trt.__version__)
        self._path = path
        self._profile = entry.profile
        self.capture_problem: str | None = None
        with ExitStack() as opened:
            runtime, engine = _load(self._trt, path)
            self.batches = _tensors(self._trt, engine, path, entry)
            self.stream = stream if stream is not None else opened.enter_context(cuda.Stream())
            self._device = {
                name: opened.enter_context(cuda.DeviceBuffer(self._profile[2] * _row_bytes(info)))
                for name, info in self._tensors.items()
            }
            for buffer in self._device.values():
                # Rows of the padding that were never written must still be valid, platform ids above all.
                self.stream.clear(buffer)
            # Engines without activations ask for none, and CUDA gives no buffer of no bytes.
            self._scratch = opened.enter_context(cuda.DeviceBuffer(max(1, int(engine.device_memory_size_v2))))
            self.stream.wait()
            self._uploading: set[str] = set()
            self._pinned: dict[str, cuda.PinnedArray] = {}
            self._buckets: dict[int, _Bucket] = {}
            self._runtime: tensorrt.Runtime | None = runtime
            self._engine: tensorrt.ICudaEngine | None = engine
            self._opened: ExitStack | None = opened.pop_all()

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Name and kind of every input."""
        return self.batches.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Name and kind of every output."""
        return self.batches.outputs

    @property
    def device(self) -> str:
        """Where it runs: "cuda"."""
        return "cuda"

    @property
    def largest(self) -> int:
        """The largest batch of the engine's profile, which `upload` and `enqueue` take at once."""
        return self._profile[2]

    @property
    def graph_captured(self) -> bool:
        """Whether every batch size that was run so far is a captured CUDA graph."""
        return bool(self._buckets) and all(bucket.graph is not None for bucket in self._buckets.values())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the engine, see `backends.Session.run`."""
        self._check_open()
        return self.batches.run(inputs, self._run_piece)

    def close(self) -> None:
        """Free the engine and all its memory. A second call does nothing."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        with opened:  # what is registered last is done first
            for pinned in self._pinned.values():
                opened.callback(pinned.close)
            opened.callback(self._drop_engine)
            for graph in [bucket.graph for bucket in self._buckets.values() if bucket.graph is not None]:
                opened.callback(graph.close)
            opened.callback(self.stream.wait)  # nothing may be freed while it is in use

    def upload(self, name: str, rows: NDArray[Any]) -> None:
        """Copy up to `largest` rows to an input's device buffer; they may be changed once this returns.

        Raises:
            BackendError: the session is closed, or CUDA failed.
        """
        self._check_open()
        if name in self._uploading:
            self.stream.wait()  # the copy before may still be reading the pinned memory
        self._uploading.add(name)
        staged = self._host(name)[: len(rows)]
        staged[...] = rows
        self.stream.to_device(self._device[name], staged)

    def enqueue(self, batch: int) -> None:
        """Enqueue a run over the first `batch` rows of the input buffers, 1 to `largest`.

        Raises:
            BackendError: the session is closed, the engine refuses the batch, or CUDA failed.
        """
        self._check_open()
        size = bucket_of(batch, self._profile)
        if size not in self._buckets:
            self._buckets[size] = self._first_run(size)
            return
        bucket = self._buckets[size]
        if bucket.graph is not None:
            self.stream.launch(bucket.graph)
        else:
            self._execute(bucket.context)

    def download(self, names: Sequence[str], batch: int) -> dict[str, NDArray[Any]]:
        """Wait for the runs and copy the first `batch` rows of outputs, or of inputs, to new arrays.

        Raises:
            BackendError: the session is closed, or CUDA failed, also in a run that was enqueued before.
        """
        self._check_open()
        staged = {name: self._host(name)[:batch] for name in names}
        for name, rows in staged.items():
            self.stream.to_host(rows, self._device[name])
        self.stream.wait()
        self._uploading.clear()
        return {name: rows.copy() for name, rows in staged.items()}

    def buffer(self, name: str) -> cuda.DeviceBuffer:
        """Device memory of an input or output, rows one after the other; it lives as long as the session."""
        return self._device[name]

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of an input or output."""
        return _row_bytes(self._tensors[name])

    @property
    def _tensors(self) -> dict[str, TensorInfo]:
        return {**self.batches.inputs, **self.batches.outputs}

    def _run_piece(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        batch = len(next(iter(inputs.values())))
        for name, array in inputs.items():
            self.upload(name, array)
        self.enqueue(batch)
        return self.download(list(self.outputs), batch)

    def _first_run(self, size: int) -> _Bucket:
        """Run a batch size for the first time, then capture it for all later times."""
        bucket = _Bucket(self._context(size))
        # TensorRT prepares itself for new shapes in this run, which cannot be captured.
        self._execute(bucket.context)
        self.stream.wait()
        if self.capture_problem is None:
            try:
                bucket.graph = self.stream.capture(lambda: self._execute(bucket.context))
            except BackendError as error:
                self.capture_problem = str(error)
                _LOG.warning("%s runs without CUDA graphs, which is slower: %s", self._path, error)
        return bucket

    def _context(self, size: int) -> tensorrt.IExecutionContext:
        """A context of its own for every batch size: a captured graph must not see its context change."""
        # All share one scratch memory, because all run on one stream and so never at the same time.
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        assert self._engine is not None  # open, as the callers have checked
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(f"{self._path}: TensorRT gives no execution context; its log has the reason")
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        for name, info in self.batches.inputs.items():
            shape = (size, *(n for n in info.shape[1:] if n is not None))
            if not context.set_input_shape(name, shape):
                raise BackendError(
                    f"{self._path}: the engine refuses shape {shape} of input {name}, its profile is "
                    f"{self._profile}; {_REBUILD}"
                )
        for name, buffer in self._device.items():
            if not context.set_tensor_address(name, buffer.address):
                raise BackendError(f"{self._path}: the engine takes no memory for {name}; {_REBUILD}")
        return context

    def _execute(self, context: tensorrt.IExecutionContext) -> None:
        if not context.execute_async_v3(self.stream.handle):
            raise BackendError(f"{self._path}: the run on cuda failed; TensorRT's log has the reason")

    def _host(self, name: str) -> NDArray[Any]:
        """Pinned memory of `largest` rows, made when an array first comes from or goes to the host."""
        if name not in self._pinned:
            info = self._tensors[name]
            shape = (self.largest, *(n for n in info.shape[1:] if n is not None))
            self._pinned[name] = cuda.PinnedArray(shape, info.dtype)
        return self._pinned[name].array

    def _drop_engine(self) -> None:
        """Destroy contexts before their engine, and the engine before its runtime."""
        self._buckets.clear()
        self._engine = None
        self._runtime = None

    def _check_open(self) -> None:
        if self._opened is None:
            raise BackendError(f"{self._path}: the session is closed; open a new one")


def _import_tensorrt() -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"tensorrt cannot be imported ({error}); install it as NVIDIA's guide says for this machine, "
            "on a Jetson take JetPack's own"
        ) from error


def _check_gpu(path: Path, entry: Engine) -> None:
    here = cuda.gpu()
    pairs = {
        "compute capability": (entry.compute_capability, here.compute_capability),
        "GPU": (entry.gpu, here.name),
    }
    for what, (built, found) in pairs.items():
        if built != found:
            raise BackendError(
                f"{path}: the engine was built for {what} {built}, here is {found}; {_REBUILD}"
            )


def _check_version(path: Path, entry: Engine, found: str) -> None:
    if entry.tensorrt != found:
        raise BackendError(
            f"{path}: the engine was built by TensorRT {entry.tensorrt}, here is {found}; {_REBUILD}"
        )


def _load(trt: ModuleType, path: Path) -> tuple[tensorrt.Runtime, tensorrt.ICudaEngine]:
    """Runtime and engine; the runtime must outlive the engine."""
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    runtime: tensorrt.Runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{path}: TensorRT cannot load it, its log has the reason; {_REBUILD}")
    return runtime, engine


def _tensors(trt: ModuleType, engine: tensorrt.ICudaEngine, path: Path, entry: Engine) -> Batches:
    """The engine's tensors, which must be those of the entry."""
    inputs: dict[str, TensorInfo] = {}
    outputs: dict[str, TensorInfo] = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        side[name] = _info(engine, path, name)
    for kind, found, told in (("input", inputs, entry.inputs), ("output", outputs, entry.outputs)):
        for name in sorted({*found, *told}):
            its, text = told.get(name, "absent"), str(found.get(name, "absent"))
            if its != text:
                raise BackendError(
                    f"{path}: {kind} {name} must be {its} as the manifest says, the engine has {text}; "
                    f"{_REBUILD}"
                )
    return Batches(path, MappingProxyType(inputs), MappingProxyType(outputs), entry.profile[2])


def _info(engine: tensorrt.ICudaEngine, path: Path, name: str) -> TensorInfo:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise BackendError(f"{path}: {name} has type {kind}; supported are {', '.join(_DTYPES)}")
    info = TensorInfo(
        tuple(None if n < 0 else int(n) for n in engine.get_tensor_shape(name)), np.dtype(_DTYPES[kind])
    )
    if info.shape[:1] != (None,) or None in info.shape[1:]:
        raise BackendError(
            f"{path}: {name} is {info}; only the first dimension, the batch, may vary and must; {_REBUILD}"
        )
    return info


def _row_bytes(info: TensorInfo) -> int:
    return int(np.prod([n for n in info.shape[1:] if n is not None])) * info.dtype.itemsize
