"""The process that reads one camera: `python -m s3clip_runtime.streams.reading.child SOCKET`.

Its parent gives it the task over the socket with that descriptor, and ends it by closing the other end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from s3clip_runtime.streams.reading.link import Closing, Link, Message
from s3clip_runtime.streams.reading.live import read_live
from s3clip_runtime.streams.reading.options import FILE_PATIENCE_S
from s3clip_runtime.streams.reading.pictures import Pictures
from s3clip_runtime.streams.reading.ring import RingWriter
from s3clip_runtime.streams.reading.stored import Refused, play_file, play_folder

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read until the end, or until the parent closes or dies."""
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # Terminals and service managers send these to all processes; the parent ends its children itself,
        # after it has taken what they read.
        signal.signal(ignored, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # also while FFmpeg hangs
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    live = link.task.kind not in ("file", "folder")
    ring = RingWriter(
        link.task.ring, link.board, drop_oldest=live, waiting=lambda: link.alive(FILE_PATIENCE_S)
    )
    try:
        if live:
            read_live(link, ring)
        elif link.task.kind == "folder":
            play_folder(link, Pictures(link, ring))
        else:
            play_file(link, Pictures(link, ring))
        link.tell(Message("ended"))
    except Closing:  # the camera has its goodbye; tidying up the interpreter would only take time
        os._exit(0)
    except Refused as refused:
        link.tell(Message("failed", reason=str(refused), live=False))


if __name__ == "__main__":
    main()
