"""What a camera sees: several people in one place, who hide each other and walk behind fixed things."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip.synthetic.backdrop import Backdrop, aerial_backdrop, ground_backdrop
from s3clip.synthetic.body import View, render
from s3clip.synthetic.camera import CameraConfig, Sensor
from s3clip.synthetic.person import MEAN_HEIGHT_M, Appearance
from s3clip.synthetic.sprite import Sprite, paste, swayed

U8 = NDArray[np.uint8]

AERIAL_ELEVATION_DEG = (45.0, 60.0)
GROUND_ELEVATION_DEG = (7.0, 12.0)
GROUND_FEET = (0.64, 0.96)
"""Rows of the frame (fractions of its height) where people may stand, far and near."""

AERIAL_FEET = (0.16, 0.94)


@dataclass(frozen=True, slots=True)
class Actor:
    """One person on a straight walk.

    Attributes:
        identity: number of the person.
        appearance: what the person looks like and how they walk.
        foot: frame position (x, y) in pixels at `enter_s`; the person is not there before.
        heading: radians, 0 to the right, pi/2 away from the camera.
        phase: gait phase at `enter_s` in radians.
        enter_s: seconds from the start of the scene.
    """

    identity: int
    appearance: Appearance
    foot: tuple[float, float]
    heading: float
    phase: float
    enter_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Truth:
    """Where one person is in one frame.

    Attributes:
        identity: number of the person.
        box: x, y, width, height in pixels, clipped to the frame.
        visibility: share of the person's pixels that nothing hides and no border cuts off, 0 to 1.
        inside: share of the whole box that is within the frame, 0 to 1.
    """

    identity: int
    box: tuple[float, float, float, float]
    visibility: float
    inside: float


class Scene:
    """One camera's view of some actors in one session. Frames can be asked for in any order.

    The session seed decides light, colour cast, flight height and noise; the camera's seed decides the place.
    """

    def __init__(self, camera: CameraConfig, seed: int) -> None:
        """Build the place and the session; draw nothing yet."""
        rng = np.random.default_rng([seed, 21])
        aerial = camera.platform == "aerial"
        self.camera = camera
        self._seed = seed
        place = np.random.default_rng([camera.seed, 22])
        build = aerial_backdrop if aerial else ground_backdrop
        self._backdrop: Backdrop = build(place, camera.size, camera.occluders, camera.paint)
        elevation = AERIAL_ELEVATION_DEG if aerial else GROUND_ELEVATION_DEG
        self.elevation = math.radians(float(rng.uniform(*elevation)))
        low, high = camera.person_height_px
        flight = float(rng.uniform(low, high))
        self._height_far, self._height_near = (flight * 0.97, flight * 1.03) if aerial else (low, high)
        sun = float(rng.uniform(0, 2 * math.pi))
        self._light = (0.6 * math.cos(sun), 0.6 * math.sin(sun), 0.8)
        self._sensor = Sensor(camera, rng)

    def scale_at(self, foot_y: float) -> float:
        """Pixels for a metre across the view for somebody who stands on row `foot_y`."""
        first, last = AERIAL_FEET if self.camera.platform == "aerial" else GROUND_FEET
        near = (foot_y / self.camera.size[0] - first) / (last - first)
        height_px = self._height_far + (self._height_near - self._height_far) * min(1.4, max(-0.4, near))
        # A body seen from above shows its length shortened, and its depth (about a third of a metre) instead.
        return height_px / (MEAN_HEIGHT_M * math.cos(self.elevation) + 0.35 * math.sin(self.elevation))

    def velocity(self, actor: Actor) -> tuple[float, float]:
        """Pixels a second, right and down, of an actor."""
        speed = actor.appearance.gait.speed * self.scale_at(actor.foot[1])
        return speed * math.cos(actor.heading), -speed * math.sin(actor.heading) * math.sin(self.elevation)

    def _foot_at(self, actor: Actor, time_s: float) -> tuple[float, float]:
        right, down = self.velocity(actor)
        passed = time_s - actor.enter_s
        return actor.foot[0] + right * passed, actor.foot[1] + down * passed

    def draw(self, actors: list[Actor], index: int) -> tuple[U8, list[Truth]]:
        """Frame `index` (from 0): uint8 (h, w, 3) RGB, and the truth about everybody inside it."""
        time_s = index / self.camera.fps
        rng = np.random.default_rng([self._seed, 23, index])
        frame = self._backdrop.still.copy()
        for number, leaf in enumerate(self._backdrop.foliage):
            paste(frame, swayed(leaf, self.camera.sway_px * math.sin(1.7 * time_s + number)))
        present = [(actor, self._foot_at(actor, time_s)) for actor in actors if actor.enter_s <= time_s]
        present.sort(key=lambda pair: pair[1][1])
        owner = np.full(self.camera.size, -1, np.int16)
        drawn = self._draw_in_depth_order(frame, owner, present, time_s)
        shake = rng.normal(0.0, 1.0, 2) * self.camera.shake_px
        truths = [_truth(present[k][0].identity, sprite, owner == k, shake) for k, sprite in enumerate(drawn)]
        return self._sensor.expose(frame, shake, time_s, rng), [
            truth for truth in truths if truth is not None
        ]

    def _draw_in_depth_order(
        self,
        frame: U8,
        owner: NDArray[np.int16],
        present: list[tuple[Actor, tuple[float, float]]],
        time_s: float,
    ) -> list[Sprite]:
        """Lay people and occluders over the frame from far to near; `owner` keeps who is on top."""
        waiting = sorted(self._backdrop.occluders, key=lambda thing: thing.foot_y)
        sprites = []
        for number, (actor, foot) in enumerate(present):
            while waiting and waiting[0].foot_y < foot[1]:
                paste(frame, waiting[0].sprite, owner, -2)
                waiting = waiting[1:]
            scale = self.scale_at(foot[1])
            self._shadow(frame, foot, scale)
            phase = actor.phase + 2 * math.pi * actor.appearance.gait.frequency_hz * (time_s - actor.enter_s)
            view = View(self.elevation, scale, self._light)
            sprite = render(actor.appearance, phase, actor.heading, foot, view)
            paste(frame, sprite, owner, number)
            sprites.append(sprite)
        for thing in waiting:
            paste(frame, thing.sprite, owner, -2)
        return sprites

    def _shadow(self, frame: U8, foot: tuple[float, float], scale: float) -> None:
        """A soft shadow that falls away from the sun."""
        sine = math.sin(self.elevation)
        fall = (-self._light[0] * 0.5 * scale, self._light[1] * 0.5 * scale * sine)
        angle = math.atan2(fall[1], fall[0])
        mask = np.zeros((24, 24, 4), np.uint8)
        length, breadth = 0.55 * scale, max(0.12, 0.26 * sine) * scale
        side = round(2.6 * length) + 2
        axes = (round(length * 24 * 16 / side), round(breadth * 24 * 16 / side))
        cv2.ellipse(mask, (192, 192), axes, math.degrees(angle), 0, 360, (0, 0, 0, 74), -1, cv2.LINE_AA, 4)
        # Drawn small and blown up, the edge becomes soft.
        soft = np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
        paste(frame, Sprite(soft, round(foot[0] + fall[0] - side / 2), round(foot[1] + fall[1] - side / 2)))


def _truth(
    identity: int, sprite: Sprite, seen: NDArray[np.bool_], shake: NDArray[np.float64]
) -> Truth | None:
    """The truth of one drawn person, or None if nothing of the body is inside the frame."""
    solid = sprite.image[:, :, 3] > 76
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    height, width = seen.shape
    left, top = sprite.x + columns[0] + shake[0], sprite.y + rows[0] + shake[1]
    right, bottom = sprite.x + columns[-1] + 1 + shake[0], sprite.y + rows[-1] + 1 + shake[1]
    x0, y0, x1, y1 = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    whole = float((sprite.image[:, :, 3] > 127).sum())
    inside = (x1 - x0) * (y1 - y0) / ((right - left) * (bottom - top))
    visibility = min(1.0, float(seen.sum()) / whole) if whole else 0.0
    return Truth(identity, (float(x0), float(y0), float(x1 - x0), float(y1 - y0)), visibility, float(inside))
