"""The pictures of a video file or folder, read in this process: for the annotated video, and to enrol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from s3clip_runtime.streams.reading.addresses import SourceSpec, refusal
from s3clip_runtime.streams.reading.options import ReadOptions
from s3clip_runtime.streams.reading.stored import ASSUMED_FPS, picture_paths

PictureAndFps = tuple[NDArray[np.uint8], float]


def stored_pictures(spec: SourceSpec) -> Iterator[PictureAndFps]:
    """All pictures in order, so that the position is the frame's `index`, up to the end or damage.

    Yields:
        uint8 (h, w, 3) RGB, and frames a second of the whole, a hint for players.

    Raises:
        SourceError: it is gone or cannot be read any more.
    """
    path = Path(spec.url).absolute()  # a colon in a relative name would be taken for a protocol
    return _folder(path) if path.is_dir() else _file(spec, path)


def _file(spec: SourceSpec, path: Path) -> Iterator[PictureAndFps]:
    reformatter = VideoReformatter()  # kept: one per frame costs four times the conversion
    decoded = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or ASSUMED_FPS)
            for picture in container.decode(stream):
                image = reformatter.reformat(picture, format="rgb24").to_ndarray()
                decoded += 1
                yield image.astype(np.uint8, copy=False), fps
    except (av.FFmpegError, IndexError) as error:
        if not decoded:
            raise refusal(spec, f"cannot be read ({error}); check the file, and leave it in place") from error


def _folder(path: Path) -> Iterator[PictureAndFps]:
    for name in picture_paths(path):
        picture = cv2.imread(str(name), cv2.IMREAD_COLOR)
        if picture is None:
            return
        yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), ReadOptions().folder_fps
