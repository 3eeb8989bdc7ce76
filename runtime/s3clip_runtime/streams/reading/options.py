"""How sources are read, and the numbers of reading that are not options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Decode = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ReadOptions:
    """How one source is read.

    Attributes:
        open_timeout_s: seconds to connect; FFmpeg may take it twice, once for the answer, once to find the
            streams.
        read_timeout_s: seconds without a packet or a picture after which a stream counts as lost.
        decode: where pictures are decoded. "cuda" is obeyed or the source fails; never silently the CPU.
        folder_fps: frames a second of a folder of pictures, which carry no time.
    """

    open_timeout_s: float = 5.0
    read_timeout_s: float = 3.0
    decode: Decode = "cpu"
    folder_fps: float = 10.0


STALE_S = 2.0
"""A connected stream without a picture for so long is STALE. Shorter than `read_timeout_s`, after which it is
DOWN."""

TICK_S = 0.15
"""How often the parent looks at a child when nothing happens."""

START_S = 60.0
"""Longest start of a child, from its process to its first sign of life: 0.5 s alone, 16 s
for sixteen at once on two busy cores. Ending a slow start would only make the next one slower."""

FILE_PATIENCE_S = 60.0
"""Longest time for one picture of a file, before its child counts as hung: network disks may sleep."""

CLOSE_S = 0.7
"""How long a child may take to say goodbye to its camera when it is closed."""
