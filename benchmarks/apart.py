"""A contender in a process of its own: libraries in one process slow each other down.

With PyTorch's threads and allocations beside it, OpenVINO's encoder took 407 ms instead of 328.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.stages import ClipEmbedder
from s3clip_runtime.inference.clips import Clip

ANSWER_S = 900.0
"""Longest wait for an answer: torch.compile takes minutes for its first call."""


class Apart:
    """`ClipEmbedder` whose work is done by another process. A context manager.

    Args:
        make: makes the embedder, called in the process; a function of a module, with what it needs bound.

    Raises:
        RuntimeError: what `make` raised.
    """

    def __init__(self, make: Callable[[], ClipEmbedder]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: object) -> None:
        self._ours.close()  # ends the process, which waits for clips
        self._process.join(timeout=10)
        self._process.kill()

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """As `Embedder.embed`."""
        self._ours.send(list(clips))
        found: NDArray[np.float32] = self._answer()
        return found

    def _answer(self) -> NDArray[np.float32]:
        if not self._ours.poll(ANSWER_S):
            raise RuntimeError(f"no answer within {ANSWER_S:.0f} s")
        answer = self._ours.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        found: NDArray[np.float32] = answer
        return found


def _serve(make: Callable[[], ClipEmbedder], pipe: Connection) -> None:
    try:
        embedder = make()
        pipe.send(np.empty(0, np.float32))
        while True:
            pipe.send(embedder.embed(pipe.recv()))
    except EOFError:
        pass
    except Exception as error:  # told to the process that asked
        pipe.send(" ".join(f"{type(error).__name__}: {error}".split()))
