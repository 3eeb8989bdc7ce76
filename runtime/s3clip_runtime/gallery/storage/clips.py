"""Kept crops as bytes: the same pixels come back, so that a new model embeds what the old one saw.

An uncompressed ZIP archive of PNG files `0.png`, `1.png`, ... in temporal order, with their number as its
comment: unzip opens it, and its CRC-32 of each file finds damage. OpenCV writes and reads PNG faster than
Pillow. Eight crops of compressed video take some 16 kB at 64x32 and 220 kB at 256x128, about 0.3 of their
pixels; noise takes 1.01 to 1.04 of them.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError

Crop = NDArray[np.uint8]

_LEVEL = 3
"""Of deflate. 6 saves another 5 % and takes more than twice as long."""

_CURE = "the gallery is damaged; restore a backup"
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError, struct.error)
"""What `zipfile` raises on bytes that are no archive or a damaged one."""


def pack(crops: Sequence[Crop]) -> bytes:
    """Crops of one clip as bytes; the same crops give the same bytes.

    Args:
        crops: at least one uint8 (h, w, 3) RGB, each of any size from 1x1.

    Raises:
        ValueError: there is no crop, or one has another shape or dtype.
    """
    if not crops:
        raise ValueError("crops must be at least one, found none")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for number, crop in enumerate(crops):
            # A ZipInfo of its own has a fixed date: nothing tells when the crops were kept.
            archive.writestr(zipfile.ZipInfo(_name(number)), _png(crop))
        archive.comment = _count(len(crops))
    return data.getvalue()


def unpack(data: bytes) -> tuple[Crop, ...]:
    """The crops that `pack` got: uint8 (h, w, 3) RGB, contiguous, in their order.

    Raises:
        GalleryError: the bytes are damaged or something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [_name(number) for number in range(len(entries))]
            # zipfile has no check on its index: a damaged one may lose the first or the last crop.
            if archive.comment != _count(len(entries)) or archive.namelist() != names or not names:
                raise GalleryError(f"kept crops must be 0.png, 1.png, ... and all there; {_CURE}")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise GalleryError(f"kept crops must lie uncompressed in their archive; {_CURE}")
            files = [archive.read(entry) for entry in entries]
    except _DAMAGE as error:
        raise GalleryError(f"kept crops cannot be read ({error}); {_CURE}") from error
    return tuple(_crop(file) for file in files)


def _count(crops: int) -> bytes:
    return f"{crops} crops".encode()


def _name(number: int) -> str:
    return f"{number}.png"


def _png(crop: Crop) -> bytes:
    if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or not crop.size:
        raise ValueError(f"a crop must be uint8 (h, w, 3), found {crop.dtype} {crop.shape}")
    bgr = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", bgr, (cv2.IMWRITE_PNG_COMPRESSION, _LEVEL))
    return data.tobytes()


def _crop(file: bytes) -> Crop:
    try:
        bgr = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise GalleryError(f"a kept crop is no picture ({error.err}); {_CURE}") from error
    # OpenCV's stubs do not say that a file that is no picture gives None.
    if bgr is None or bgr.dtype != np.uint8 or bgr.ndim != 3 or bgr.shape[2] != 3:
        raise GalleryError(f"a kept crop must be a PNG file of 8-bit colours, found something else; {_CURE}")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
