"""The GPU: whether it can be used, what it is, and owned memory, streams and graphs on it.

`driver_problem` and `gpu` ask the driver itself and need nothing installed. All else goes through
`cuda.bindings.runtime` of the package cuda-python, which is imported by the first call. All of it uses GPU 0
of those that CUDA_VISIBLE_DEVICES leaves.
"""

from __future__ import annotations

import ctypes
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference import driver


@dataclass(frozen=True, slots=True)
class Gpu:
    """GPU 0.

    Attributes:
        name: as NVIDIA calls it.
        compute_capability: like "8.6".
        driver: the CUDA version that the driver offers, like "13.0"; where the kernel driver tells its own,
            like "13.0 (580.95.05)".
    """

    name: str
    compute_capability: str
    driver: str


def driver_problem() -> str | None:
    """Why no GPU can be used here, a clause for a sentence; None if one can be.

    Ask before any object of TensorRT is made: without a driver TensorRT ends the process with a segmentation
    fault instead of an error.
    """
    try:
        library = driver.load()
        driver.ask(library, "cuInit", 0)
        count = driver.gpu_count(library)
    except OSError as error:
        return f"the NVIDIA driver is not installed ({error})"
    except driver.DriverError as error:
        return f"the NVIDIA driver does not start ({error})"
    return None if count else "the NVIDIA driver sees no GPU"


def require_driver() -> None:
    """Return if a GPU can be used.

    Raises:
        BackendError: it cannot, and why.
    """
    problem = driver_problem()
    if problem is not None:
        raise BackendError(
            f"cuda cannot be used: {problem}; install the driver and make the GPU visible, "
            "or ask for --device cpu"
        )


def gpu() -> Gpu:
    """What GPU 0 is.

    Raises:
        BackendError: no GPU can be used.
    """
    require_driver()
    library = driver.load()
    try:
        name, capability = driver.describe(library, 0)
        offered = driver.cuda_version(library)
    except driver.DriverError as error:
        raise BackendError(f"GPU 0 does not answer: {error}; check it with nvidia-smi") from error
    kernel = driver.kernel_driver()
    return Gpu(name, capability, offered if kernel is None else f"{offered} ({kernel})")


def _runtime() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(
            f'cuda.bindings.runtime cannot be imported ({error}); pip install "s3clip[trt]"'
        ) from error


def _call(name: str, *arguments: object) -> Any:  # noqa: ANN401  pointers and handles of an untyped package
    """Call a function of the CUDA runtime and return what comes after its error code.

    Raises:
        BackendError: names the call and the error.
    """
    runtime = _runtime()
    code, *results = getattr(runtime, name)(*arguments)
    if code != runtime.cudaError_t.cudaSuccess:
        # The error is also kept as "last error", which the next library to ask would take for its own.
        runtime.cudaGetLastError()
        raise BackendError(f"{name} failed: {_runtime_error(runtime, code)}; check the GPU with nvidia-smi")
    return results[0] if results else None


def _runtime_error(runtime: ModuleType, code: Any) -> str:  # noqa: ANN401  an enum of an untyped package
    texts = [getattr(runtime, name)(code)[1] for name in ("cudaGetErrorName", "cudaGetErrorString")]
    return ", ".join(text.decode() if isinstance(text, bytes) else str(text) for text in texts)


class _Owned(ABC):
    """Closed by whoever opened it: as a context manager or by `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give it back to CUDA. A second call does nothing."""


