"""The machine's processor: what it is, and what this process may use of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16"})
_INT8: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})

_NEEDS: Final[Mapping[str, tuple[frozenset[str], ...]]] = {"bf16": (_BFLOAT16,), "int8": (_BFLOAT16, _INT8)}
"""For each precision of OpenVINO's, sets of instructions of which one each must be there. It computes in
float32 without them, which would be another precision than asked. ONNX Runtime's int8 runs on every CPU."""


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # respects taskset and cpusets; Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name; on ARM, which tells none, the board's name.

    Args:
        root: where /proc is.
    """
    name = _cpu_field(root, "model name")
    if name:
        return name
    with contextlib.suppress(OSError):
        # The device tree ends its strings with a zero byte.
        board = (root / "proc/device-tree/model").read_text("utf-8", errors="replace").strip("\0 \n")
        if board:
            return board
    return "unknown CPU"


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Instruction sets by their names in /proc/cpuinfo, on x86 and on ARM; none where it does not tell them.

    Args:
        root: where /proc is.
    """
    return frozenset((_cpu_field(root, "flags") or _cpu_field(root, "Features")).split())


def lacking_instructions(precision: str, flags: Collection[str]) -> str | None:
    """What a CPU with these flags of `cpu_flags` lacks for a precision of OpenVINO's; None if nothing."""
    for one_of in _NEEDS.get(precision, ()):
        if one_of.isdisjoint(flags):
            return (
                f"{precision} needs a CPU with one of {', '.join(sorted(one_of))}, and this one has none; "
                "use another target"
            )
    return None


def _cpu_field(root: Path, name: str) -> str:
    """The first value of a field of /proc/cpuinfo, empty without one."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""
