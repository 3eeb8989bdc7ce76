"""OpenVINO on the CPU, in bfloat16 or with int8 weights. It is imported only when a session is opened."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.backends.batches import Batches, known_sizes
from s3clip_runtime.inference.cpus import cpu_flags, lacking_instructions, usable_cpus
from s3clip_runtime.inference.manifest import Precision

_COMPUTES_IN: Final[Mapping[Precision, str]] = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
"""Precision of everything that has no int8 weights."""

_GROUP: Final = 256
"""Activations of a token that share one int8 scale, taken anew in every run. The encoder at full size on one
core: 710 ms at 128, 661 at 256, cosine with PyTorch 0.99992 and 0.99990; at 32 nothing is quantised."""


class OpenVinoSession:
    """`backends.Session` over one ONNX file on the CPU.

    Args:
        path: a self-contained ONNX file. For "int8" its weights are int8 behind DequantizeLinear; products
            with them are then computed in int8, with the activations quantised token by token.
        precision: "fp32", "bf16" or "int8".
        threads: CPU threads, >= 1; None takes all CPUs that this process may use.
        piece: rows of one run. A batch becomes runs of so many rows, the last one padded, that go side by
            side with a thread each; only for graphs whose rows are independent. None: a batch is one run, and
            all threads work on one operator.

    Raises:
        BackendError: openvino is not installed, the CPU lacks instructions, or the graph cannot be loaded.
    """

    def __init__(
        self, path: Path, *, precision: Precision, threads: int | None = None, piece: int | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be at least 1, found {threads}; leave it out to use all CPUs")
        problem = openvino_problem(precision)
        if problem is not None:
            raise BackendError(f"{path}: cannot run in {precision} with OpenVINO: {problem}")
        self._path = path
        self._piece = piece
        self._batches, self._runs = _open(path, precision, threads or usable_cpus(), piece)

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
        """Where it runs: "cpu"."""
        return "cpu"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph, see `backends.Session.run`."""
        if self._runs is None:
            raise BackendError(f"{self._path}: the session is closed; open a new one")
        return self._batches.run(inputs, partial(self._run_batch, self._runs))

    def close(self) -> None:
        """Free the graph. A second call does nothing."""
        self._runs = None

    def _run_batch(self, runs: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:  # noqa: ANN401  untyped
        batch = len(next(iter(inputs.values())))
        rows = self._piece or batch
        made = {
            name: np.empty((batch, *known_sizes(self._path, name, info)), info.dtype)
            for name, info in self._batches.outputs.items()
        }

        def keep(request: Any, low: int) -> None:  # noqa: ANN401  untyped
            """Copies, as the request's own memory is written again; called by threads of OpenVINO."""
            for place, whole in enumerate(made.values()):
                part = whole[low : low + rows]
                part[...] = request.get_output_tensor(place).data[: len(part)]

        try:
            runs.set_callback(keep)
            for low in range(0, batch, rows):
                runs.start_async(
                    {name: _padded(a[low : low + rows], rows) for name, a in inputs.items()}, low
                )
            runs.wait_all()
        except RuntimeError as error:
            raise BackendError(f"{self._path}: the run on cpu failed: {error}") from error
        return made


def openvino_problem(precision: Precision) -> str | None:
    """Why OpenVINO cannot compute in this precision here, with the cure; None where it can."""
    lacking = lacking_instructions(precision, cpu_flags())
    if lacking is not None:
        return lacking
    try:
        importlib.import_module("openvino")
    except ImportError as error:
        return f'openvino cannot be imported ({error}); pip install "s3clip[openvino]"'
    return None


def _open(path: Path, precision: Precision, threads: int, piece: int | None) -> tuple[Batches, Any]:
    """The tensors of a graph, and OpenVINO's queue of its runs."""
    openvino: ModuleType = importlib.import_module("openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": _COMPUTES_IN[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1 if piece is None else threads,
        "ENABLE_CPU_PINNING": False,  # decoding and detection share these cores
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8" else 0,
    }
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        # Before compiling, which gives a tensor the names of what was fused into it too.
        inputs, outputs = (
            {tensor.any_name: _info(tensor) for tensor in side} for side in (model.inputs, model.outputs)
        )
        if piece is not None:
            model.reshape({name: [piece, *info.shape[1:]] for name, info in inputs.items()})
        compiled = core.compile_model(model, "CPU", settings)
        runs = openvino.AsyncInferQueue(compiled, settings["NUM_STREAMS"])
    except RuntimeError as error:
        raise BackendError(
            f"{path}: OpenVINO cannot load it in {precision}: {error}; use another target, or export again "
            "with s3clip-export"
        ) from error
    return Batches(path, MappingProxyType(inputs), MappingProxyType(outputs)), runs


def _padded(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """`count` rows in a row of memory; what lies behind the given ones does not matter."""
    if len(rows) == count:
        return np.ascontiguousarray(rows)
    padded = np.zeros((count, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded


def _info(tensor: Any) -> TensorInfo:  # noqa: ANN401  untyped
    shape = tuple(None if size.is_dynamic else size.get_length() for size in tensor.partial_shape)
    return TensorInfo(shape, np.dtype(tensor.element_type.to_dtype()))
