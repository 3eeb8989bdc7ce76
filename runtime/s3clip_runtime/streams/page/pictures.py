"""The page's pictures as JPEG: a frame with its boxes, and the crops of a sighting side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.spec import CLIP_LENGTH, SR_SIZE
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.drawing import Label, draw_labels

Picture = NDArray[np.uint8]

FRAME_WIDTH = 960
"""Wider frames are reduced to it, twice a tile of the page; drawing and encoding 1080p costs four times."""

_FRAME_QUALITY = 80
_STRIP_QUALITY = 92
_GAP = 2
_CELL = SR_SIZE


def frame_jpeg(frame: Frame, observations: Sequence[Observation], names: Mapping[int, str]) -> bytes:
    """A frame as JPEG, at most `FRAME_WIDTH` wide, each person in a box.

    Args:
        frame: not changed.
        observations: the persons of the frame, boxes in its pixels.
        names: track to what is written after its number, such as `anna 0.83`; tracks may be missing.
    """
    height, width = frame.image.shape[:2]
    scale = min(1.0, FRAME_WIDTH / width)
    image = frame.image
    if scale < 1:
        size = (FRAME_WIDTH, max(1, round(height * scale)))
        # Areas only where pixels would be left out: at 1280 they cost four times as much and show no more.
        kind = cv2.INTER_AREA if scale <= 0.5 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, size, interpolation=kind), np.uint8)
    labels = [_label(one, scale, names.get(one.track, "")) for one in observations]
    return _jpeg(draw_labels(image, labels) if labels else image, _FRAME_QUALITY)


def thumbnail(crop: Picture) -> Picture:
    """A copy of a uint8 (h, w, 3) RGB crop that is at most 128 high and 64 wide; small ones stay as they are.

    So sixty looks of eight crops cost at most 12 MB, whatever the cameras deliver.
    """
    size = (min(crop.shape[0], _CELL[0]), min(crop.shape[1], _CELL[1]))
    if size == crop.shape[:2]:
        return crop.copy()
    # In two steps, as halving by areas is fast: a crop of 800x350 takes 0.1 ms and not 1.4 ms, and the thread
    # of the embedder pays for it.
    twice = cv2.resize(crop, (2 * size[1], 2 * size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(twice, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def strip_jpeg(crops: Sequence[Picture]) -> bytes:
    """Up to `CLIP_LENGTH` uint8 (h, w, 3) RGB crops side by side as JPEG, each stretched to 128x64.

    Not smoothed: the pixels that the camera saw stay visible, and the super-resolved ones beside them too.
    """
    count = min(len(crops), CLIP_LENGTH)
    canvas = np.full((_CELL[0], max(1, count * (_CELL[1] + _GAP) - _GAP), 3), 128, np.uint8)
    for number, crop in enumerate(crops[:count]):
        left = number * (_CELL[1] + _GAP)
        canvas[:, left : left + _CELL[1]] = cv2.resize(crop, _CELL[::-1], interpolation=cv2.INTER_NEAREST)
    return _jpeg(canvas, _STRIP_QUALITY)


def _label(one: Observation, scale: float, name: str) -> Label:
    x1, y1, x2, y2 = (float(edge) * scale for edge in one.box)
    return Label(one.track, (x1, y1, x2, y2), f"#{one.track} {name}".rstrip())


def _jpeg(image: Picture, quality: int) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return bytes(data)
