"""Exact searches in memory beside ours, each in a process of its own: numpy, faiss and usearch bring threads.

All hold the same float16 numbers, and have the same number of threads.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.records import Match
from s3clip_runtime.gallery.search.prototypes import Prototypes
from s3clip_runtime.gallery.storage.database import Halves

DIM = 1280
EACH = 10
"""Prototypes of a person."""

TOP = 10
"""Persons asked for. Ten prototypes each may stand in front of the tenth person: rivals give `ROWS` rows."""

ROWS = TOP * EACH

ANSWER_S = 600.0
_PIECE = 4000  # rows made at once
_NOISE = 1.5  # deviation of a prototype from its person, in deviations of the persons

Singles = NDArray[np.float32]


def made(size: int) -> Iterator[Halves]:
    """Float16 unit vectors in pieces, the `EACH` of a person together; the same in every process."""
    rng = np.random.default_rng(size)
    for low in range(0, size, _PIECE):
        people = rng.standard_normal((min(_PIECE, size - low) // EACH, 1, DIM), dtype=np.float32)
        noise = _NOISE * rng.standard_normal((len(people), EACH, DIM), dtype=np.float32)
        yield _units((people + noise).reshape(-1, DIM)).astype(np.float16)


def made_queries(size: int, count: int) -> Singles:
    """Float32 unit vectors, each near a prototype of `made(size)`."""
    rng = np.random.default_rng(size + 1)
    near = next(made(size))[:: max(1, min(size, _PIECE) // count)][:count].astype(np.float32)
    return _units(near + rng.standard_normal(near.shape, dtype=np.float32) * (_NOISE / DIM**0.5))


def _units(vectors: Singles) -> Singles:
    lengths: Singles = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths


class Rival(Protocol):
    """One way to search."""

    def search(self, queries: Singles) -> None:
        """What is timed."""

    def people(self) -> list[list[int]]:
        """The `TOP` persons of each query of the last search, best first; empty if it finds nobody."""


class _Ours:
    def __init__(self, size: int, threads: int) -> None:
        self._found: list[list[Match]] = []
        self._prototypes = Prototypes(DIM)
        number = 0
        for piece in made(size):
            for low in range(0, len(piece), EACH):
                self._prototypes.put(str(number), piece[low : low + EACH], [None] * EACH)
                number += 1

    def search(self, queries: Singles) -> None:
        self._found = self._prototypes.search(queries, TOP)

    def people(self) -> list[list[int]]:
        return [[int(match.identity) for match in matches] for matches in self._found]


class _Product:
    """One matrix product and nothing else: what no exact search on float32 goes below."""

    def __init__(self, size: int, threads: int) -> None:
        self._vectors = _gathered(size, np.dtype(np.float32))

    def search(self, queries: Singles) -> None:
        np.matmul(queries, self._vectors.T)

    def people(self) -> list[list[int]]:
        return []


class _Numpy:
    def __init__(self, size: int, threads: int) -> None:
        self._vectors = _gathered(size, np.dtype(np.float32))
        self._rows = np.zeros((0, ROWS), np.int64)

    def search(self, queries: Singles) -> None:
        scores = queries @ self._vectors.T
        rows = np.argpartition(scores, -ROWS, axis=1)[:, -ROWS:]
        order = np.argsort(-np.take_along_axis(scores, rows, axis=1), axis=1)
        self._rows = np.take_along_axis(rows, order, axis=1)

    def people(self) -> list[list[int]]:
        return people_of(self._rows)


class _Faiss:
    """Args: kind: word of faiss's `index_factory`."""

    def __init__(self, kind: str, size: int, threads: int) -> None:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)
        self._rows = np.zeros((0, ROWS), np.int64)
        self._index = faiss.index_factory(DIM, kind, faiss.METRIC_INNER_PRODUCT)
        for piece in made(size):
            self._index.add(piece.astype(np.float32))

    def search(self, queries: Singles) -> None:
        self._rows = self._index.search(queries, ROWS)[1]

    def people(self) -> list[list[int]]:
        return people_of(self._rows)


