"""Float16 graphs on the CPU, in a process of their own.

ONNX Runtime on a CPU is known to die of a segmentation fault on float16 attention graphs. Here that is an
error with a sentence, not the end of the export.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from s3clip_runtime.errors import BundleError

Optimisation = Literal["none", "basic", "all"]

TIMEOUT_S = 1800.0
"""For all runs of one graph together; a full-size clip takes some 5 seconds on one core."""


def run_isolated(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    graph: str,
    optimisation: Optimisation = "basic",
    threads: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> list[dict[str, NDArray[Any]]]:
    """Run a graph once for each feed with ONNX Runtime on the CPU, in a child process.

    Args:
        model: the graph.
        feeds: inputs of each run, by name.
        graph: what messages call it.
        optimisation: of ONNX Runtime; beyond "basic" it may crash.
        threads: of one operator, >= 1.
        timeout_s: for all runs together.

    Returns:
        For each feed the outputs by name.

    Raises:
        BundleError: the child died, failed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="s3clip-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        for i, feed in enumerate(feeds):
            arrays: dict[str, Any] = dict(feed)
            np.savez(folder / f"feed_{i}.npz", **arrays)
        command = _command(folder, len(feeds), optimisation, threads)
        try:
            child = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise BundleError(
                f"graph {graph}: {len(feeds)} float16 runs on the CPU must end within {timeout_s:g} s and "
                "did not; give fewer clips or a faster machine"
            ) from None
        if child.returncode:
            raise BundleError(f"graph {graph}: {_cause(child.returncode, folder)}")
        return [_read(folder / f"result_{i}.npz") for i in range(len(feeds))]


def open_session(model: Path | bytes, *, optimisation: str, threads: int) -> Any:  # noqa: ANN401  untyped
    """An onnxruntime.InferenceSession on the CPU that runs nodes in the order in which the file has them.

    Probes stand right behind what they measure. The default order runs all of them at the end, and then every
    tensor is alive at once: 7.4 GB instead of 2.2 for the full-size `encode` and one clip.
    """
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = {
        "none": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "all": levels.ORT_ENABLE_ALL,
    }[optimisation]
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(arguments: Sequence[str]) -> None:
    """The child: folder with `model.onnx` and `feed_I.npz`, number of feeds, optimisation, threads.

    Writes `result_I.npz`, or `error.txt` and exits with 1.
    """
    folder, count, optimisation, threads = Path(arguments[0]), int(arguments[1]), *arguments[2:]
    try:
        _run_all(folder, count, optimisation, int(threads))
    except Exception as error:  # the errors of ONNX Runtime have no base class but Exception
        (folder / "error.txt").write_text(" ".join(str(error).split()), encoding="utf-8")
        sys.exit(1)


def _run_all(folder: Path, count: int, optimisation: str, threads: int) -> None:
    from tqdm import tqdm

    session = open_session(folder / "model.onnx", optimisation=optimisation, threads=threads)
    names = [output.name for output in session.get_outputs()]
    for i in tqdm(range(count), desc="float16 on the CPU", unit="run"):
        outputs = session.run(names, _read(folder / f"feed_{i}.npz"))
        np.savez(folder / f"result_{i}.npz", **dict(zip(names, outputs, strict=True)))


def _command(folder: Path, count: int, optimisation: str, threads: int) -> list[str]:
    # -P: a folder of the caller's that is named like a package must not be imported instead of it.
    module = [sys.executable, "-P", "-m", "s3clip_export.fp16.isolated"]
    return [*module, str(folder), str(count), optimisation, str(threads)]


def _cause(code: int, folder: Path) -> str:
    if code < 0:
        died = signal.Signals(-code).name
        cure = "give the machine more memory" if died == "SIGKILL" else "update onnxruntime"
        return f"ONNX Runtime died of {died} on the float16 graph; {cure} or export fp32 only"
    report = folder / "error.txt"
    said = report.read_text(encoding="utf-8") if report.is_file() else f"exit code {code}"
    return f"the float16 graph does not run on the CPU ({said}); export fp32 only"


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