class Stream(_Owned):
    """A CUDA stream that does not wait for the default stream.

    Raises:
        BackendError: it cannot be made; later, a call on it failed, or an earlier one that ran on it.
    """

    def __init__(self) -> None:
        self._stream: Any = _call("cudaStreamCreateWithFlags", _runtime().cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """Its address, as TensorRT takes it."""
        return int(self._stream)

    def clear(self, buffer: DeviceBuffer) -> None:
        """Enqueue setting every byte of the buffer to zero."""
        _call("cudaMemsetAsync", buffer.address, 0, buffer.nbytes, self._stream)

    def to_device(self, buffer: DeviceBuffer, array: NDArray[Any]) -> None:
        """Enqueue a copy of a contiguous array to the buffer's begin. Leave the array alone until `wait`."""
        kind = _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        buffer.check(0, array.nbytes)
        _call("cudaMemcpyAsync", buffer.address, array.ctypes.data, array.nbytes, kind, self._stream)

    def to_host(self, array: NDArray[Any], buffer: DeviceBuffer) -> None:
        """Enqueue a copy of the buffer's begin to a contiguous array, which is valid after `wait`."""
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        buffer.check(0, array.nbytes)
        _call("cudaMemcpyAsync", array.ctypes.data, buffer.address, array.nbytes, kind, self._stream)

    def on_device(
        self, target: DeviceBuffer, target_byte: int, source: DeviceBuffer, source_byte: int, count: int
    ) -> None:
        """Enqueue a copy of `count` bytes from one buffer to another."""
        target.check(target_byte, count)
        source.check(source_byte, count)
        _call(
            "cudaMemcpyAsync",
            target.address + target_byte,
            source.address + source_byte,
            count,
            _runtime().cudaMemcpyKind.cudaMemcpyDeviceToDevice,
            self._stream,
        )

    def wait(self) -> None:
        """Wait until everything enqueued is done."""
        _call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """Record what `work` enqueues on this stream, without running it.

        Raises:
            BackendError: something in `work` cannot be captured; the stream is usable again.
        """
        # Thread-local: what other threads of the process do with CUDA must not break the capture.
        _call(
            "cudaStreamBeginCapture",
            self._stream,
            _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            work()
        except BaseException:
            self._abandon_capture()
            raise
        graph = _call("cudaStreamEndCapture", self._stream)
        try:
            return CapturedGraph(_call("cudaGraphInstantiate", graph, 0))
        finally:
            _call("cudaGraphDestroy", graph)

    def launch(self, graph: CapturedGraph) -> None:
        """Enqueue all that the graph has recorded."""
        _call("cudaGraphLaunch", graph.handle, self._stream)

    def mark(self, event: Event) -> None:
        """Enqueue the event: it takes the time at which everything enqueued before is done."""
        _call("cudaEventRecord", event.handle, self._stream)

    def close(self) -> None:
        """Destroy the stream; what is enqueued still runs. A second call does nothing."""
        stream, self._stream = self._stream, None
        if stream is not None:
            _call("cudaStreamDestroy", stream)

    def _abandon_capture(self) -> None:
        """End a capture that failed; the error that matters is the one that made it fail."""
        runtime = _runtime()
        code, graph = runtime.cudaStreamEndCapture(self._stream)
        if code == runtime.cudaError_t.cudaSuccess:
            runtime.cudaGraphDestroy(graph)
        runtime.cudaGetLastError()


class Event(_Owned):
    """A point of a stream whose time the GPU takes; set it by `Stream.mark`.

    Raises:
        BackendError: it cannot be made.
    """

    def __init__(self) -> None:
        self.handle: Any = _call("cudaEventCreate")

    def milliseconds_to(self, later: Event) -> float:
        """Time from this mark to another; both must have been reached, see `Stream.wait`.

        Raises:
            BackendError: one was never marked, or is not reached yet.
        """
        return float(_call("cudaEventElapsedTime", self.handle, later.handle))

    def close(self) -> None:
        """Destroy the event. A second call does nothing."""
        handle, self.handle = self.handle, None
        if handle is not None:
            _call("cudaEventDestroy", handle)


class CapturedGraph(_Owned):
    """A captured and instantiated CUDA graph, made by `Stream.capture`. It holds addresses, not memory."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401  a handle of an untyped package
        self.handle: Any = handle

    def close(self) -> None:
        """Destroy the graph. A second call does nothing."""
        handle, self.handle = self.handle, None
        if handle is not None:
            _call("cudaGraphExecDestroy", handle)


class DeviceBuffer(_Owned):
    """Memory of the GPU; what it holds is unknown until `Stream.clear` or a copy.

    Args:
        nbytes: its size, >= 1.

    Raises:
        BackendError: the GPU has no more memory.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._address: int | None = int(_call("cudaMalloc", nbytes))

    @property
    def address(self) -> int:
        """Where it begins.

        Raises:
            BackendError: the buffer is closed.
        """
        if self._address is None:
            raise BackendError("the device buffer is closed; open a new session")
        return self._address

    def check(self, start: int, count: int) -> None:
        """Return if the bytes lie within the buffer.

        Raises:
            BackendError: they do not.
        """
        if start < 0 or count < 0 or start + count > self.nbytes:
            raise BackendError(
                f"bytes {start} to {start + count} must lie within the device buffer of {self.nbytes} bytes; "
                "give a smaller batch"
            )

    def close(self) -> None:
        """Free the memory. A second call does nothing."""
        address, self._address = self._address, None
        if address is not None:
            _call("cudaFree", address)


class PinnedArray(_Owned):
    """A numpy array in page-locked host memory, to and from which copies run beside the GPU's work.

    Args:
        shape: of `array`, every dimension >= 1.
        dtype: of `array`.

    Raises:
        BackendError: no such memory is left.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        count = int(np.prod(shape))
        self._address: int | None = int(_call("cudaMallocHost", count * dtype.itemsize))
        memory = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(self._address)
        self._array: NDArray[Any] | None = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    @property
    def array(self) -> NDArray[Any]:
        """The array; no view of it may be kept beyond `close`.

        Raises:
            BackendError: it is closed.
        """
        if self._array is None:
            raise BackendError("the pinned array is closed; open a new session")
        return self._array

    def close(self) -> None:
        """Free the memory. A second call does nothing."""
        address, self._address = self._address, None
        self._array = None
        if address is not None:
            _call("cudaFreeHost", address)
