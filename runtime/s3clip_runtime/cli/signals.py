"""Ctrl-C and SIGTERM: the first one ends a run in order, the second one aborts it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals(meaning: str) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets. Use it in the main thread only.

    Args:
        meaning: what the stop does, said on standard error when the signal comes.
    """
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # os.write, because Python's buffered stderr must not be entered from a handler
        os.write(2, f"\nstopping: {meaning}; once more aborts\n".encode())

    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
