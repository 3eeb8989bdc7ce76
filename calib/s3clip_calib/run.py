"""Graphs in memory on ONNX Runtime's CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.cpus import usable_cpus

Feed = Mapping[str, NDArray[Any]]
Run = Callable[[Feed], dict[str, NDArray[Any]]]


@contextmanager
def open_graph(model: onnx.ModelProto, *, threads: int | None = None) -> Iterator[Run]:
    """A function that runs the graph: it takes what it needs of a feed, and gives outputs by name.

    Args:
        model: whose products are computed as the file says; large graphs are freed with the block.
        threads: of one operator; None takes all CPUs that this process may use.

    Raises:
        BackendError: onnxruntime is missing, or the graph cannot be loaded or run.
    """
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            f'onnxruntime cannot be imported ({error}); pip install "s3clip[calib]"'
        ) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # the errors of ONNX Runtime have no base class but Exception
        raise BackendError(f"ONNX Runtime cannot load graph {model.graph.name}: {error}") from error
    inputs = [one.name for one in session.get_inputs()]
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> dict[str, NDArray[Any]]:
        try:
            return dict(zip(names, session.run(names, {name: feed[name] for name in inputs}), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot run graph {model.graph.name}: {error}") from error

    yield run