class _Usearch:
    def __init__(self, size: int, threads: int) -> None:
        self._usearch = importlib.import_module("usearch.index")
        self._threads = threads
        self._vectors = _gathered(size, np.dtype(np.float16))
        self._rows = np.zeros((0, ROWS), np.int64)

    def search(self, queries: Singles) -> None:
        found = self._usearch.search(
            self._vectors,
            queries.astype(np.float16),
            ROWS,
            self._usearch.MetricKind.IP,
            exact=True,
            threads=self._threads,
        )
        self._rows = found.keys.reshape(len(queries), ROWS)

    def people(self) -> list[list[int]]:
        return people_of(self._rows)


def _gathered(size: int, kind: np.dtype[Any]) -> NDArray[Any]:
    vectors = np.empty((size, DIM), kind)
    for number, piece in enumerate(made(size)):
        vectors[number * _PIECE : number * _PIECE + len(piece)] = piece
    return vectors


PRODUCT = "one float32 product (BLAS)"
OURS = "s3clip, float16"
RIVALS: Mapping[str, Callable[[int, int], Rival]] = MappingProxyType(
    {
        PRODUCT: _Product,
        OURS: _Ours,
        "numpy, product and argpartition": _Numpy,
        "faiss IndexFlatIP": partial(_Faiss, "Flat"),
        "faiss ScalarQuantizer fp16": partial(_Faiss, "SQfp16"),
        "usearch exact, float16": _Usearch,
    }
)
"""Made with the number of prototypes and the number of threads."""


def people_of(rows: NDArray[np.integer[Any]]) -> list[list[int]]:
    """The first `TOP` persons of rows (n, `ROWS`), best first."""
    return [list(dict.fromkeys((found // EACH).tolist()))[:TOP] for found in rows.astype(np.int64)]


@dataclass(frozen=True, slots=True)
class Answer:
    """One search: its wall seconds, and the persons found."""

    seconds: float
    people: list[list[int]]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the process: more than before the vectors came, and more for a moment during a search."""

    held: int
    moment: int


class RivalApart:
    """One rival in a process of its own. A context manager.

    Args:
        name: one of `RIVALS`.
        size: prototypes.
        threads: of the rival.

    Raises:
        RuntimeError: what the rival raised.
    """

    def __init__(self, name: str, size: int, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(name, size, threads, theirs), daemon=True)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the child when it loads numpy
        try:
            self._process.start()
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        try:
            self._wait()
            told: Memory | str = self._ours.recv()
            if isinstance(told, str):
                raise RuntimeError(told)
            self.memory = told
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> RivalApart:
        return self

    def __exit__(self, *error: object) -> None:
        self._ours.close()  # ends the process, which waits for queries
        self._process.join(timeout=10)
        self._process.kill()

    def search(self, queries: Singles) -> Answer:
        """One timed search; the clock is that of the rival's process, without the way there."""
        self._ours.send(queries)
        self._wait()
        answer: Answer = self._ours.recv()
        return answer

    def _wait(self) -> None:
        if not self._ours.poll(ANSWER_S):
            raise RuntimeError(f"no answer within {ANSWER_S:.0f} s")


def _serve(name: str, size: int, threads: int, pipe: Connection) -> None:
    try:
        rival = RIVALS[name](ROWS, threads)
        rival.search(made_queries(ROWS, 1))  # from here on libraries and threads are there
        before = _settled()
        rival = RIVALS[name](size, threads)
        queries = made_queries(size, 32)
        held = _settled()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
        rival.search(queries)
        pipe.send(Memory(held - before, _status("VmHWM") - held))
    except Exception as error:  # told to the process that asked
        pipe.send(" ".join(f"{type(error).__name__}: {error}".split()))
        return
    with suppress(EOFError):
        while True:
            queries = pipe.recv()
            start = perf_counter()
            rival.search(queries)
            seconds = perf_counter() - start
            pipe.send(Answer(seconds, rival.people()))


def _settled() -> int:
    """Bytes of the process after free memory went back to the system, which glibc does when told."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
