"""A small video in which rectangles the shape of people walk one after the other, with its truth.

Every walker is in view for 30 frames, enters 20 frames after the one before, and has a lane and a colour of
its own, so that who is where when follows from a formula and not from the code under test.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

SIZE = (240, 320)
FPS = 10
FIRST = 10
"""Frame in which walker 0 enters."""
EVERY = 20
STAYS = 30
HEIGHT, WIDTH = 60, 24


@dataclass(frozen=True)
class Street:
    """The files, and how much was filmed."""

    video: Path
    boxes: Path
    frames: int
    walkers: int

    def seen(self, walker: int, frames: int) -> list[int]:
        """Frames below `frames` that show the walker."""
        enters = FIRST + EVERY * walker
        return list(range(enters, min(enters + STAYS, frames)))


def write_street(folder: Path, *, frames: int, walkers: int) -> Street:
    """Write street.mp4 and street.txt (MOT boxes) into `folder`."""
    rng = np.random.default_rng(0)
    background = np.full((*SIZE, 3), 128, np.uint8) + rng.integers(0, 12, (*SIZE, 3)).astype(np.uint8)
    street = Street(folder / "street.mp4", folder / "street.txt", frames, walkers)
    lines = []
    with av.open(str(street.video), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "15"}
        for index in range(frames):
            image = background.copy()
            for walker in range(walkers):
                if index in street.seen(walker, frames):
                    x, y = _place(walker, index)
                    image[y : y + HEIGHT, x : x + WIDTH] = _colour(walker)
                    lines.append(f"{index + 1},{walker},{x},{y},{WIDTH},{HEIGHT},1,1,1\n")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    street.boxes.write_text("".join(lines))
    return street


def _place(walker: int, index: int) -> tuple[int, int]:
    """Left and top edge. Those in view at the same time are in different lanes."""
    return 20 + 5 * (index - FIRST - EVERY * walker), 10 + 80 * (walker % 2)


def _colour(walker: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((0.37 * walker) % 1, 1.0, 0.4 + 0.6 * ((walker * 7) % 5) / 5)
    return round(255 * red), round(255 * green), round(255 * blue)
