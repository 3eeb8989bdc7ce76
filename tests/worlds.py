"""A small data set in the folder layout, quick to write: people are coloured blocks on noise.

And single pictures, for data sets in other layouts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, size: tuple[int, int] = (20, 10)) -> None:
    """A grey picture of (height, width), with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size[::-1]).save(path)


SIZES = {"ground": (150, 70), "aerial": (28, 14)}


def write_block_world(
    root: Path, *, train: int = 5, test: int = 4, tracklets: int = 2, frames: int = 5
) -> Path:
    """`root` with a train and a test split; identities differ by the colours of two blocks."""
    for split, first, count in (("train", 0, train), ("test", 1000, test)):
        for identity in range(first, first + count):
            colours = np.random.default_rng(identity).integers(0, 256, (2, 3))
            for platform, size in SIZES.items():
                for number in range(tracklets):
                    folder = (
                        root / split / platform / f"{identity:04d}" / f"{platform}{number}_{identity:04d}"
                    )
                    _write_tracklet(folder, colours, size, frames)
    return root


def _write_tracklet(folder: Path, colours: np.ndarray, size: tuple[int, int], frames: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng([len(str(folder.name)), int(folder.parent.name), frames])
    for index in range(frames):
        picture = rng.integers(80, 120, (*size, 3))
        half, margin = size[0] // 2, size[1] // 5
        picture[:half, margin:-margin] = colours[0]
        picture[half:, margin:-margin] = colours[1]
        noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:06d}.jpg", quality=88)
