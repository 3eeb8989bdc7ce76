"""Cold start and peak memory of one target, in a process of its own, which may also die there.

python -m s3clip_runtime.bench.cold BUNDLE TARGET DEVICE THREADS
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3clip_runtime.bench.crops import noise_clip
from s3clip_runtime.doctor.machine import read_apart
from s3clip_runtime.errors import BackendError, S3ClipError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import Target

STARTS: Final = 3
"""The median start is told: the first one may find the files on no cache."""

TIMEOUT_S: Final = 600.0
"""A full-size graph that is compiled for its device on opening takes a minute on a small one."""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """What one target took.

    Attributes:
        start_ms: from opening the bundle, which checks every byte, to the first embedding; the interpreter's
            own start is not in it.
        peak_bytes: VmHWM of the process.
    """

    start_ms: float
    peak_bytes: int


def cold_start(folder: Path, target: Target, device: str, threads: int, *, starts: int = STARTS) -> ColdStart:
    """Start `starts` processes one after the other; the median time and the largest memory.

    Raises:
        BackendError: the target cannot run on the device, or its process died.
    """
    words = [str(folder), str(target), device, str(threads)]
    found = []
    for _ in range(starts):
        answer = read_apart([sys.executable, "-P", "-m", "s3clip_runtime.bench.cold", *words], TIMEOUT_S)
        if "error" in answer:
            raise BackendError(f"{target} on {device}: {answer['error']}")
        found.append(answer)
    times = [float(answer["start_ms"]) for answer in found]
    return ColdStart(statistics.median(times), max(int(answer["peak_bytes"]) for answer in found))


def _start(folder: Path, target: Target, device: str, threads: int) -> ColdStart:
    clip = noise_clip("lr")
    began_s = time.perf_counter()
    with Embedder(Bundle.open(folder), device=device, target=target, threads=threads) as embedder:
        embedder.embed([clip])
        start_ms = (time.perf_counter() - began_s) * 1e3
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return ColdStart(start_ms, int(peak[1]) * 1024 if peak else 0)


def main(arguments: list[str]) -> None:
    """Print the numbers as JSON, or an expected error."""
    folder, target, device, threads = arguments
    try:
        found = _start(Path(folder), Target.parse(target), device, int(threads))
    except S3ClipError as error:
        print(json.dumps({"error": " ".join(str(error).split())}))
        return
    print(json.dumps({"start_ms": found.start_ms, "peak_bytes": found.peak_bytes}))


if __name__ == "__main__":
    main(sys.argv[1:])
