"""The place behind the people: textured ground, swaying foliage, and things that stand in front of people."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from s3clip.synthetic.person import Colour
from s3clip.synthetic.sprite import Sprite

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

PAVING: tuple[Colour, ...] = ((150, 146, 138), (128, 128, 130), (160, 150, 132), (112, 112, 110))
WALLS: tuple[Colour, ...] = ((158, 140, 122), (132, 134, 140), (168, 160, 146), (120, 104, 96))
GRASS: tuple[Colour, ...] = ((104, 112, 78), (116, 116, 84), (92, 104, 74))
CARS: tuple[Colour, ...] = ((170, 170, 172), (60, 62, 68), (120, 60, 56), (84, 96, 120))
COURT: Colour = (66, 128, 112)
"""Paint of a sports court; hardly any clothes have its hue."""

LEAVES: tuple[Colour, ...] = ((70, 88, 52), (86, 98, 58), (58, 78, 56))


@dataclass(frozen=True, slots=True)
class Occluder:
    """A fixed thing. It hides people who stand further up in the frame than `foot_y` (pixels)."""

    sprite: Sprite
    foot_y: float


@dataclass(frozen=True, slots=True)
class Backdrop:
    """`still` is uint8 (h, w, 3), the place without people; foliage sways, occluders stand in front."""

    still: U8
    foliage: tuple[Sprite, ...]
    occluders: tuple[Occluder, ...]


def smooth_noise(rng: Generator, size: tuple[int, int], cell: int) -> F32:
    """Noise of zero mean and unit spread whose blots are about `cell` pixels wide; float32 (h, w)."""
    height, width = size
    coarse = rng.standard_normal((height // cell + 3, width // cell + 3), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _texture(rng: Generator, size: tuple[int, int], colour: Colour, strength: float) -> F32:
    """A surface of one colour with stains and grain; float32 (h, w, 3)."""
    grain = sum((smooth_noise(rng, size, cell) for cell in (2, 9, 40)), np.zeros(size, np.float32))
    return np.asarray(colour, np.float32) + (strength / 2) * grain[:, :, None]


def _shade_of(colour: Colour, factor: float) -> tuple[float, float, float]:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _any(rng: Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _between(rng: Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _spot(rng: Generator, across: tuple[float, float], down: tuple[float, float]) -> tuple[float, float]:
    """A random (x, y) of a rectangle."""
    return _between(rng, *across), _between(rng, *down)


def leafy(rng: Generator, centre: tuple[float, float], radius: float) -> Sprite:
    """A bush or a tree crown: a heap of leaf blots, lighter towards the top left."""
    side = int(2.6 * radius) + 4
    image = np.zeros((side, side, 4), np.uint8)
    colour = _any(rng, LEAVES)
    blots = int(np.clip(8 * radius, 60, 500))
    where = rng.normal(0.0, 0.42 * radius, (blots, 2)).clip(-radius, radius)
    for (dx, dy), tone in zip(where.tolist(), rng.uniform(0.75, 1.15, blots).tolist(), strict=True):
        lit = tone * (1.0 - 0.18 * (dx + dy) / radius)
        spot = (round(side / 2 + dx), round(side / 2 + dy))
        cv2.circle(
            image, spot, max(1, round(radius * 0.12)), (*_shade_of(colour, lit), 255.0), -1, cv2.LINE_8
        )
    soft = cv2.GaussianBlur(image, (0, 0), 0.8)
    return Sprite(np.asarray(soft, np.uint8), round(centre[0] - side / 2), round(centre[1] - side / 2))


def _pole(x: float, foot_y: float, height: float, width: float) -> Occluder:
    """A lamp post."""
    image = np.zeros((round(height), max(2, round(width)), 4), np.uint8)
    image[:] = (78, 82, 84, 255)
    image[:, : image.shape[1] // 3] = (104, 108, 110, 255)
    return Occluder(Sprite(image, round(x), round(foot_y - height)), foot_y)


def _bench(rng: Generator, x: float, foot_y: float, scale: float) -> Occluder:
    """Seat and legs, `scale` pixels for a metre."""
    width, height = round(1.6 * scale), round(0.5 * scale)
    image = np.zeros((height, width, 4), np.uint8)
    wood = _shade_of((126, 96, 66), _between(rng, 0.8, 1.15))
    for row in (0.0, 0.35):
        top = round(row * height)
        cv2.rectangle(image, (0, top), (width - 1, top + max(1, height // 5)), (*wood, 255.0), -1)
    for column in (0.08, 0.88):
        left = round(column * width)
        cv2.rectangle(image, (left, 0), (left + max(1, width // 25), height - 1), (60, 60, 62, 255), -1)
    return Occluder(Sprite(image, round(x), round(foot_y - height)), foot_y)


def _paving_lines(image: F32, top: int, rows: list[float], vanish_x: float, slant: float) -> None:
    """Joints of slabs: level lines at `rows`, and lines that run towards a vanishing point (1: parallel)."""
    height, width = image.shape[:2]
    dark = np.asarray(image[top:].mean(axis=(0, 1)) * 0.88).tolist()
    for row in rows:
        cv2.line(image, (0, round(row * 16)), (width * 16, round(row * 16)), dark, 1, cv2.LINE_AA, 4)
    for column in range(-width, 2 * width, 58):
        start = (round((vanish_x + (column - vanish_x) * slant) * 16), top * 16)
        cv2.line(image, start, (column * 16, height * 16), dark, 1, cv2.LINE_AA, 4)


def ground_backdrop(rng: Generator, size: tuple[int, int], occluders: int, paint: Colour | None) -> Backdrop:
    """A street seen from a low camera: a wall with windows, paving, bushes along the wall."""
    height, width = size
    kerb = round(0.42 * height)
    image = _texture(rng, size, paint or _any(rng, PAVING), 7.0)
    image[:kerb] = _texture(rng, (kerb, width), paint or _any(rng, WALLS), 5.0)
    pitch = int(rng.integers(70, 120))
    glass = _shade_of((70, 80, 92), _between(rng, 0.7, 1.4))
    for left in range(int(rng.integers(0, pitch)), width, pitch):
        cv2.rectangle(image, (left, kerb // 5), (left + pitch // 2, round(kerb * 0.68)), glass, -1)
    cv2.line(image, (0, kerb), (width, kerb), (88.0, 86.0, 82.0), 5)
    joints = [kerb + (height - kerb) * (k / 7) ** 1.7 for k in range(1, 7)]
    _paving_lines(image, kerb, joints, width * _between(rng, 0.3, 0.7), 0.35)
    wall_foot = (0.7 * kerb, 1.0 * kerb)
    foliage = tuple(leafy(rng, _spot(rng, (0, width), wall_foot), _between(rng, 22, 44)) for _ in range(5))
    things = []
    for k in range(occluders):
        x, foot_row = _spot(rng, (0.05 * width, 0.9 * width), (0.78 * height, 0.98 * height))
        if k % 3 == 0:
            things.append(_pole(x, foot_row, foot_row - 4, 10))
        elif k % 3 == 1:
            things.append(Occluder(leafy(rng, (x, foot_row - 20), _between(rng, 18, 28)), foot_row))
        else:
            things.append(_bench(rng, x, foot_row, 62.0))
    return Backdrop(np.clip(image, 0, 255).astype(np.uint8), foliage, tuple(things))


def aerial_backdrop(rng: Generator, size: tuple[int, int], occluders: int, paint: Colour | None) -> Backdrop:
    """A square seen from above: slabs, a lawn, a path, parked cars, tree crowns above the people."""
    height, width = size
    image = _texture(rng, size, paint or _any(rng, PAVING), 8.0)
    pitch = _between(rng, 22, 34)
    _paving_lines(image, 0, [k * pitch for k in range(int(height / pitch) + 1)], width / 2, 0.9)
    lawn = _texture(rng, size, paint or _any(rng, GRASS), 9.0)
    edge = np.zeros(size, np.uint8)
    slope, offset = _between(rng, -0.35, 0.35), _between(rng, 0.55, 0.85) * height
    corner = np.array(
        [[0, offset], [width, offset + slope * width], [width, 2 * height], [0, 2 * height]], np.int32
    )
    cv2.fillConvexPoly(edge, corner, 255, cv2.LINE_AA)
    image += (lawn - image) * (cv2.GaussianBlur(edge, (0, 0), 1.2)[:, :, None] / np.float32(255))
    for _ in range(3):
        spot = _spot(rng, (0, width), (0, 0.14 * height))
        colour = _any(rng, CARS)
        for grow, tone in ((1.0, 1.0), (0.55, 0.45)):
            box = (spot, (52.0 * grow, 24.0 * grow), math.degrees(slope) / 2)
            cv2.fillConvexPoly(image, np.rint(cv2.boxPoints(box)).astype(np.int32), _shade_of(colour, tone))
    hedge = (0.85 * height, 1.0 * height)
    foliage = tuple(leafy(rng, _spot(rng, (0, width), hedge), _between(rng, 14, 26)) for _ in range(4))
    things = []
    for k in range(occluders):
        spot = _spot(rng, (0.05 * width, 0.95 * width), (0.2 * height, 0.9 * height))
        if k % 2 == 0:
            # A crown stands above everybody: nobody's feet are below it.
            things.append(Occluder(leafy(rng, spot, _between(rng, 14, 22)), 2.0 * height))
        else:
            things.append(_pole(spot[0], spot[1], 34.0, 3.0))
    return Backdrop(np.clip(image, 0, 255).astype(np.uint8), foliage, tuple(things))
