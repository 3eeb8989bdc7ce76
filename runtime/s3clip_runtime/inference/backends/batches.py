"""What every session does with a batch before a graph sees it: check it, cut it, round its size up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.spec import BATCH_PROFILE

Arrays = Mapping[str, NDArray[Any]]


def bucket_of(batch: int, profile: tuple[int, int, int] = BATCH_PROFILE) -> int:
    """The batch size that `batch` is padded to: the next power of two, within the profile's ends.

    Few sizes mean few sets of buffers and few captured CUDA graphs.
    """
    smallest, _, largest = profile
    return max(smallest, min(largest, 1 << (batch - 1).bit_length()))


@dataclass(frozen=True, slots=True)
class Batches:
    """The tensors of one graph, and the rules by which a batch of any size becomes runs of it.

    Attributes:
        path: file of the graph, named in errors.
        largest: batch of one run; larger ones are cut.
    """

    path: Path
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    largest: int = BATCH_PROFILE[2]

    def run(
        self, inputs: Arrays, piece: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """Call `piece` with at most `largest` rows at a time and join what it returns.

        Raises:
            BackendError: an input has another name, dtype or shape than the graph's.
        """
        batch = self.checked(inputs)
        if batch == 0:
            return {name: self._empty(name) for name in self.outputs}
        pieces = [
            piece({name: array[low : low + self.largest] for name, array in inputs.items()})
            for low in range(0, batch, self.largest)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([part[name] for part in pieces]) for name in self.outputs}

    def checked(self, inputs: Arrays) -> int:
        """The batch size that all inputs agree on.

        Raises:
            BackendError: as in `run`.
        """
        if inputs.keys() != self.inputs.keys():
            raise BackendError(
                f"{self.path}: inputs must be {', '.join(self.inputs)}; got {', '.join(inputs) or 'none'}"
            )
        for name, array in inputs.items():
            info = self.inputs[name]
            fits = array.ndim == len(info.shape) and all(
                want in (None, got) for want, got in zip(info.shape, array.shape, strict=True)
            )
            if not fits or array.dtype != info.dtype or array.ndim == 0:
                got = TensorInfo(array.shape, array.dtype)
                raise BackendError(f"{self.path}: input {name} must be {info}, got {got}")
        batches = {name: len(array) for name, array in inputs.items()}
        if len(set(batches.values())) != 1:
            raise BackendError(f"{self.path}: all inputs must have one batch size, got {batches}")
        return next(iter(batches.values()))

    def _empty(self, name: str) -> NDArray[Any]:
        info = self.outputs[name]
        return np.empty((0, *known_sizes(self.path, name, info)), info.dtype)


def known_sizes(path: Path, name: str, info: TensorInfo) -> tuple[int, ...]:
    """Sizes of an output behind its batch.

    Raises:
        BackendError: one of them is not fixed.
    """
    sizes = tuple(n for n in info.shape[1:] if n is not None)
    if len(sizes) != len(info.shape) - 1:
        raise BackendError(
            f"{path}: the shape of output {name}, {info}, is not known before a run; export fixed sizes"
        )
    return sizes
