"""Who walks: seeded appearance, gait, and the pose that a gait has at a moment.

Person coordinates are metres: x to the person's right, y forward, z up; the origin is on the ground
between the feet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Colour = tuple[int, int, int]

WARDROBE_SIZE = 10
"""Difficulty: how many of `TOP_COLOURS` the world uses. Fewer colours make more people look alike."""

COLOUR_JITTER = 8
"""Difficulty: spread (8-bit levels) of one garment's dye around its wardrobe colour."""

MEAN_HEIGHT_M = 1.72
"""Body height that the camera scales are stated for."""

TOP_COLOURS: tuple[Colour, ...] = (
    (34, 35, 40),
    (47, 58, 88),
    (120, 122, 125),
    (205, 203, 196),
    (125, 52, 52),
    (82, 90, 62),
    (176, 156, 122),
    (92, 124, 158),
    (103, 78, 60),
    (178, 138, 62),
    (60, 104, 100),
    (172, 118, 128),
    (96, 76, 112),
    (168, 84, 58),
)
BOTTOM_COLOURS: tuple[Colour, ...] = (
    (40, 41, 46),
    (52, 66, 98),
    (94, 96, 100),
    (150, 132, 104),
    (88, 110, 140),
    (84, 66, 54),
)
SHOE_COLOURS: tuple[Colour, ...] = ((30, 30, 32), (215, 212, 205), (96, 70, 50), (120, 46, 46))
SKIN_COLOURS: tuple[Colour, ...] = ((226, 184, 156), (200, 152, 120), (156, 108, 80), (104, 72, 54))
HAIR_COLOURS: tuple[Colour, ...] = (
    (28, 24, 22),
    (70, 48, 34),
    (120, 88, 54),
    (178, 146, 92),
    (150, 148, 146),
)
PATTERNS = ("plain", "stripes", "two_tone", "logo", "jacket")
CARRIED = ("none", "backpack", "handbag", "shopping_bag", "umbrella")


@dataclass(frozen=True, slots=True)
class Gait:
    """How one person walks: angles in radians, `frequency_hz` in double steps a second, `speed` in m/s."""

    speed: float
    frequency_hz: float
    leg_swing: float
    arm_swing: float
    elbow: float


@dataclass(frozen=True, slots=True)
class Appearance:
    """All that identity is made of. Colours are RGB 0..255; `width` scales the body's girth.

    `hat` is None for a bare head; `hair_style` is short, long, bun or bald; `pattern` is one of `PATTERNS`,
    `carried` one of `CARRIED`; `bottom_kind` is trousers, skirt or shorts.
    """

    skin: Colour
    hair: Colour
    hair_style: str
    hat: Colour | None
    top: Colour
    top_second: Colour
    pattern: str
    long_sleeves: bool
    bottom_kind: str
    bottom: Colour
    shoes: Colour
    carried: str
    carried_colour: Colour
    height_m: float
    width: float
    gait: Gait


def _pick(rng: Generator, colours: tuple[Colour, ...]) -> Colour:
    """One colour of a palette with a little dye variation."""
    base = np.asarray(colours[int(rng.integers(len(colours)))], np.float64)
    red, green, blue = (
        np.clip(np.rint(base + rng.normal(0, COLOUR_JITTER, 3) * 0.5), 8, 240).astype(int).tolist()
    )
    return red, green, blue


def _other(rng: Generator, top: Colour, colours: tuple[Colour, ...]) -> Colour:
    """A second colour that can be told from the first."""
    while True:
        second = _pick(rng, colours)
        if sum(abs(a - b) for a, b in zip(top, second, strict=True)) > 110:
            return second


