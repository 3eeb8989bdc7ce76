"""What the cameras of the laboratory film: walkers or a video, in which every picture carries its number."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from streams.clips import FPS, GOP, LOOP, Clip

Picture = NDArray[np.uint8]

CELL = (4, 8)
"""Height and width of one bit of the strip. Flatter than any person, so that no detector reports it."""

CAMERA_BITS, NUMBER_BITS, CHECK_BITS = 5, 12, 7
_BITS = CAMERA_BITS + NUMBER_BITS + CHECK_BITS

EVERY, STAYS = 20, 30
"""A walker enters every 20 frames and is in view for 30, also over the end of the loop."""

WALKERS = LOOP // EVERY


def draw_strip(image: Picture, camera: int, number: int) -> None:
    """Write camera (0..31) and frame number (0..4095) into the top left corner, 192x4 px, white is 1."""
    value = camera << NUMBER_BITS | number
    value = value << CHECK_BITS | _check(value)
    bits = [value >> (_BITS - 1 - place) & 1 for place in range(_BITS)]
    image[: CELL[0], : _BITS * CELL[1]] = np.repeat(np.array(bits, np.uint8) * 235, CELL[1])[None, :, None]


def read_strip(image: Picture) -> tuple[int, int] | None:
    """(camera, number) of a decoded picture, or None where the strip is damaged or not there."""
    if image.shape[1] < _BITS * CELL[1]:
        return None
    cells = image[1 : CELL[0] - 1, : _BITS * CELL[1], 1].reshape(CELL[0] - 2, _BITS, CELL[1])[:, :, 2:-2]
    value = 0
    for bit in cells.mean(axis=(0, 2)) > 118:
        value = value << 1 | int(bit)
    value, check = value >> CHECK_BITS, value & ((1 << CHECK_BITS) - 1)
    if check != _check(value):
        return None
    return value >> NUMBER_BITS, value & ((1 << NUMBER_BITS) - 1)


def _check(value: int) -> int:
    """Not 0 for 0: a black strip is no strip."""
    return (value * 0x9E3779B1 >> 7 ^ 0x55) & ((1 << CHECK_BITS) - 1)


def street_pictures(camera: int, size: tuple[int, int]) -> Iterator[Picture]:
    """A loop of `LOOP` pictures (h, w, 3) RGB: upright rectangles walk, each with its lane and colour.

    Walker k enters in frame 20 k and leaves 30 frames later; others than those of another camera.
    """
    height, width = size
    rng = np.random.default_rng(camera)
    background = np.full((height, width, 3), 128, np.uint8) + rng.integers(0, 12, (*size, 3)).astype(np.uint8)
    for number in range(LOOP):
        image = background.copy()
        for walker in range(WALKERS):
            step = (number - EVERY * walker) % LOOP
            if step < STAYS:
                top = height // 8 + (walker % 2) * height // 2
                left = width // 16 + step * (width * 3 // 4) // STAYS
                image[top : top + height // 4, left : left + height // 10] = _colour(camera, walker)
        draw_strip(image, camera, number)
        yield image


def video_pictures(path: Path, camera: int, size: tuple[int, int]) -> Iterator[Picture]:
    """The first `LOOP` pictures of a video file, scaled, with the strip of a camera in them."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == LOOP:
                return
            image = frame.to_ndarray(format="rgb24", width=size[1], height=size[0]).astype(np.uint8)
            draw_strip(image, camera, number)
            yield image


def black_pictures(size: tuple[int, int]) -> Iterator[Picture]:
    """Two groups of black pictures without a strip."""
    for _ in range(2 * GOP):
        yield np.zeros((*size, 3), np.uint8)


def _colour(camera: int, walker: int) -> tuple[int, int, int]:
    hue = (0.37 * walker + 0.11 * camera) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 1.0, 0.4 + 0.6 * (walker * 7 % 5) / 5)
    return round(255 * red), round(255 * green), round(255 * blue)


def encode_clip(pictures: Iterator[Picture]) -> Clip:
    """Encode with x264 as a camera does: a key frame every `GOP` frames, no B-frames, one slice a frame."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    packets: list[bytes] = []
    for image in pictures:
        if not packets:
            encoder.height, encoder.width = image.shape[:2]
            encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuv420p", Fraction(1, FPS), 1
            params = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:repeat-headers=1"
            encoder.options = {
                "preset": "ultrafast", "tune": "zerolatency", "crf": "21", "x264-params": params
            }  # fmt: skip
        packets += [bytes(packet) for packet in encoder.encode(av.VideoFrame.from_ndarray(image))]
    size = encoder.height, encoder.width
    packets += [bytes(packet) for packet in encoder.encode(None)]
    return Clip(size, [_units(packet) for packet in packets])


def _units(packet: bytes) -> list[bytes]:
    """NAL units of an Annex B packet; the encoder's own remarks (SEI) are left out."""
    units = [unit.rstrip(b"\0") for unit in packet.split(b"\0\0\1")[1:]]
    return [unit for unit in units if unit[0] & 31 != 6]
