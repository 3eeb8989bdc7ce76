"""What the PyTorch model gave for real clips: the truth that graphs are measured against, without PyTorch."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.spec import CLIP_LENGTH

_CURE = "export again with s3clip-export"


@dataclass(frozen=True, slots=True)
class Reference:
    """N clips of real tracklets and PyTorch's answers.

    Attributes:
        clips: N clips with their native crops.
        lengths: frames of each whole tracklet.
        frames: for each clip the T positions in its tracklet that its crops were taken from.
        embeddings: float32 (N, D), unit length.
        pixels: by the position of some clips, what goes into their first graph: uint8 (T, h, w, 3).
        tokens: by the same positions, what comes out of it: float32 (T, patches, width).
    """

    clips: tuple[Clip, ...]
    lengths: tuple[int, ...]
    frames: tuple[tuple[int, ...], ...]
    embeddings: NDArray[np.float32]
    pixels: Mapping[int, NDArray[np.uint8]]
    tokens: Mapping[int, NDArray[np.float32]]

    def part(self, positions: Sequence[int]) -> Reference:
        """Only the clips at these positions, in this order."""
        new = {old: place for place, old in enumerate(positions)}
        return Reference(
            tuple(self.clips[i] for i in positions),
            tuple(self.lengths[i] for i in positions),
            tuple(self.frames[i] for i in positions),
            self.embeddings[list(positions)],
            {new[i]: array for i, array in self.pixels.items() if i in new},
            {new[i]: array for i, array in self.tokens.items() if i in new},
        )


def write_reference(path: Path, reference: Reference) -> None:
    """Write one .npz file; no pickle. Crops of all sizes lie one behind the other."""
    crops = [np.ascontiguousarray(crop) for clip in reference.clips for crop in clip.crops]
    arrays: dict[str, NDArray[np.generic]] = {
        "crops": np.concatenate([crop.reshape(-1) for crop in crops]),
        "sizes": np.array([crop.shape[:2] for crop in crops], np.int32),
        "platforms": np.array([clip.platform for clip in reference.clips], np.int64),
        "hr": np.array([clip.hr for clip in reference.clips]),
        "lengths": np.array(reference.lengths, np.int64),
        "frames": np.array(reference.frames, np.int64),
        "embeddings": reference.embeddings,
    }
    for position, pixels in reference.pixels.items():
        arrays[f"pixels/{position}"] = pixels
        arrays[f"tokens/{position}"] = reference.tokens[position]
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's own signature is too narrow


def read_reference(path: Path) -> Reference:
    """Read what `write_reference` wrote.

    Raises:
        BundleError: the file is missing, damaged or of another layout.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _unpack({name: file[name] for name in file.files})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a reference of s3clip-export ({error}); {_CURE}") from error


def _unpack(arrays: Mapping[str, NDArray[np.generic]]) -> Reference:
    flat, sizes = arrays["crops"].astype(np.uint8, copy=False), arrays["sizes"]
    ends = np.cumsum([int(height) * int(width) * 3 for height, width in sizes])
    if len(flat) != ends[-1]:
        raise ValueError(f"crops must hold {ends[-1]} bytes, found {len(flat)}")
    pieces = np.split(flat, ends[:-1])
    crops = [
        piece.reshape(int(height), int(width), 3)
        for piece, (height, width) in zip(pieces, sizes, strict=True)
    ]
    clips = tuple(
        Clip(tuple(crops[first : first + CLIP_LENGTH]), int(platform), bool(hr))
        for first, platform, hr in zip(
            range(0, len(crops), CLIP_LENGTH), arrays["platforms"], arrays["hr"], strict=True
        )
    )
    kept = [int(name.partition("/")[2]) for name in arrays if name.startswith("pixels/")]
    return Reference(
        clips,
        tuple(map(int, arrays["lengths"])),
        tuple(tuple(map(int, row)) for row in arrays["frames"]),
        arrays["embeddings"].astype(np.float32, copy=False),
        {i: arrays[f"pixels/{i}"].astype(np.uint8, copy=False) for i in kept},
        {i: arrays[f"tokens/{i}"].astype(np.float32, copy=False) for i in kept},
    )
