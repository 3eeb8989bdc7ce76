"""The kept crops of one person in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Prototype
from s3clip_runtime.gallery.storage.clips import unpack
from s3clip_runtime.inference.spec import CLIP_LENGTH, SR_SIZE
from s3clip_runtime.streams.outputs.contact_sheet import write_png

_CELL = SR_SIZE
_GAP = 8
_TEXT_PX = 22
_PAPER, _INK = (250, 250, 250), (24, 24, 24)


def write_sheet(path: Path, name: str, clips: Sequence[tuple[Prototype, bytes]]) -> None:
    """Write a PNG, a row of crops a clip.

    Args:
        name: of the person, the first line.
        clips: packed crops, each with a prototype that was made of them.

    Raises:
        GalleryError: there is no clip.
        SinkError: the file cannot be written.
    """
    if not clips:
        raise GalleryError(f"identity {name!r}: no crops were kept of it; enrol with --keep-crops")
    height = _CELL[0] + _TEXT_PX + _GAP
    size = (CLIP_LENGTH * (_CELL[1] + 2) + 2 * _GAP, _GAP + _TEXT_PX + len(clips) * height)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    draw.text((_GAP, _GAP), name, fill=_INK, font=font)
    for number, (one, pictures) in enumerate(clips):
        top = _GAP + _TEXT_PX + number * height
        told = f"{one.id}  {one.platform or '-'}  {one.camera or '-'}  {one.source}"
        draw.text((_GAP, top), told, fill=_INK, font=font)
        for place, crop in enumerate(unpack(pictures)[:CLIP_LENGTH]):
            # Small crops without smoothing: the pixels that the camera saw stay visible.
            way = Image.Resampling.BICUBIC if crop.shape[0] > _CELL[0] else Image.Resampling.NEAREST
            picture = Image.fromarray(crop).resize((_CELL[1], _CELL[0]), way)
            canvas.paste(picture, (_GAP + place * (_CELL[1] + 2), top + _TEXT_PX))
    write_png(path, np.asarray(canvas))
