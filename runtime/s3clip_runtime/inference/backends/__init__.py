"""What every inference backend offers: one loaded graph, named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and element type of one graph input or output; None marks a dynamic dimension."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        dims = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.dtype} ({dims})"


class Session(Protocol):
    """One loaded graph on one device. Whoever opens it closes it."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Name and kind of every input."""

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Name and kind of every output."""

    @property
    def device(self) -> str:
        """Where it really runs: "cpu" or "cuda"."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph; the leading dimension of all arrays is the batch.

        Batches above `spec.BATCH_PROFILE[2]` are cut into pieces. An empty batch gives empty outputs.

        Raises:
            BackendError: an input has another name, dtype or shape than the graph's, or the run failed.
        """

    def close(self) -> None:
        """Free the graph. A second call does nothing."""
