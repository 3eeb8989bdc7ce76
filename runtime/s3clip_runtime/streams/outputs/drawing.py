"""Pictures for people: labelled boxes on frames, and the contact sheet of a run.

Text is drawn by Pillow's own scalable font, which is crisp at small sizes and knows more than ASCII.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.inference.spec import CLIP_LENGTH, SR_SIZE

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

_COLOURS: tuple[Colour, ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (0, 128, 128),
    (170, 110, 40),
    (128, 0, 0),
)
_INK: Colour = (24, 24, 24)
_SOFT_INK: Colour = (110, 110, 110)
_PAPER: Colour = (250, 250, 250)
_RULE: Colour = (210, 210, 210)

_GAP = 12
_CELL = SR_SIZE
_STRIP_WIDTH = CLIP_LENGTH * (_CELL[1] + 2)
_HEADER_HEIGHT = 78
_TEXT_WIDTH = 200
_MATCH_WIDTH = 132
MATCHES_SHOWN = 3
"""Best identities of a row of the contact sheet."""


@dataclass(frozen=True, slots=True)
class Label:
    """A box of a frame and its text.

    Attributes:
        track: chooses the colour.
        box: x1, y1, x2, y2 in pixels.
        text: drawn above the box.
    """

    track: int
    box: tuple[float, float, float, float]
    text: str


@dataclass(frozen=True, slots=True)
class SheetMatch:
    """One candidate identity of a row: its name, cosine score and, when known, a crop of it."""

    identity: str
    score: float
    crop: Picture | None


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One tracklet of the contact sheet.

    Attributes:
        lines: short texts at the left, the first one bold by size.
        crops: the input crops, uint8 (h, w, 3) RGB of any sizes; at most `CLIP_LENGTH` are shown.
        enhanced: uint8 (T, 128, 64, 3) super-resolved crops; None where there are none.
        matches: best first; at most `MATCHES_SHOWN` are shown.
        verdict: the last line, coloured by `good`; empty when there is nothing to say.
        good: True green, False red, None grey.
        not_enhanced: written in the place of `enhanced` where that is None.
    """

    lines: tuple[str, ...]
    crops: tuple[Picture, ...]
    enhanced: Picture | None
    matches: tuple[SheetMatch, ...]
    verdict: str
    good: bool | None
    not_enhanced: str = "high resolution: not needed"


def draw_labels(image: Picture, labels: Sequence[Label]) -> Picture:
    """A copy of `image`, uint8 (h, w, 3) RGB, with each box and its text."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    size = max(11, min(22, image.shape[0] // 32))
    for label in labels:
        colour = _COLOURS[label.track % len(_COLOURS)]
        x1, y1, x2, y2 = label.box
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2)
        _tag(draw, (x1, y1), label.text, size, colour, (image.shape[0], image.shape[1]))
    return np.array(canvas)


def contact_sheet(rows: Sequence[SheetRow], title: str) -> Picture:
    """One picture of a run: uint8 (H, W, 3) RGB, a row a tracklet.

    Columns: facts, the input crops, the super-resolved crops, the best identities.
    Small crops are enlarged without smoothing, so the pixels that the camera saw stay visible.
    """
    row_height = _CELL[0] + 2 * _GAP
    strips_at = _GAP + _TEXT_WIDTH
    matches_at = strips_at + 2 * (_STRIP_WIDTH + _GAP)
    size = (
        _HEADER_HEIGHT + max(1, len(rows)) * row_height,
        matches_at + MATCHES_SHOWN * _MATCH_WIDTH + _GAP,
    )
    canvas = Image.new("RGB", (size[1], size[0]), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, fill=_INK, font=_font(22))
    heads = ("tracklet", "input crops", "super-resolved x2", "best identities (cosine)")
    places = (_GAP, strips_at, strips_at + _STRIP_WIDTH + _GAP, matches_at)
    for head, x in zip(heads, places, strict=True):
        draw.text((x, _HEADER_HEIGHT - 24), head, fill=_SOFT_INK, font=_font(14))
    for number, row in enumerate(rows):
        top = _HEADER_HEIGHT + number * row_height
        draw.line((_GAP, top, size[1] - _GAP, top), fill=_RULE)
        _draw_row(canvas, draw, row, top + _GAP, places)
    if not rows:
        draw.text((_GAP, _HEADER_HEIGHT + _GAP), "No person was seen.", fill=_INK, font=_font(16))
    return np.array(canvas)


def _draw_row(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, top: int, places: Sequence[int]
) -> None:
    for number, line in enumerate(row.lines):
        font, ink = (_font(16), _INK) if number == 0 else (_font(13), _SOFT_INK)
        draw.text((places[0], top + 20 * number), _fit(line, font, _TEXT_WIDTH - _GAP), fill=ink, font=font)
    if row.verdict:
        ink = {True: (20, 130, 50), False: (200, 30, 30), None: _SOFT_INK}[row.good]
        text = _fit(row.verdict, _font(14), _TEXT_WIDTH - _GAP)
        draw.text((places[0], top + 20 * len(row.lines)), text, fill=ink, font=_font(14))
    _strip(canvas, row.crops, places[1], top)
    if row.enhanced is None:
        draw.text((places[2], top + 4), row.not_enhanced, fill=_SOFT_INK, font=_font(13))
    else:
        _strip(canvas, tuple(row.enhanced), places[2], top)
    for number, match in enumerate(row.matches[:MATCHES_SHOWN]):
        _draw_match(canvas, draw, match, places[3] + number * _MATCH_WIDTH, top)
    if not row.matches:
        draw.text((places[3], top + 4), "no gallery", fill=_SOFT_INK, font=_font(13))


def _draw_match(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, match: SheetMatch, left: int, top: int
) -> None:
    text_top = top
    if match.crop is not None:
        height = _CELL[0] - 36
        picture = resize_bicubic(match.crop, (height, height // 2))
        canvas.paste(Image.fromarray(picture), (left, top))
        text_top = top + height + 2
    width = _MATCH_WIDTH - 6
    draw.text((left, text_top), _fit(match.identity, _font(13), width), fill=_INK, font=_font(13))
    draw.text((left, text_top + 16), f"{match.score:.3f}", fill=_INK, font=_font(13))


def _strip(canvas: Image.Image, crops: Sequence[Picture], left: int, top: int) -> None:
    for number, crop in enumerate(crops[:CLIP_LENGTH]):
        larger = crop.shape[0] > _CELL[0]
        resample = Image.Resampling.BICUBIC if larger else Image.Resampling.NEAREST
        picture = Image.fromarray(np.ascontiguousarray(crop)).resize((_CELL[1], _CELL[0]), resample)
        canvas.paste(picture, (left + number * (_CELL[1] + 2), top))


def _tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    size: int,
    colour: Colour,
    frame_size: tuple[int, int],
) -> None:
    """Text on a filled bar above `corner`, pushed back inside the frame."""
    font = _font(size)
    width, height = font.getlength(text) + 6, size + 5
    x = max(0.0, min(corner[0], frame_size[1] - width))
    y = max(0.0, corner[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3, y + 1), text, fill=(255, 255, 255), font=font)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """`text`, shortened with an ellipsis until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
