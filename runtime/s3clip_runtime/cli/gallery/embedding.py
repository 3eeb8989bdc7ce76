"""The networks of a bundle, for commands that embed as a run does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import click
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.records import Space
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip, is_hr_tracklet, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.pictures import picture_files, read_upright
from s3clip_runtime.inference.spec import platform_id

CLIPS_AT_ONCE = 8
"""As many as the embedder takes in one pass."""


class Model:
    """An open embedder that says on stderr where it runs. Use it as a context manager.

    Args:
        bundle: a verified one.
        device: as of `Embedder`.

    Attributes:
        bundle: the same.

    Raises:
        BackendError: the graphs cannot run on the device.
    """

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle = bundle
        self._embedder = Embedder(bundle, device=device)
        click.echo(f"device {self._embedder.device}: {self._embedder.device_reason}", err=True)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._embedder.close()

    @property
    def space(self) -> Space:
        """That its embeddings are of."""
        return space_of(self.bundle)

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Unit vectors, float32 (n, dim). LR clips are super-resolved by the bundle's switch, as in a run:
        embeddings with and without are not quite alike."""
        enhance = [not clip.hr and self.bundle.enhances(clip.height_px) for clip in clips]
        return self._embedder.embed_looks(clips, enhance=enhance).vectors


def space_of(bundle: Bundle) -> Space:
    """The embedding space of a bundle."""
    return Space(bundle.manifest.embedding_space, bundle.manifest.contract.embedding_dim)


def clip_of(paths: Iterable[Path], platform: str) -> Clip:
    """All pictures of one person as one clip, in the order of names within a folder.

    Raises:
        DataError: a file cannot be used, or a folder has no pictures.
    """
    files = [file for path in paths for file in (picture_files(path) if path.is_dir() else [path])]
    crops = [read_upright(file) for file in files]
    hr = is_hr_tracklet([(crop.shape[0], crop.shape[1]) for crop in crops])
    return Clip(tuple(crops[i] for i in spread_indices(len(crops))), platform_id(platform), hr)
