"""Graphs of the YOLOX layout: arXiv 2107.08430 and its ONNX export."""

from __future__ import annotations

from functools import cache

import numpy as np

from s3clip_runtime.streams.detection.boxes import Floats
from s3clip_runtime.streams.detection.tensors import Found, Infos, Outputs, Tensors, chw_image, is_tensor

STRIDES = (8, 16, 32)
"""Pixels of a cell of the three grids."""


def yolox_tensors(inputs: Infos, outputs: Infos) -> Tensors | None:
    """See `Layout.find`."""
    image = chw_image(inputs)
    if image is None or len(inputs) != 1 or len(outputs) != 1:
        return None
    (name, output), (height, width) = next(iter(outputs.items())), inputs[image].shape[2:]
    if height is None or width is None or height % STRIDES[-1] or width % STRIDES[-1]:
        return None
    cells = sum((height // stride) * (width // stride) for stride in STRIDES)
    columns = output.shape[-1]
    if not is_tensor(output, np.floating, (None, cells, None)) or (columns is not None and columns < 6):
        return None
    return Tensors(image, {"cells": name}, classes=None if columns is None else columns - 5)


@cache
def _grid(size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Column and row (A, 2), and stride (A, 1), of every output cell."""
    cells, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def yolox_boxes(
    tensors: Tensors, outputs: Outputs, size: tuple[int, int], person: int, threshold: float
) -> list[Found]:
    """Cells hold centre and size relative to the cell, objectness, and class scores in [0, 1]."""
    cells, strides = _grid(size)
    found = []
    for output in np.asarray(outputs[tensors.outputs["cells"]], np.float32):
        scores = output[:, 4] * output[:, 5 + person]
        good = scores >= threshold
        centre = (output[good, :2] + cells[good]) * strides[good]
        half = np.exp(output[good, 2:4]) * strides[good] / 2
        found.append((np.concatenate([centre - half, centre + half], axis=1), scores[good]))
    return found
