"""What this process may use of the machine's processor."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16"})
_INT8: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})

_NEEDS: Final[Mapping[str, tuple[frozenset[str], ...]]] = {"bf16": (_BFLOAT16,), "int8": (_BFLOAT16, _INT8)}
"""For each precision, sets of instructions of which one each must be there. Libraries compute in float32
without them, which would be another precision than asked."""


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


def lacking_instructions(precision: str, flags: Collection[str]) -> str | None:
    """What a CPU with these flags, named as in /proc/cpuinfo, lacks for a precision; None if nothing."""
    for one_of in _NEEDS.get(precision, ()):
        if one_of.isdisjoint(flags):
            return (
                f"{precision} needs a CPU with one of {', '.join(sorted(one_of))}, and this one has none; "
                "use another target"
            )
    return None
