"""Pictures from disk, and only those whose numbers are what the graphs take: 8 bits a channel.

Pillow shrinks 16-bit colour to 8 bits without a word, and turns float and 16-bit grey into white or black.
Ranges and embeddings of such crops are wrong and nothing shows it, so these files are refused by headers.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.clips import Size

PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Files that are read, whatever the case of the letters."""

_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH: Final = 24
"""Place of the bit depth in a PNG file: the first chunk must be the header."""

_NUMBER: Final = re.compile(r"([0-9]+)")

_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_BITS, _TIFF_SAMPLES = 258, 339
_TIFF_KINDS: Final = {1: "uint", 2: "int", 3: "float"}

# What Pillow raises at damaged headers and bodies; it turns some of them into OSError, but not all.
_DAMAGE: Final = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)


def read_size(path: Path) -> Size:
    """Native (height, width) of a picture; its pixels are not decoded.

    Raises:
        DataError: it is missing, no picture of `PICTURE_SUFFIXES`, or has not 8 bits a channel.
    """
    with _opened(path) as picture:
        return picture.height, picture.width


def read_picture(path: Path) -> NDArray[np.uint8]:
    """One picture, uint8 (h, w, 3) RGB, as Pillow decodes it. Grey is repeated, alpha is dropped.

    Raises:
        DataError: as `read_size`, or its pixels are damaged or cut off.
    """
    with _opened(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_upright(path: Path) -> NDArray[np.uint8]:
    """As `read_picture`, turned as its EXIF data says: phones store portraits lying down.

    Raises:
        DataError: as `read_picture`.
    """
    with _opened(path) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def picture_files(folder: Path) -> list[Path]:
    """The pictures that lie directly in a folder, in the natural order of their names.

    Raises:
        DataError: there is none, or the folder cannot be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir() if is_picture(entry.name)]
    except OSError as error:
        raise DataError(
            f"{folder}: a folder must be readable ({error.strerror}); check its permissions"
        ) from error
    if not names:
        raise DataError(
            f"folder {folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}); give another folder"
        )
    return [folder / name for name in sorted(names, key=natural_key)]


def is_picture(name: str) -> bool:
    """Whether a file of this name is one to read: by its suffix; hidden files are left."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key by which frame 9 comes before frame 10."""
    # re.split gives text and digits in turns, so a number never meets a text.
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(name))], name


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read. Damage that is found while it is open is a DataError too."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
            raise OSError("it is no regular file")
        with path.open("rb") as file:
            kind = _channel_kind(file)
            if kind != "uint8":
                raise _refused(path, kind)
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as picture:
                if picture.mode not in _MODES:
                    raise _refused(path, f"mode {picture.mode}")
                yield picture
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: a crop must be a picture ({', '.join(_FORMATS)}), and this file is none or its header "
            "is damaged; restore or remove it"
        ) from None
    except _DAMAGE as error:
        raise DataError(
            f"{path}: a crop must be a readable picture ({error}); restore or remove it"
        ) from None


def _refused(path: Path, kind: str) -> DataError:
    return DataError(
        f"{path}: a crop must be an 8-bit grey or colour picture, found {kind} {path.suffix[1:].upper()}; "
        "write it with values of 0 to 255 as the cameras give them, or remove it"
    )


def _channel_kind(file: BinaryIO) -> str:
    """What one channel's numbers are, such as uint8, uint16 or float32. Fewer than 8 bits count as uint8."""
    head = file.read(_PNG_DEPTH + 1)
    if head.startswith(_PNG) and len(head) > _PNG_DEPTH:
        return f"uint{max(head[_PNG_DEPTH], 8)}"
    if head.startswith(_TIFF):
        return _tiff_kind(file, head)
    return "uint8"  # Pillow reads no other JPEG, BMP and WebP


def _tiff_kind(file: BinaryIO, head: bytes) -> str:
    """By the tags: Pillow itself cannot open float colour, and would not say why."""
    tags = ImageFileDirectory_v2(head[:16] if b"+" in head[:4] else head[:8])
    file.seek(tags.next)
    tags.load(file)
    bits = max(tags.get(_TIFF_BITS, (1,)))
    sample = max(tags.get(_TIFF_SAMPLES, (1,)))
    return f"{_TIFF_KINDS.get(sample, 'undefined ')}{max(bits, 8)}"
