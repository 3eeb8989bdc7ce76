"""What a benchmark says about the machine that it ran on."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_name() -> str:
    """The processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
