"""What this process may use of the machine's processor."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # respects taskset and cpusets; Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> frozenset[str]:
    """Instruction sets by their names in /proc/cpuinfo; none where it does not tell them, as on ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
