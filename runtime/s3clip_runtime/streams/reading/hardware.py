"""Decoding on the graphics card: obeyed or refused, never silently the processor."""

from __future__ import annotations

import av
from av.codec.hwaccel import HWAccel

from s3clip_runtime.streams.reading.options import Decode


def accelerator(decode: Decode) -> HWAccel | None:
    """What `av.open` needs for it."""
    return HWAccel("cuda", allow_software_fallback=False) if decode == "cuda" else None


def missing(decode: Decode) -> str | None:
    """Why it is not to be had here, with the cure; None when it is. Opens the device for a moment."""
    hardware = accelerator(decode)
    if hardware is None:
        return None
    try:
        hardware.create(av.Codec("h264", "r"))
    except (av.FFmpegError, NotImplementedError) as error:
        return no_accelerator(getattr(error, "strerror", None) or str(error))
    return None


def no_accelerator(problem: str) -> str:
    """Rule and cure in one line."""
    return (
        f"decode = 'cuda' is not available here ({problem}); install NVIDIA's driver or write decode = 'cpu'"
    )
