"""Raw pictures out of a GStreamer pipeline, for boxes whose decoder only GStreamer knows (Jetson).

GStreamer runs inside the child, through its C interface: the arguments of a `gst-launch-1.0` process, with
the camera's password, would be open to every user of the machine.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from types import TracebackType
from typing import Self

_TAIL = "videoconvert ! video/x-raw,format=RGB ! matroskamux streamable=true ! fdsink sync=false fd={}"
"""Matroska keeps sizes and times; its raw RGB needs no second conversion."""

_NULL, _PLAYING = 1, 4  # GstState
_END, _ERROR = 1 << 0, 1 << 1  # GstMessageType


class _Error(ctypes.Structure):
    _fields_ = (("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p))


_ErrorAt = ctypes.POINTER(_Error)


class PipelineError(OSError):
    """A pipeline failed while it ran."""


class PipelineRefused(Exception):
    """GStreamer is not there, or cannot make the pipeline: rule and cure in one line."""


class Pipeline:
    """A running pipeline as a file that PyAV reads. Close it.

    Args:
        description: as for `gst-launch-1.0`, ending in raw video.
        read_timeout_s: longest wait for data.

    Raises:
        PipelineRefused: no GStreamer, or it cannot make the pipeline.
    """

    def __init__(self, description: str, read_timeout_s: float) -> None:
        self.name = "pipeline"
        self._timeout_s = read_timeout_s
        self._ended = False
        self._over: OSError | None = None
        self._gst = _library()
        self._read, write = os.pipe2(os.O_CLOEXEC)
        error = _ErrorAt()
        text = f"{description} ! {_TAIL.format(write)}".encode()
        self._pipeline = self._gst.gst_parse_launch(text, ctypes.byref(error))
        self._write = write
        if error or not self._pipeline:
            message = self._text(error)
            self.close()
            raise PipelineRefused(f"GStreamer refuses it ({message}); try it with gst-launch-1.0")
        self._gst.gst_element_set_state(self._pipeline, _PLAYING)  # failures come by the bus

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end.

        Raises:
            TimeoutError: none came in time.
            PipelineError: the pipeline failed.
        """
        if self._over is None:
            end_s = time.monotonic() + self._timeout_s
            while time.monotonic() < end_s:
                if select.select([self._read], [], [], 0.1)[0]:
                    return os.read(self._read, size)
                if self._heard_the_end():
                    break
            else:
                self._over = TimeoutError(f"no data for {self._timeout_s:g} s")
        if self._over is not None:  # FFmpeg asks again and again
            raise self._over
        return b""

    def close(self) -> None:
        """Stop the pipeline. Calling it again does nothing."""
        for name in ("_read", "_write"):  # the reading end first: a sink that waits for room gives up
            if (descriptor := getattr(self, name)) >= 0:
                os.close(descriptor)
                setattr(self, name, -1)
            if name == "_read" and self._pipeline:
                self._gst.gst_element_set_state(self._pipeline, _NULL)
                self._gst.gst_object_unref(self._pipeline)
                self._pipeline = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _heard_the_end(self) -> bool:
        """Ask the bus; an error becomes the end that `read` raises."""
        bus = self._gst.gst_element_get_bus(self._pipeline)
        message = self._gst.gst_bus_timed_pop_filtered(bus, 0, _END | _ERROR)
        self._gst.gst_object_unref(bus)
        if not message:
            return self._ended
        content = self._gst.gst_message_get_structure(message)
        if content and self._gst.gst_structure_has_name(content, b"GstMessageError"):
            error = _ErrorAt()
            self._gst.gst_message_parse_error(message, ctypes.byref(error), None)
            self._over = PipelineError(self._text(error))
        self._gst.gst_mini_object_unref(message)
        self._ended = True
        return True

    def _text(self, error: ctypes._Pointer[_Error]) -> str:
        if not error:
            return "no pipeline"
        text = (error.contents.message or b"").decode(errors="replace")
        self._gst.g_error_free(error)
        return text


def _library() -> ctypes.CDLL:
    try:
        gst = ctypes.CDLL("libgstreamer-1.0.so.0")
    except OSError as error:
        raise PipelineRefused("no GStreamer here; install libgstreamer1.0-0 and its plugins") from error
    pointer, error_at = ctypes.c_void_p, ctypes.POINTER(_ErrorAt)
    for name, result, arguments in (
        ("gst_init", None, (pointer, pointer)),
        ("gst_parse_launch", pointer, (ctypes.c_char_p, error_at)),
        ("gst_element_set_state", ctypes.c_int, (pointer, ctypes.c_int)),
        ("gst_element_get_bus", pointer, (pointer,)),
        ("gst_bus_timed_pop_filtered", pointer, (pointer, ctypes.c_uint64, ctypes.c_int)),
        ("gst_message_parse_error", None, (pointer, error_at, pointer)),
        ("gst_message_get_structure", pointer, (pointer,)),
        ("gst_structure_has_name", ctypes.c_int, (pointer, ctypes.c_char_p)),
        ("gst_mini_object_unref", None, (pointer,)),
        ("gst_object_unref", None, (pointer,)),
        ("g_error_free", None, (_ErrorAt,)),
    ):
        function = getattr(gst, name)
        function.restype, function.argtypes = result, arguments
    gst.gst_init(None, None)  # does nothing the second time
    return gst
