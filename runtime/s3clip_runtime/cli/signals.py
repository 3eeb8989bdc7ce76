"""Signals of a run: Ctrl-C and SIGTERM end it in order, a second one aborts it; SIGHUP asks for a reload."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_on_signals(meaning: str, reload: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets. Use it in the main thread only.

    Args:
        meaning: what the stop does, said on standard error when the signal comes.
        reload: set by every SIGHUP, and cleared by who reloads, before reading; after a stop it is set no
            more. None: SIGHUP stays what it was, which by default ends the process.
    """
    stop = threading.Event()
    # Event.set takes a lock that the interrupted main thread may hold just now: called from the handler it
    # would wait for ever. SimpleQueue.put may be called there, and a thread of its own sets the events.
    came: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
    setter = threading.Thread(target=_set_all, args=(came,), name="signals", daemon=True)

    def first(number: int, frame: FrameType | None) -> None:
        came.put(stop)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # os.write, because Python's buffered stderr must not be entered from a handler
        os.write(2, f"\nstopping: {meaning}; once more aborts\n".encode())

    def hang_up(number: int, frame: FrameType | None) -> None:
        if reload is not None and not stop.is_set():
            came.put(reload)

    handlers: dict[signal.Signals, _Handler] = {signal.SIGINT: first, signal.SIGTERM: first}
    if reload is not None:
        handlers[signal.SIGHUP] = hang_up
    before = {number: signal.getsignal(number) for number in handlers}
    setter.start()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        came.put(None)
        setter.join(timeout=1)


def _set_all(came: queue.SimpleQueue[threading.Event | None]) -> None:
    while (event := came.get()) is not None:
        event.set()
