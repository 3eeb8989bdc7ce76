"""Picture faults as bits of one number, for the board."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from s3clip_runtime.streams.status import PictureFault

FAULTS: tuple[PictureFault, ...] = get_args(PictureFault)


def faults_to_bits(faults: Collection[PictureFault]) -> int:
    """Bit i is set when fault i of FAULTS is there."""
    return sum(1 << place for place, fault in enumerate(FAULTS) if fault in faults)


def faults_of_bits(bits: int) -> tuple[PictureFault, ...]:
    """The reverse."""
    return tuple(fault for place, fault in enumerate(FAULTS) if bits >> place & 1)
