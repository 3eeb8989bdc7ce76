"""Loops of H.264 as files: encoded once, then sent by any number of servers that need no codec for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FPS = 10
GOP = 10
LOOP = 300
"""Frames of a loop: 30 s. Numbers count modulo this."""


@dataclass(frozen=True)
class Clip:
    """An encoded loop.

    Attributes:
        size: (height, width).
        frames: NAL units of each frame, without start codes; every `GOP`-th begins with SPS and PPS.
    """

    size: tuple[int, int]
    frames: list[list[bytes]]

    @property
    def parameter_sets(self) -> list[bytes]:
        """SPS and PPS."""
        return [unit for unit in self.frames[0] if unit[0] & 31 in (7, 8)]

    def save(self, path: Path) -> None:
        """Write as one line of JSON and the units after it."""
        head = {"size": self.size, "frames": [[len(unit) for unit in frame] for frame in self.frames]}
        units = b"".join(unit for frame in self.frames for unit in frame)
        path.write_bytes(json.dumps(head).encode() + b"\n" + units)


def load_clip(path: Path) -> Clip:
    """Read what `Clip.save` wrote."""
    line, _, units = path.read_bytes().partition(b"\n")
    head = json.loads(line)
    frames, start = [], 0
    for lengths in head["frames"]:
        frame = []
        for length in lengths:
            frame.append(units[start : start + length])
            start += length
        frames.append(frame)
    height, width = head["size"]
    return Clip((height, width), frames)