def sample_appearance(seed: int, identity: int) -> Appearance:
    """The person `identity` of the world `seed`; the same numbers always give the same person."""
    rng = np.random.default_rng([seed, identity, 11])
    wardrobe = TOP_COLOURS[:WARDROBE_SIZE]
    top = _pick(rng, wardrobe)
    height = float(np.clip(rng.normal(MEAN_HEIGHT_M, 0.09), 1.52, 1.94))
    has_hat = rng.random() < 0.18
    return Appearance(
        skin=_pick(rng, SKIN_COLOURS),
        hair=_pick(rng, HAIR_COLOURS),
        hair_style=str(rng.choice(["short", "long", "bun", "bald"], p=[0.46, 0.32, 0.12, 0.10])),
        hat=_pick(rng, wardrobe) if has_hat else None,
        top=top,
        top_second=_other(rng, top, wardrobe),
        pattern=str(rng.choice(PATTERNS, p=[0.32, 0.16, 0.16, 0.16, 0.20])),
        long_sleeves=bool(rng.random() < 0.6),
        bottom_kind=str(rng.choice(["trousers", "skirt", "shorts"], p=[0.64, 0.16, 0.20])),
        bottom=_pick(rng, BOTTOM_COLOURS),
        shoes=_pick(rng, SHOE_COLOURS),
        carried=str(rng.choice(CARRIED, p=[0.40, 0.24, 0.17, 0.16, 0.03])),
        carried_colour=_pick(rng, TOP_COLOURS),
        height_m=height,
        width=float(rng.uniform(0.88, 1.22)),
        gait=_sample_gait(rng, height),
    )


def _sample_gait(rng: Generator, height_m: float) -> Gait:
    """Longer legs make slower steps; the rest is habit."""
    frequency = float(rng.normal(0.95, 0.07)) * math.sqrt(MEAN_HEIGHT_M / height_m)
    swing = float(rng.uniform(0.34, 0.5))
    return Gait(
        speed=2.9 * swing * frequency * height_m / MEAN_HEIGHT_M,
        frequency_hz=frequency,
        leg_swing=swing,
        arm_swing=float(rng.uniform(0.15, 0.6)),
        elbow=float(rng.uniform(0.15, 0.7)),
    )


@dataclass(frozen=True, slots=True)
class Pose:
    """Joints of a mean-height body; index 0 is the left side, 1 the right.

    Attributes:
        legs: float64 (2, 3, 3): hip, knee, ankle.
        arms: float64 (2, 3, 3): shoulder, elbow, hand.
        lift: metres to add to the trunk's z so that the lower foot stands on the ground; the joints have it.
    """

    legs: NDArray[np.float64]
    arms: NDArray[np.float64]
    lift: float


def pose_at(gait: Gait, phase: float, width: float) -> Pose:
    """Pose at a gait phase in radians (one double step is 2 pi)."""
    legs = np.zeros((2, 3, 3))
    arms = np.zeros((2, 3, 3))
    for side, sign in enumerate((-1.0, 1.0)):
        angle = phase + side * math.pi
        thigh = gait.leg_swing * math.sin(angle)
        # The knee bends while its leg swings forward, that is while the thigh angle grows.
        shin = thigh - 0.10 - 0.85 * max(0.0, math.cos(angle))
        hip = np.array([0.085 * sign * width, 0.0, 0.90])
        knee = hip + 0.42 * np.array([0.0, math.sin(thigh), -math.cos(thigh)])
        legs[side] = hip, knee, knee + 0.41 * np.array([0.0, math.sin(shin), -math.cos(shin)])
        upper = -gait.arm_swing * math.sin(angle)
        lower = upper + gait.elbow
        shoulder = np.array([0.188 * sign * width, 0.0, 1.36])
        elbow = shoulder + 0.29 * np.array([0.20 * sign, math.sin(upper), -math.cos(upper)])
        arms[side] = (
            shoulder,
            elbow,
            elbow + 0.27 * np.array([0.06 * sign, math.sin(lower), -math.cos(lower)]),
        )
    lift = 0.08 - float(legs[:, 2, 2].min())
    legs[:, :, 2] += lift
    arms[:, :, 2] += lift
    return Pose(legs, arms, lift)
