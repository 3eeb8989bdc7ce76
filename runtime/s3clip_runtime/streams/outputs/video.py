"""Video files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import SinkError
from s3clip_runtime.inference.preprocess import resize_bicubic

_MILLISECONDS = Fraction(1, 1000)


class AnnotatedVideo:
    """An H.264 file, frame by frame, with the frames' own times.

    Args:
        path: .mp4 or .mkv; an existing file is overwritten.
        size: (height, width) of the pictures; an odd last row or column is left out, as H.264 demands.
        fps: of the source; only a hint for players.

    Raises:
        SinkError: the file cannot be created, or PyAV was built without an H.264 encoder.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._path = path
        self._given_size = size
        self._size = (size[0] // 2 * 2, size[1] // 2 * 2)
        self._first_s: float | None = None
        self._last_pts = -1
        rate = Fraction(fps if fps > 0 else 25.0).limit_denominator(1001)
        try:
            self._container = av.open(str(path), "w")
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.height, self._stream.width = self._size
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"preset": "veryfast", "crf": "20"}
            self._stream.codec_context.time_base = _MILLISECONDS
            self._container.start_encoding()  # opens the file, which `av.open` does not
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SinkError(f"the video {path} cannot be created: {error}; name a writable folder") from error

    def write(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Append one picture, uint8 (h, w, 3) RGB of the size given, shown at `time_s` of the source's clock.

        Pictures of another size are resized.

        Raises:
            SinkError: the disk is full or gone.
        """
        first_s = self._first_s = time_s if self._first_s is None else self._first_s
        pts = max(round((time_s - first_s) * 1000), self._last_pts + 1)
        self._last_pts = pts
        if image.shape[:2] != self._given_size:  # a camera may change its size; a video file cannot
            image = resize_bicubic(image, self._given_size)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[: self._size[0], : self._size[1]]))
        frame.pts, frame.time_base = pts, _MILLISECONDS
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise SinkError(
                f"the video {self._path} cannot be written: {error}; make room on the disk"
            ) from error

    def close(self) -> None:
        """Write the last frames and the index.

        Raises:
            SinkError: the disk is full or gone.
        """
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise SinkError(
                f"the video {self._path} cannot be ended: {error}; make room on the disk"
            ) from error
