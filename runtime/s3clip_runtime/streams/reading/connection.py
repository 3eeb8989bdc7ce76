"""One connection to a stream: open, read, and say why it ended."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.stream import Stream

from s3clip_runtime.streams.reading.addresses import pipeline_of, scrub, with_encoded_login
from s3clip_runtime.streams.reading.gstreamer import Pipeline, PipelineRefused
from s3clip_runtime.streams.reading.hardware import accelerator, no_accelerator
from s3clip_runtime.streams.reading.link import Link, Message, Task
from s3clip_runtime.streams.reading.pictures import Pictures

_REFERENCE = struct.Struct("=q")

ANALYSE_US = 1_000_000
"""Longest look at a new stream, in microseconds. FFmpeg's own 5 s would be lost at every reconnect."""

_NEEDS_PERSON: tuple[tuple[type[Exception], str], ...] = (
    (av.HTTPUnauthorizedError, "the camera refuses user and password (401); correct them"),
    (av.HTTPForbiddenError, "the camera forbids the access (403); check the rights of its user"),
    (av.HTTPNotFoundError, "the camera has no such path (404); correct the address"),
    (av.HTTPBadRequestError, "the camera does not understand the address (400); correct it"),
    (av.ProtocolNotFoundError, "this FFmpeg cannot speak the protocol; use rtsp or http"),
    (av.DecoderNotFoundError, "this FFmpeg has no decoder for the stream; choose H.264 or H.265"),
)


@dataclass(frozen=True, slots=True)
class Lost:
    """Why there is no connection (any more).

    Attributes:
        reason: in words, without secrets.
        needs_person: trying again helps only after somebody changed something.
        timed_out: nothing came, in contrast to a refusal.
        lived_s: seconds from its first picture to its end; 0 without a picture.
    """

    reason: str
    needs_person: bool = False
    timed_out: bool = False
    lived_s: float = 0.0


@contextlib.contextmanager
def opened(task: Task) -> Iterator[InputContainer]:
    """The stream, device or pipeline of the task.

    Raises:
        av.FFmpegError, OSError, PipelineRefused: it cannot be opened.
        RuntimeError: its codec cannot be decoded by the hardware that was asked for.
    """
    timeout = (task.open_timeout_s, task.read_timeout_s)
    hardware = accelerator(task.decode)
    if task.kind == "pipeline":
        with (
            Pipeline(pipeline_of(task.url), task.read_timeout_s) as pipeline,
            av.open(pipeline, "r", format="matroska", buffer_size=1 << 20, timeout=timeout) as container,
        ):
            yield container
    elif task.kind == "device":
        with av.open(task.url, format="v4l2", timeout=timeout, hwaccel=hardware) as container:
            yield container
    else:
        options = {"analyzeduration": str(ANALYSE_US), "fpsprobesize": "0"}
        if task.url.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        with av.open(
            with_encoded_login(task.url),
            options=options,
            timeout=timeout,
            metadata_errors="replace",
            hwaccel=hardware,
        ) as container:
            yield container


def _start_realtime_s(container: InputContainer, packet: av.Packet[Stream]) -> float | None:
    """Unix time of the stream's time stamp 0 by the camera's newest RTCP report; None before the first.

    The container keeps the first report of a connection alone, and two clocks part by seconds in a week: the
    packets carry the newest (`AVProducerReferenceTime`, whose first field is the time in microseconds).
    """
    reference = bytes(packet.get_sidedata("prft"))
    if len(reference) >= _REFERENCE.size and packet.pts is not None and packet.time_base is not None:
        return float(_REFERENCE.unpack_from(reference)[0] / 1e6 - packet.pts * packet.time_base)
    return container.start_time_realtime / 1e6 if container.start_time_realtime else None


class Connection:
    """One attempt. `pictures` gets what comes."""

    def __init__(self, link: Link, pictures: Pictures) -> None:
        self._link = link
        self._task = link.task
        self._pictures = pictures
        self._waits_since_s = time.monotonic()
        self._connected = False
        self._first_s: float | None = None

    def read(self, container: InputContainer) -> Lost:
        """Read until the stream ends or falls silent.

        Raises:
            av.FFmpegError, OSError: the connection broke; make it a `Lost` by `why`.
        """
        if not container.streams.video:
            return Lost("the stream has no video; give the address of a stream with pictures", True)
        self._waits_since_s, self._connected = time.monotonic(), True
        self._pictures.new_connection()
        self._link.tell(Message("connected", live=True))
        ended = self._read_packets(container)
        return Lost(ended, timed_out=not ended.endswith("ended the stream"), lived_s=self._lived_s())

    def why(self, error: Exception) -> Lost:
        """The end by an exception, in words that do not quote the address, as av errors do."""
        if isinstance(error, RuntimeError) and self._task.decode != "cpu":
            return Lost(no_accelerator(str(error)), True)
        if isinstance(error, PipelineRefused):
            return Lost(scrub(str(error), self._task.url), True)
        if isinstance(error, PermissionError) and self._task.kind == "device":
            return Lost("not permitted; let the user of this program read the device (group video)", True)
        for kind, rule_and_cure in _NEEDS_PERSON:
            if isinstance(error, kind):
                return Lost(rule_and_cure, True, lived_s=self._lived_s())
        # The type of a time-out varies (InvalidDataError, ExitError): only the time that passed is reliable.
        limit_s = self._task.read_timeout_s if self._connected else self._task.open_timeout_s
        silent = time.monotonic() - self._waits_since_s >= 0.8 * limit_s
        said = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        state = "lost" if self._connected else "not reachable"
        shown = scrub(said, self._task.url)
        if silent:
            return Lost(f"{state} (silent for {limit_s:g} s)", timed_out=True, lived_s=self._lived_s())
        return Lost(f"{state} ({shown})", lived_s=self._lived_s())

    def _lived_s(self) -> float:
        return 0.0 if self._first_s is None else time.monotonic() - self._first_s

    def _read_packets(self, container: InputContainer) -> str:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # sixteen cameras on two cores; threads would only add delay
        limit_s = self._task.read_timeout_s
        seen_s = self._waits_since_s = time.monotonic()
        for packet in container.demux():  # all streams: the sound alone must not keep a dead picture alive
            arrived_unix_s, began_s = time.time(), time.monotonic()
            if began_s - self._waits_since_s >= limit_s:
                # FFmpeg's parser holds the newest picture back and gives it out when the time is over: handed
                # on, it would hide the silence for as long again.
                return f"lost (silent for {limit_s:g} s)"
            self._link.alive(2 * self._task.read_timeout_s)
            if packet.stream is stream:
                try:
                    pictures = packet.decode()
                except av.FFmpegError:
                    self._link.board.add("undecodable")
                    pictures = []
                decode_s = (time.monotonic() - began_s) / max(len(pictures), 1)
                start_s = _start_realtime_s(container, packet)
                for picture in pictures:
                    assert isinstance(picture, av.VideoFrame)
                    self._pictures.live(picture, start_s, arrived_unix_s, decode_s)
                    seen_s = time.monotonic()
                    self._first_s = self._first_s or seen_s
            self._waits_since_s = time.monotonic()
            if self._waits_since_s - seen_s > limit_s:
                return f"no picture for {limit_s:g} s"
        return "the camera ended the stream"
