"""A child's reading of what is whole: video files and folders of pictures. Nothing is dropped."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from s3clip_runtime.streams.reading.hardware import accelerator, missing, no_accelerator
from s3clip_runtime.streams.reading.link import Link, Message
from s3clip_runtime.streams.reading.options import FILE_PATIENCE_S
from s3clip_runtime.streams.reading.pictures import Pictures

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")

ASSUMED_FPS = 25.0
"""Only for files that state neither time stamps nor a rate."""


class Refused(Exception):
    """Why a file or folder cannot be read: rule and cure in one line."""


def play_file(link: Link, pictures: Pictures) -> None:
    """All pictures of a video file. Raises `Refused`, `Closing`."""
    if problem := missing(link.task.decode):
        raise Refused(problem)
    link.alive(FILE_PATIENCE_S)
    try:
        container = av.open(link.task.url, metadata_errors="replace", hwaccel=accelerator(link.task.decode))
    except av.FFmpegError as error:
        raise Refused(f"not a readable video ({error.strerror}); convert it to MP4 or MKV") from error
    except RuntimeError as error:
        raise Refused(no_accelerator(str(error))) from error
    with container:
        if container.format.name == "tty":  # FFmpeg draws any text as a video
            raise Refused("a text file, not a video; give a video")
        if not container.streams.video:
            raise Refused("the file has no video stream; give a file with pictures")
        play_container(link, pictures, container)


def play_container(link: Link, pictures: Pictures, container: InputContainer) -> None:
    """All pictures of an open file, with times from its time stamps, from 0 and always rising.

    Raises:
        Refused: no video, or no picture that can be decoded.
        Closing: the parent wants an end.
    """
    if not container.streams.video:
        raise Refused("the file has no video stream; give a file with pictures")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # a file is read as fast as it is searched, which takes longer
    rate = float(stream.average_rate) if stream.average_rate else None
    period = 1 / (rate or ASSUMED_FPS)
    start, last, count = None, -period, 0
    began_s = time.monotonic()
    for picture in _decoded(link, container, stream):
        if count == 0:
            link.tell(Message("connected", live=False, fps=rate))
        stamp = count * period if picture.time is None else picture.time
        start = stamp if start is None else start
        last = stamp - start if stamp - start > last else last + period
        pictures.stored(picture, last, began_s)
        count += 1
        began_s = time.monotonic()
    if count == 0:
        raise Refused("no picture can be decoded; the file is empty or damaged, copy it again")


def _decoded(link: Link, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    count = 0
    try:
        for picture in container.decode(stream):
            count += 1
            link.alive(FILE_PATIENCE_S)
            yield picture
    except av.FFmpegError as error:
        if count:
            link.tell(Message(warning=f"damaged after {count} frames ({error.strerror})"))
        return
    if 0 < count < stream.frames:
        missed = stream.frames - count
        link.tell(Message(warning=f"{missed} of {stream.frames} frames are missing"))


def play_folder(link: Link, pictures: Pictures) -> None:
    """All pictures of a folder in the order of the numbers in their names. Raises `Refused`, `Closing`."""
    import cv2  # 25 MB that the children of cameras and videos do without

    paths = picture_paths(Path(link.task.url))
    if not paths:
        kinds = ", ".join(PICTURE_SUFFIXES)
        raise Refused(f"the folder holds no {kinds}; give the folder of the pictures")
    for index, path in enumerate(paths):
        link.alive(FILE_PATIENCE_S)
        began_s = time.monotonic()
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None and index == 0:
            raise Refused(f"{path.name} is not a readable picture; remove or replace it")
        if picture is None:
            link.tell(Message(warning=f"{path.name} is damaged after {index} frames"))
            return
        if index == 0:
            link.tell(Message("connected", live=False, fps=link.task.folder_fps))
        pictures.stored(
            picture[..., ::-1].astype(np.uint8, copy=False), index / link.task.folder_fps, began_s
        )


def picture_paths(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
