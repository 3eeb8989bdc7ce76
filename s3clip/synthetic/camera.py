"""Cameras: their settings, and what their sensor does to the light of a session."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from s3clip.synthetic.backdrop import smooth_noise
from s3clip.synthetic.person import Colour
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.spec import PLATFORMS

U8 = NDArray[np.uint8]

AERIAL_HEIGHT_PX = (18.0, 30.0)
"""Difficulty: apparent height of a person of mean height in aerial pictures, smallest and largest."""

AERIAL_BLUR_PX = 0.5
"""Difficulty: largest motion blur of the aerial cameras (standard deviation along a random direction)."""

COLOUR_CAST = 0.04
"""Difficulty: largest change of one colour channel from one session to another, as a fraction."""

HAZE_LEVEL = 205
"""Grey level of thick air."""

_NOISE_MARGIN = 64


@dataclass(frozen=True)
class CameraConfig:
    """One camera of the synthetic world.

    Attributes:
        name: file-name part, without "_".
        platform: "ground" or "aerial".
        size: (height, width) of the frame in pixels, both even (H.264, yuv420p).
        fps: frames a second.
        person_height_px: apparent height of a person of mean height, (smallest, largest): from far to near
            for a ground camera, from high to low flight for an aerial one.
        shake_px: standard deviation of the camera's jitter from frame to frame.
        crf: H.264 constant rate factor; larger is worse.
        seed: decides the place that the camera looks at.
        noise: standard deviation of the sensor's noise in 8-bit levels.
        haze: share of light that the air adds, 0 to 1.
        occluders: fixed things that can hide people.
        sway_px: how far the foliage moves.
        paint: colour of paving, walls and lawn, or None for natural ones. Background subtractors take clothes
            that are darker than what is behind them but of its hue for shadow; an odd hue shows people best.
    """

    name: str
    platform: str
    size: tuple[int, int] = (360, 640)
    fps: float = 10.0
    person_height_px: tuple[float, float] = (140.0, 185.0)
    shake_px: float = 0.0
    crf: int = 26
    seed: int = 0
    noise: float = 2.0
    haze: float = 0.0
    occluders: int = 2
    sway_px: float = 0.5
    paint: Colour | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn or encoded.

        Raises:
            ConfigError: unknown platform, odd size, "_" in the name, or heights that are not 0 < low <= high.
        """
        if self.platform not in PLATFORMS:
            raise ConfigError(
                f"camera {self.name}: platform {self.platform!r} is unknown; use ground or aerial"
            )
        if "_" in self.name or not self.name:
            raise ConfigError(f"camera name {self.name!r} must be non-empty and without '_'; rename it")
        if self.size[0] % 2 or self.size[1] % 2:
            raise ConfigError(f"camera {self.name}: size {self.size} must be even for yuv420p; round it up")
        low, high = self.person_height_px
        if not 0 < low <= high:
            raise ConfigError(f"camera {self.name}: person_height_px {(low, high)} must rise; swap them")


class Sensor:
    """One camera during one session: the same exposure, colour cast, blur and clouds for all frames."""

    def __init__(self, camera: CameraConfig, rng: Generator) -> None:
        """Draw the session's light from `rng`."""
        self._camera = camera
        cast = rng.uniform(1 - COLOUR_CAST, 1 + COLOUR_CAST, 3)
        self._gain = float(rng.uniform(0.85, 1.12)) * (1 - camera.haze) * cast
        self._clouds = 1.0 + 0.03 * smooth_noise(rng, (16, 64), 8)
        height, width = camera.size
        grain = rng.standard_normal((height + _NOISE_MARGIN, width + _NOISE_MARGIN, 3), dtype=np.float32)
        # Haze is light added everywhere, so it can ride on the noise.
        self._added = np.rint(camera.noise * grain + camera.haze * HAZE_LEVEL).astype(np.int16)
        self._kernel = _blur_kernel(rng)

    def expose(self, frame: U8, shake: NDArray[np.float64], time_s: float, rng: Generator) -> U8:
        """The frame as the sensor gives it.

        Args:
            frame: uint8 (h, w, 3) RGB, may be changed.
            shake: pixels (right, down) by which the camera is off.
            time_s: moves the clouds.
            rng: the noise of this frame.
        """
        height, width = self._camera.size
        if self._camera.shake_px > 0:
            move = np.array([[1.0, 0.0, shake[0]], [0.0, 1.0, shake[1]]])
            moved = cv2.warpAffine(frame, move, (width, height), borderMode=cv2.BORDER_REFLECT_101)
            frame = np.asarray(moved, np.uint8)
        light = cv2.resize(self._cloud_window(time_s), (width, height), interpolation=cv2.INTER_LINEAR)
        gain = cv2.merge([light * np.float32(channel) for channel in self._gain])
        seen = cv2.multiply(frame, gain, dtype=cv2.CV_8U)
        if self._camera.platform == "aerial":
            seen = cv2.filter2D(seen, -1, self._kernel)
        down, right = rng.integers(0, _NOISE_MARGIN, 2).tolist()
        added = self._added[down : down + height, right : right + width]
        return np.asarray(cv2.add(seen, added, dtype=cv2.CV_8U), np.uint8)

    def _cloud_window(self, time_s: float) -> NDArray[np.float32]:
        """The part of the cloud field above the scene; it drifts to and fro without a jump."""
        place = 19.0 * (1.0 - math.cos(0.07 * time_s))
        start = int(place)
        share = np.float32(place - start)
        first, second = self._clouds[:, start : start + 24], self._clouds[:, start + 1 : start + 25]
        return np.asarray(first + share * (second - first), np.float32)


def _blur_kernel(rng: Generator) -> NDArray[np.float32]:
    """Motion of random direction and length, and a lens that is never quite sharp; float32 (5, 5), sum 1."""
    angle, length = float(rng.uniform(0, math.pi)), float(rng.uniform(0.2, 1.0)) * AERIAL_BLUR_PX
    y, x = np.mgrid[-2:3, -2:3].astype(np.float64)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    lens = 0.35
    kernel = np.exp(-0.5 * (along / (lens + length)) ** 2 - 0.5 * (across / lens) ** 2)
    return np.asarray(kernel / kernel.sum(), np.float32)
