"""The dressed body as coloured quadrilaterals, and its picture from any side and height.

Every part is a lathe: a stack of horizontal elliptic rings. One body serves all cameras, so front, back,
side and steep views agree with each other without being drawn separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip.synthetic.person import MEAN_HEIGHT_M, Appearance, Colour, Pose, pose_at
from s3clip.synthetic.sprite import Sprite

F64 = NDArray[np.float64]
Rings = F64 | Sequence[tuple[float, float, float, float, float]]

TRUNK_SIDES = 16
TRUNK_LEVELS = 12
LIMB_SIDES = 7
LIMB_STEPS = 7
DRAWN_HEIGHT_PX = 110
"""Small people are drawn about this tall and then averaged down, so that they are properly antialiased."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """quads: float64 (Q, 4, 3) in metres, counter-clockwise seen from outside; colours: float64 (Q, 3) RGB.

    nearer: metres by which the part is drawn in front of its true depth, so that clothes hide the body.
    """

    quads: F64
    colours: F64
    nearer: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """How a person is seen: `elevation` of the camera above the horizon (rad),
    `scale` in px/m, and `light`, a unit vector to the sun.

    World axes: x to the image's right, y away from the camera, z up.
    """

    elevation: float
    scale: float
    light: tuple[float, float, float]


@cache
def _circle(sides: int) -> F64:
    """Sine and cosine of the corners of a ring, (2, sides + 1); the first edge faces forward."""
    angle = (np.arange(sides + 1) - 0.5) * (2 * math.pi / sides)
    return np.stack([np.sin(angle), np.cos(angle)])


def lathe(rings: Rings, colours: F64) -> Mesh:
    """Skin of stacked rings.

    Args:
        rings: (R, 5): x, y, z, radius x, radius y in metres, from bottom to top.
        colours: (R - 1, S, 3); column 0 faces forward, columns go on to the right.
    """
    data = np.asarray(rings)
    around = _circle(colours.shape[1])
    points = np.empty((len(rings), around.shape[1], 3))
    points[:, :, 0] = data[:, 0:1] + data[:, 3:4] * around[0]
    points[:, :, 1] = data[:, 1:2] + data[:, 4:5] * around[1]
    points[:, :, 2] = data[:, 2:3]
    quads = np.empty((len(rings) - 1, colours.shape[1], 4, 3))
    quads[:, :, 0], quads[:, :, 1] = points[:-1, :-1], points[:-1, 1:]
    quads[:, :, 2], quads[:, :, 3] = points[1:, 1:], points[1:, :-1]
    return Mesh(quads.reshape(-1, 4, 3), colours.reshape(-1, 3))


def _plain(rings: Rings, colour: Colour, sides: int) -> Mesh:
    return lathe(rings, np.broadcast_to(np.asarray(colour, np.float64), (len(rings) - 1, sides, 3)))


def _limb(joints: F64, radii: tuple[float, ...], upper: Colour, lower: Colour, bare_from: float) -> Mesh:
    """A leg or an arm from its top joint down: `upper` until the fraction `bare_from`, then `lower`."""
    steps = np.linspace(1.0, 0.0, LIMB_STEPS)
    # Piecewise straight: the weights of the first, middle and last joint along the limb.
    weights = np.maximum(0.0, 1.0 - 2.0 * np.abs(steps[:, None] - np.array([0.0, 0.5, 1.0])))
    thick = np.interp(steps, np.linspace(0.0, 1.0, len(radii)), radii)
    # Clothes are a little wider than the skin below them.
    thick = np.where(steps <= bare_from, thick * 1.08, thick)
    rings = np.empty((LIMB_STEPS + 1, 5))
    rings[:-1, :3] = weights @ joints
    rings[:-1, 3:] = thick[:, None]
    rings[-1] = rings[-2]
    rings[-1, 2:] = rings[-2, 2] + 0.6 * thick[-1], 0.0, 0.0
    middle = np.append((steps[:-1] + steps[1:]) / 2, 0.0)
    colours = np.where((middle <= bare_from)[:, None, None], np.asarray(upper, np.float64), np.asarray(lower))
    return lathe(rings, np.broadcast_to(colours, (LIMB_STEPS, LIMB_SIDES, 3)))


def _trunk_colours(person: Appearance, heights: F64) -> F64:
    """Colours (len(heights), TRUNK_SIDES, 3) of the upper garment; `heights` run from 0 at the hem to 1."""
    first, second = np.asarray(person.top, np.float64), np.asarray(person.top_second, np.float64)
    turn = (np.arange(TRUNK_SIDES) * (360 / TRUNK_SIDES) + 180) % 360 - 180
    front = np.abs(turn)[None, :]
    level = heights[:, None]
    masks = {
        "plain": np.zeros((len(heights), TRUNK_SIDES), bool),
        "stripes": np.broadcast_to((np.arange(len(heights)) % 4 >= 2)[:, None], (len(heights), TRUNK_SIDES)),
        "two_tone": np.broadcast_to(level > 0.58, (len(heights), TRUNK_SIDES)),
        "logo": (front <= 36) & (level > 0.40) & (level < 0.80),
        "jacket": (front <= 27) & (level < 0.97),
    }
    colours = np.where(masks[person.pattern][:, :, None], second, first)
    if person.carried == "backpack":
        strap = (front >= 36) & (front <= 54) & (level > 0.45)
        colours = np.where(strap[:, :, None], np.asarray(person.carried_colour, np.float64), colours)
    return colours


def _trunk(person: Appearance, lift: float) -> list[Mesh]:
    """Upper garment, neck, and the skirt if there is one."""
    w = person.width
    hem = 1.12 if person.pattern == "jacket" else 1.0
    profile_z = (0.0, 0.25, 0.62, 0.80, 0.90, 1.0)
    level = np.linspace(0.0, 1.0, TRUNK_LEVELS + 1)
    wide = np.interp(level, profile_z, (0.168 * hem, 0.150 * hem, 0.180, 0.192, 0.165, 0.055)) * w
    deep = np.interp(level, profile_z, (0.118 * hem, 0.108 * hem, 0.125, 0.112, 0.09, 0.055)) * w
    z = 0.86 + 0.62 * level + lift
    rings = [(0.0, 0.0, h, a, b) for h, a, b in zip(z.tolist(), wide.tolist(), deep.tolist(), strict=True)]
    shirt = lathe(rings, _trunk_colours(person, (level[:-1] + level[1:]) / 2))
    parts = [replace(shirt, nearer=0.10)]
    parts.append(
        _plain([(0, 0.0, 1.44 + lift, 0.055, 0.055), (0, 0.01, 1.54 + lift, 0.05, 0.05)], person.skin, 8)
    )
    hips = [(0.86, 0.160, 0.115), (0.95, 0.150, 0.105)]
    if person.bottom_kind == "skirt":
        hips = [(0.50, 0.235, 0.19), (0.62, 0.215, 0.17), (0.75, 0.195, 0.145), *hips]
    else:
        hips = [(0.78, 0.145, 0.11), *hips]
    lower = _plain([(0, 0, h + lift, a * w, b * w) for h, a, b in hips], person.bottom, 14)
    parts.append(replace(lower, nearer=0.06))
    return parts


def _head(person: Appearance, lift: float) -> list[Mesh]:
    """Face in front, hair above and behind, or a hat with a brim."""
    sides, z0, y0 = 12, 1.60 + lift, 0.02
    tilt = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 9)
    rings = [
        (0.0, y0, z0 + 0.130 * math.sin(a), 0.088 * math.cos(a), 0.106 * math.cos(a)) for a in tilt.tolist()
    ]
    turn = np.abs((np.arange(sides) * 360.0 / sides + 180) % 360 - 180)[None, :]
    level = np.sin((tilt[:-1] + tilt[1:]) / 2)[:, None]
    hairy = (level > 0.45) | ((turn > 75) & (level > -0.35)) | ((turn > 110) & (level > -0.75))
    if person.hair_style == "bald":
        hairy = np.zeros_like(hairy)
    colours = np.where(
        hairy[:, :, None], np.asarray(person.hair, np.float64), np.asarray(person.skin, np.float64)
    )
    eyes = (turn > 15) & (turn < 40) & (level > 0.0) & (level < 0.3)
    colours = np.where(eyes[:, :, None], colours * 0.45, colours)
    parts = []
    if person.hat is not None:
        colours = np.where((level > 0.28)[:, :, None], np.asarray(person.hat, np.float64), colours)
        brim = z0 + 0.05
        parts.append(
            _plain([(0, y0 + 0.05, brim, 0.12, 0.15), (0, y0, brim + 0.02, 0.08, 0.09)], person.hat, 12)
        )
    parts.append(lathe(rings, colours))
    if person.hair_style == "long":
        fall = [
            (0.0, -0.06, 1.34 + lift, 0.07, 0.03),
            (0.0, -0.06, 1.50 + lift, 0.10, 0.06),
            (0, -0.03, z0, 0.09, 0.085),
        ]
        parts.append(_plain(fall, person.hair, 10))
    if person.hair_style == "bun" and person.hat is None:
        knot = [(0.0, -0.10, z0 + h, r, r) for h, r in ((0.02, 0.0), (0.05, 0.05), (0.09, 0.05), (0.12, 0.0))]
        parts.append(_plain(knot, person.hair, 8))
    return parts


def _carried(person: Appearance, pose: Pose) -> list[Mesh]:
    """Backpack behind, bags at the right side, umbrella above."""
    colour, lift, w = person.carried_colour, pose.lift, person.width
    x, y, z = pose.arms[1, 2].tolist()
    if person.carried == "backpack":
        shape = (
            (1.0, 0.1, 0.0),
            (1.01, 0.145, 0.085),
            (1.2, 0.15, 0.1),
            (1.38, 0.13, 0.08),
            (1.42, 0.1, 0.0),
        )
        return [_plain([(0, -0.185 * w, h + lift, a, b) for h, a, b in shape], colour, 12)]
    if person.carried == "handbag":
        side = 0.30 * w
        pouch = ((0.70, 0.0, 0.0), (0.70, 0.06, 0.16), (0.94, 0.045, 0.14), (0.94, 0.0, 0.0))
        strap = [(side, 0, 0.94 + lift, 0.014, 0.02), (0.18 * w, 0, 1.38 + lift, 0.014, 0.02)]
        bag = _plain([(side, 0.0, h + lift, a, b) for h, a, b in pouch], colour, 10)
        return [bag, _plain(strap, colour, 6)]
    if person.carried == "shopping_bag":
        sack = ((-0.46, 0.0, 0.0), (-0.46, 0.07, 0.15), (-0.12, 0.07, 0.16), (0.0, 0.01, 0.03))
        return [_plain([(x, y, z + h, a, b) for h, a, b in sack], colour, 10)]
    if person.carried == "umbrella":
        dome = ((1.80, 0.55), (1.93, 0.44), (2.02, 0.24), (2.06, 0.0))
        shaft = [(0.12, 0.1, 1.1 + lift, 0.012, 0.012), (0.05, 0.05, 2.05 + lift, 0.012, 0.012)]
        canopy = _plain([(0.05, 0.05, h + lift, r, r) for h, r in dome], colour, 12)
        return [canopy, _plain(shaft, (60, 60, 60), 6)]
    return []


def body_parts(person: Appearance, phase: float) -> list[Mesh]:
    """The dressed person at a gait phase (rad), facing forward, as a body of mean height."""
    pose = pose_at(person.gait, phase, person.width)
    parts = [*_trunk(person, pose.lift), *_head(person, pose.lift), *_carried(person, pose)]
    bare_leg = {"trousers": 1.0, "shorts": 0.42, "skirt": 0.0}[person.bottom_kind]
    bare_arm = 0.94 if person.long_sleeves else 0.36
    w = 0.5 + 0.5 * person.width
    for side in range(2):
        leg_radii = (0.085 * w, 0.078 * w, 0.062 * w, 0.058 * w, 0.048 * w)
        parts.append(_limb(pose.legs[side], leg_radii, person.bottom, person.skin, bare_leg))
        arm_radii = (0.056 * w, 0.050 * w, 0.044 * w, 0.038 * w, 0.036 * w)
        arm = _limb(pose.arms[side], arm_radii, person.top, person.skin, bare_arm)
        parts.append(replace(arm, nearer=0.10))
        x, y, z = pose.legs[side, 2].tolist()
        shoe = (
            (-0.08, 0.06, 0.042, 0.13),
            (-0.03, 0.06, 0.046, 0.12),
            (0.02, 0.05, 0.04, 0.06),
            (0.02, 0.05, 0, 0),
        )
        rings = [(x, y + forward, z + h, a, b) for h, forward, a, b in shoe]
        parts.append(_plain(rings, person.shoes, 8))
    return parts


def _cross(a: F64, b: F64) -> F64:
    """Cross products of rows; `np.cross` is several times slower for a few hundred rows."""
    ax, ay, az = a.T
    bx, by, bz = b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _projected(parts: list[Mesh], heading: float, view: View) -> tuple[F64, F64]:
    """Visible quads from back to front.

    Returns:
        Image points (V, 4, 2), in metres right of and below the foot, and lit colours (V, 3).
    """
    quads = np.concatenate([part.quads for part in parts])
    colours = np.concatenate([part.colours for part in parts])
    nearer = np.repeat([part.nearer for part in parts], [len(part.quads) for part in parts])
    right = np.array([math.sin(heading), -math.cos(heading), 0.0])
    forward = np.array([math.cos(heading), math.sin(heading), 0.0])
    world = quads @ np.stack([right, forward, np.array([0.0, 0.0, 1.0])])
    normal = _cross(world[:, 3] - world[:, 1], world[:, 2] - world[:, 0])
    normal /= np.sqrt((normal * normal).sum(axis=1, keepdims=True)) + 1e-9
    sine, cosine = math.sin(view.elevation), math.cos(view.elevation)
    to_camera = np.array([0.0, -cosine, sine])
    shade = 0.58 + 0.38 * np.maximum(normal @ np.asarray(view.light), 0.0) + 0.10 * normal[:, 2]
    depth = (world @ to_camera).mean(axis=1) + nearer
    visible = np.flatnonzero(normal @ to_camera > 0.0)
    order = visible[np.argsort(depth[visible], kind="stable")]
    points = np.stack(
        [world[order, :, 0], -(world[order, :, 2] * cosine + world[order, :, 1] * sine)], axis=2
    )
    return points, np.clip(colours[order] * shade[order, None], 0, 255)


def render(person: Appearance, phase: float, heading: float, foot: tuple[float, float], view: View) -> Sprite:
    """Picture of a person.

    Args:
        person: who.
        phase: gait phase in radians.
        heading: walking direction in radians; 0 goes right, pi/2 away from the camera.
        foot: (x, y) in pixels of the frame where the person stands; fractions count.
        view: camera angle, scale and light.
    """
    points, colours = _projected(body_parts(person, phase), heading, view)
    # Scaling the picture scales the body: the view is parallel.
    pixels = points * (view.scale * person.height_m / MEAN_HEIGHT_M) + np.asarray(foot)
    low = np.floor(pixels.min(axis=(0, 1))).astype(int) - 1
    high = np.ceil(pixels.max(axis=(0, 1))).astype(int) + 2
    width, height = (high - low).tolist()
    factor = int(np.clip(round(DRAWN_HEIGHT_PX / height), 2, 8))
    canvas = np.zeros((height * factor, width * factor, 4), np.uint8)
    corners = np.rint((pixels - low) * (factor * 16) - 8).astype(np.int32)
    for corner, colour in zip(corners, colours.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, corner, (*colour, 255.0), cv2.LINE_8, 4)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return Sprite(small.astype(np.uint8, copy=False), int(low[0]), int(low[1]))
