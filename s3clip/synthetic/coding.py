"""H.264 there and back, with one thread so that equal frames give equal files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def encode_h264(target: Path | io.BytesIO, frames: Iterable[U8], fps: float, crf: int) -> None:
    """Write frames as an MP4 file (H.264, yuv420p).

    Args:
        target: file path or memory; opened and closed here, but memory stays readable.
        frames: uint8 (h, w, 3) RGB, all of one even size, at least one.
        fps: frames a second.
        crf: constant rate factor, 0 (lossless) to 51.
    """
    place = str(target) if isinstance(target, Path) else target
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(place, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def decode_h264(source: Path | io.BytesIO) -> list[U8]:
    """All frames of a video, uint8 (h, w, 3) RGB; the source is opened and closed here."""
    place = str(source) if isinstance(source, Path) else source
    with av.open(place, "r") as container:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


def through_h264(frames: list[U8], fps: float, crf: int) -> list[U8]:
    """The frames as they look after H.264; the same number and order."""
    memory = io.BytesIO()
    encode_h264(memory, frames, fps, crf)
    memory.seek(0)
    return decode_h264(memory)
