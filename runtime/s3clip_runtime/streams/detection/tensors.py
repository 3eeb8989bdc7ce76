"""The inputs and outputs of a detector's graph, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.streams.detection.boxes import Floats

Infos = Mapping[str, TensorInfo]
Outputs = Mapping[str, NDArray[Any]]
Found = tuple[Floats, Floats]
"""Boxes (N, 4) x1, y1, x2, y2 in pixels of the network's input, and scores (N,)."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a graph by what they mean.

    Attributes:
        image: input of the pictures.
        outputs: meaning to name.
        sizes: input of the pictures' (width, height), if the graph has one.
        classes: class columns of the scores; None where the graph does not tell.
    """

    image: str
    outputs: Mapping[str, str]
    sizes: str | None = None
    classes: int | None = None


def is_tensor(info: TensorInfo, kind: type[Any], shape: tuple[int | None, ...]) -> bool:
    """Whether a tensor has a type and shape; None fits every size, and so does a dynamic dimension."""
    sizes = zip(info.shape, shape, strict=False)
    return (
        np.issubdtype(info.dtype, kind)
        and len(info.shape) == len(shape)
        and all(None in (found, wanted) or found == wanted for found, wanted in sizes)
    )


def chw_image(inputs: Infos) -> str | None:
    """The only input of floats (N, 3, H, W)."""
    images = [name for name, info in inputs.items() if is_tensor(info, np.floating, (None, 3, None, None))]
    return images[0] if len(images) == 1 else None


def of_class(
    labels: NDArray[Any], boxes: Floats, scores: NDArray[Any], person: int, threshold: float
) -> list[Found]:
    """Of each picture the boxes (n, Q, 4) whose label (n, Q) and score (n, Q) are those of a person."""
    good = (labels == person) & (scores >= threshold)
    scores = np.asarray(scores, np.float32)
    return [(box[keep], score[keep]) for box, score, keep in zip(boxes, scores, good, strict=True)]
