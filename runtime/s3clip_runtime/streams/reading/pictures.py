"""Decoded pictures into the ring, with their times, and what is wrong with them."""

from __future__ import annotations

import time
from collections import deque

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from s3clip_runtime.streams.reading.clock import CameraClock
from s3clip_runtime.streams.reading.faults import faults_to_bits
from s3clip_runtime.streams.reading.health import PictureHealth
from s3clip_runtime.streams.reading.link import Link, Message
from s3clip_runtime.streams.reading.ring import CLOCKS, RingWriter, Shot

MENDED_S = 2.0
"""After damage, pictures up to the next key frame are left out, but no longer: not all cameras send one."""


class Pictures:
    """Writes the frames of one child."""

    def __init__(self, link: Link, ring: RingWriter) -> None:
        self._board = link.board
        self._ring = ring
        self._index = link.task.index
        self._reformatter = VideoReformatter()  # kept: one per frame costs four times the conversion
        self._health = PictureHealth()
        self._clock = CameraClock(self._board["last_s"])
        self._damaged_until_s = 0.0
        self._skew_told = False
        self._link = link
        self._arrivals: deque[float] = deque(maxlen=64)

    def new_connection(self) -> None:
        """Rates and faults start anew."""
        self._health = PictureHealth()
        self._clock.connected()
        self._damaged_until_s = 0.0
        self._arrivals.clear()
        for name in ("fps", "lag_s", "skew_s"):
            self._board[name] = None
        self._board["newest_s"] = self._board["faults"] = 0
        self._board.add("connections")

    def live(
        self,
        picture: av.VideoFrame,
        start_realtime_s: float | None,
        arrived_unix_s: float,
        decode_s: float,
    ) -> None:
        """Hand out one picture of a stream, unless it is damaged: then it is counted.

        Raises:
            ValueError: it is too large.
        """
        began_s = time.monotonic()
        self._received(began_s)
        time_s, kind = self._clock.stamp(
            pts_s=picture.time, start_realtime_s=start_realtime_s, arrived_unix_s=arrived_unix_s
        )
        self._tell_skew()
        image = self._ring.claim(picture.height, picture.width)
        self._convert(picture, image)
        now_s = time.monotonic()
        faults = self._health.update(image, now_s, corrupt=picture.is_corrupt, key=picture.key_frame)
        board = self._board
        board["faults"] = faults_to_bits(faults)
        board["lag_s"], board["skew_s"] = self._clock.lag_s, self._clock.skew_s
        board["camera_clock"] = kind == "camera"
        index, self._index = self._index, self._index + 1
        board["index"] = self._index
        if self._damaged(picture, "grey" in faults, now_s):
            board.add("corrupt")  # a tracker would find people in grey
            return
        decode_ms = 1000 * (decode_s + now_s - began_s)
        self._publish(image, Shot(index, CLOCKS.index(kind), time_s, now_s, decode_ms))

    def _tell_skew(self) -> None:
        """Once, when the camera's clock is refused."""
        skew_s = self._clock.skew_s
        if skew_s is not None and not self._skew_told:
            side = "ahead" if skew_s > 0 else "behind"
            rule = f"its clock is {abs(skew_s):.0f} s {side}, so its times are those of arrival"
            self._link.tell(Message(warning=f"{rule}; set its NTP server"))
        self._skew_told = skew_s is not None

    def _damaged(self, picture: av.VideoFrame, grey: bool, now_s: float) -> bool:
        """Damage, or what the decoder has made of it since: it mends pictures from those before."""
        if picture.is_corrupt or grey:
            self._damaged_until_s = now_s + MENDED_S
        elif picture.key_frame:
            self._damaged_until_s = 0.0
        return now_s < self._damaged_until_s

    def stored(self, source: av.VideoFrame | NDArray[np.uint8], time_s: float, began_s: float) -> None:
        """Hand out one picture of a file. `began_s`: monotonic time at which its decoding began.

        Raises:
            ValueError: it is too large.
        """
        height, width = source.shape[:2] if isinstance(source, np.ndarray) else (source.height, source.width)
        waited_s = time.monotonic()
        image = self._ring.claim(height, width)
        waited_s = time.monotonic() - waited_s
        if isinstance(source, np.ndarray):
            image[...] = source
        else:
            self._convert(source, image)
        now_s = time.monotonic()
        self._received(now_s)
        index, self._index = self._index, self._index + 1
        self._board["index"] = self._index
        shot = Shot(index, CLOCKS.index("stream"), time_s, now_s, 1000 * (now_s - began_s - waited_s))
        self._publish(image, shot)

    def _received(self, now_s: float) -> None:
        self._arrivals.append(now_s)
        self._board["newest_s"] = now_s
        self._board.add("received")
        if len(self._arrivals) >= 8 and now_s > self._arrivals[0]:
            self._board["fps"] = (len(self._arrivals) - 1) / (now_s - self._arrivals[0])

    def _publish(self, image: NDArray[np.uint8], shot: Shot) -> None:
        height, width = image.shape[:2]
        self._board["height"], self._board["width"] = height, width
        self._board["last_s"] = shot.time_s
        self._ring.publish(height, width, shot)

    def _convert(self, picture: av.VideoFrame, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        plane = self._reformatter.reformat(picture, format="rgb24", threads=1).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8, height * plane.line_size).reshape(
            height, plane.line_size
        )
        image.reshape(height, width * 3)[...] = rows[:, : width * 3]  # rows end in padding
