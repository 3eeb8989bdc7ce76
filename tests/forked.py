"""Child processes that are killed at a chosen moment. Forked: hundreds of them cost little."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

Say = Callable[[object], None]
"""Hands one value to the parent; anything that JSON holds."""


def in_a_child(work: Callable[[Say], None]) -> tuple[int, int]:
    """Run it in a forked process; its id, and the end of a pipe on which it says lines of JSON."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return child, ours
    try:
        os.close(ours)
        with os.fdopen(theirs, "w", buffering=1) as file:
            work(lambda said: print(json.dumps(said), file=file))
        os._exit(0)
    finally:
        os._exit(1)


def killed(child: int, pipe: int, *, lines: int, after_s: float) -> list[Any]:
    """What the child had said when it was killed: so many lines at least, and `after_s` later."""
    try:
        said, deadline_s = b"", time.monotonic() + 60
        while said.count(b"\n") < lines:
            ready, _, _ = select.select([pipe], [], [], deadline_s - time.monotonic())
            assert ready, "the child hangs"
            more = os.read(pipe, 4096)
            assert more, "the child failed"
            said += more
        time.sleep(after_s)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(pipe, "rb") as file:
        said += file.read()
    return [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith(b"\n")]
