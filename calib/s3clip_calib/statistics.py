"""What a clip looks like before any network sees it: the light, sharpness and size that ranges depend on."""

from __future__ import annotations

from math import log
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.preprocess import lr_batch

STATISTICS: Final = ("log_height", "log_aspect", "luminance", "contrast", "log_sharpness", "saturation")
"""Names of what `describe` gives, in its order."""

_FLAT_VARIANCE: Final = 1.0
"""Added to the variance of the Laplacian, in squared levels, so that a crop of one colour has a logarithm.
Rounding to whole levels alone makes about as much."""


def describe(clip: Clip) -> NDArray[np.float32]:
    """float32 (F,), F = len(STATISTICS), finite; a median or mean over the crops.

    log_height: natural logarithm of the median height in native pixels.
    log_aspect: mean of log(height / width) of the native crops.
    luminance: mean of the grey picture, 0 black to 1 white.
    contrast: its standard deviation within a crop, 0 to 0.5.
    log_sharpness: log(variance of the Laplacian of the grey picture + 1), levels of 0 to 255.
    saturation: mean of the largest minus the smallest channel, 0 grey to 1. HSV's saturation would divide
        by the brightness, and be noise in the dark.

    All but the first two are taken at 64x32, as `enhance` gets the crops, so that sizes compare: the same
    person is as sharp in 300 pixels as in 150, and more blurred in 20.
    """
    small = lr_batch(clip.crops)
    greys = [cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in small]
    chroma = small.max(axis=-1) - small.min(axis=-1)
    values = (
        log(clip.height_px),
        _mean([log(crop.shape[0] / crop.shape[1]) for crop in clip.crops]),
        _mean([float(grey.mean()) for grey in greys]) / 255,
        _mean([float(grey.std()) for grey in greys]) / 255,
        _mean([log(float(cv2.Laplacian(grey, cv2.CV_64F).var()) + _FLAT_VARIANCE) for grey in greys]),
        float(chroma.mean()) / 255,
    )
    return np.array(values, np.float32)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
