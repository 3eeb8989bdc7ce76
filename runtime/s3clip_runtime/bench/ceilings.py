"""What the machine itself reaches: the rate of plain matrix products, beside which a model's rate is seen.

    python -m s3clip_runtime.bench.ceilings SIZE

In a process of its own, because a BLAS library reads its number of threads when it is loaded.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

from s3clip_runtime.bench.records import Ceiling
from s3clip_runtime.doctor.machine import read_apart
from s3clip_runtime.errors import BackendError

SIZE: Final = 1536
"""Rows and columns: 9 MB a matrix, more than a core's own cache, and 0.1 s a product on one slow core."""

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS: Final = 1.0
_TIMEOUT_S: Final = 120.0


def matmul_ceiling(threads: int, size: int = SIZE) -> Ceiling:
    """The best rate of float32 products of numpy's BLAS library within a second.

    Args:
        threads: that it may use.
        size: rows and columns of the square matrices.

    Raises:
        BackendError: the process failed.
    """
    variables = [f"{name}={threads}" for name in _THREAD_VARIABLES]
    command = [sys.executable, "-P", "-m", "s3clip_runtime.bench.ceilings", str(size)]
    found = read_apart(["env", *variables, *command], _TIMEOUT_S)
    if "gflops" not in found:
        raise BackendError(f"the matrix product of numpy failed: {found.get('error')}; reinstall numpy")
    return Ceiling(name=f"fp32 matmul, threads {threads}", gflops=found["gflops"])


def measure(size: int) -> float:
    """10^9 operations a second of the fastest product of two float32 (size, size)."""
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    out = a @ b  # the first one starts the threads
    best_s, end_s = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        np.matmul(a, b, out=out)
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * size**3 / best_s / 1e9


if __name__ == "__main__":
    print(json.dumps({"gflops": measure(int(sys.argv[1]))}))
