"""The three graphs run one after the other: through the host's memory, or without leaving the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.inference.backends.cuda import Event, Stream
from s3clip_runtime.inference.backends.tensorrt import TensorRtSession
from s3clip_runtime.inference.manifest import Role

Index = Sequence[Sequence[int]]
"""For every clip the rows of its crops in [LR crops, HR crops]."""


@dataclass(frozen=True, slots=True)
class Chained:
    """What one run of the chain gave.

    Attributes:
        vectors: float32 (B, embedding_dim), each row of length 1.
        pictures: uint8 (N, 128, 64, 3), the super-resolved LR crops; None if they were not asked for.
        enhance_ms: the `enhance` graph with the copies to it; 0 without LR crops.
    """

    vectors: NDArray[np.float32]
    pictures: NDArray[np.uint8] | None
    enhance_ms: float


class Chain(Protocol):
    """`enhance`, `patchify` and `encode` of one bundle. Whoever opens it closes it."""

    def embed(
        self,
        lr: NDArray[np.uint8],
        hr: NDArray[np.uint8],
        index: Index,
        platform: NDArray[np.int64],
        *,
        pictures: bool = False,
    ) -> Chained:
        """Embed clips whose crops are given once each.

        Args:
            lr: uint8 (N, 64, 32, 3), to be enhanced; N may be 0.
            hr: uint8 (M, 256, 128, 3), to be patchified; M may be 0.
            index: B lists of T rows into [lr, hr]; row N is the first of `hr`.
            platform: int64 (B,).
            pictures: also give the super-resolved crops, of the same run.

        Raises:
            BackendError: an array or row does not fit, a run failed, or a graph gave a number that is not
                finite.
        """

    def close(self) -> None:
        """Close the three sessions. A second call does nothing."""


class HostChain:
    """`Chain` over any three sessions, which it owns; numpy carries the tokens from one to the next."""

    def __init__(self, sessions: Mapping[Role, Session]) -> None:
        self._sessions = dict(sessions)
        self._tokens = np.empty((0, 0, 0), np.float32)

    def embed(
        self,
        lr: NDArray[np.uint8],
        hr: NDArray[np.uint8],
        index: Index,
        platform: NDArray[np.int64],
        *,
        pictures: bool = False,
    ) -> Chained:
        """Embed clips, see `Chain.embed`."""
        encode = self._sessions["encode"]
        rows = _checked_rows(encode, index, len(lr) + len(hr))
        start = perf_counter()
        enhanced = self._sessions["enhance"].run({"crops": lr})
        enhance_ms = (perf_counter() - start) * 1e3 if len(lr) else 0.0
        lr_tokens = enhanced["tokens"]
        hr_tokens = self._sessions["patchify"].run({"crops": hr})["tokens"]
        tokens = self._gathered(lr_tokens, hr_tokens, rows)
        found: NDArray[np.float32] = encode.run({"tokens": tokens, "platform": platform})["embedding"]
        if not np.isfinite(found).all():
            raise _not_finite({"enhance": lr_tokens, "patchify": hr_tokens}, encode.device)
        return Chained(found, enhanced["picture"] if pictures else None, enhance_ms)

    def _gathered(
        self, lr_tokens: NDArray[np.float32], hr_tokens: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Row `rows` of [lr_tokens, hr_tokens], float32 (B, T, patches, width), valid until the next call.

        The tokens of a clip of the full-size model are 3 MB: nothing is copied where they lie in order
        already, as those of one clip do, and else once.
        """
        shape = (*rows.shape, *lr_tokens.shape[1:])
        flat, border = rows.reshape(-1), len(lr_tokens)
        for tokens, first in ((lr_tokens, 0), (hr_tokens, border)):
            if len(tokens) == flat.size and (flat == np.arange(first, first + flat.size)).all():
                return tokens.reshape(shape)
        if len(self._tokens) < flat.size:
            self._tokens = np.empty((flat.size, *lr_tokens.shape[1:]), np.float32)
        gathered = self._tokens[: flat.size]
        for place, row in enumerate(flat.tolist()):
            gathered[place] = lr_tokens[row] if row < border else hr_tokens[row - border]
        return gathered.reshape(shape)

    def close(self) -> None:
        """Close the sessions. A second call does nothing."""
        _close(list(self._sessions.values()))


class TensorRtChain:
    """`Chain` over three TensorRT sessions on one stream: only crops go to the GPU and embeddings come back.

    Clips are taken in passes so small that their crops and they themselves fit the engines' largest batches.

    Args:
        sessions: the three, all opened with `stream`.
        stream: it and the sessions are owned by the chain.

    Raises:
        BackendError: CUDA gives no events.
    """

    def __init__(self, sessions: Mapping[Role, TensorRtSession], stream: Stream) -> None:
        self._sessions = dict(sessions)
        self._stream = stream
        with ExitStack() as opened:
            # Marks on the stream time `enhance` without a stop between the graphs.
            self._begin, self._end = opened.enter_context(Event()), opened.enter_context(Event())
            opened.pop_all()
        self._enhance, self._patchify, self._encode = (
            sessions[role] for role in ("enhance", "patchify", "encode")
        )

    @property
    def graph_captured(self) -> bool:
        """Whether all that was run so far are captured CUDA graphs; see `TensorRtSession.capture_problem`."""
        return all(session.graph_captured for session in self._sessions.values())

    def embed(
        self,
        lr: NDArray[np.uint8],
        hr: NDArray[np.uint8],
        index: Index,
        platform: NDArray[np.int64],
        *,
        pictures: bool = False,
    ) -> Chained:
        """Embed clips, see `Chain.embed`."""
        rows = _checked_rows(self._encode, index, len(lr) + len(hr))
        self._enhance.batches.checked({"crops": lr})
        self._patchify.batches.checked({"crops": hr})
        if platform.shape != (len(rows),) or platform.dtype != np.int64:
            raise BackendError(
                f"platform must be int64 ({len(rows)},), got {platform.dtype} {platform.shape}; "
                "give one id a clip"
            )
        step = self._clips_a_pass(rows.shape[1])
        vectors = np.empty((len(rows), self._encode.outputs["embedding"].shape[1] or 0), np.float32)
        size = [n or 0 for n in self._enhance.outputs["picture"].shape[1:]]
        shown = np.zeros((len(lr), *size), np.uint8) if pictures else None
        enhance_ms = 0.0
        for low in range(0, len(rows), step):
            part = slice(low, low + step)
            vectors[part], pass_ms = self._pass(lr, hr, rows[part], platform[part], shown)
            enhance_ms += pass_ms
        return Chained(vectors, shown, enhance_ms)

    def close(self) -> None:
        """Close the sessions and the stream. A second call does nothing."""
        _close([self._stream, self._begin, self._end, *self._sessions.values()])

    def _clips_a_pass(self, crops_a_clip: int) -> int:
        crops = min(self._enhance.largest, self._patchify.largest)
        if crops < crops_a_clip:
            raise BackendError(
                f"the engines take at most {crops} crops at once, a clip has {crops_a_clip}; "
                "build them with a larger profile"
            )
        return min(crops // crops_a_clip, self._encode.largest)

    def _pass(
        self,
        lr: NDArray[np.uint8],
        hr: NDArray[np.uint8],
        rows: NDArray[np.int64],
        platform: NDArray[np.int64],
        shown: NDArray[np.uint8] | None,
    ) -> tuple[NDArray[np.float32], float]:
        """Vectors and the milliseconds of `enhance`; pictures go to the rows of `shown` that were used."""
        used, places = np.unique(rows, return_inverse=True)
        low, high = used[used < len(lr)], used[used >= len(lr)] - len(lr)
        if len(low):
            self._stream.mark(self._begin)
            self._enhance.upload("crops", lr[low])
            self._enhance.enqueue(len(low))
            self._stream.mark(self._end)
        if len(high):
            self._patchify.upload("crops", hr[high])
            self._patchify.enqueue(len(high))
        self._hand_over(places.reshape(-1), len(low))
        self._encode.upload("platform", platform)
        self._encode.enqueue(len(rows))
        found: NDArray[np.float32] = self._encode.download(["embedding"], len(rows))["embedding"]
        if not np.isfinite(found).all():
            raise _not_finite(
                {
                    "enhance": self._enhance.download(["tokens"], len(low))["tokens"],
                    "patchify": self._patchify.download(["tokens"], len(high))["tokens"],
                },
                self._encode.device,
            )
        if not len(low):
            return found, 0.0
        if shown is not None:
            shown[low] = self._enhance.download(["picture"], len(low))["picture"]
        return found, self._begin.milliseconds_to(self._end)

    def _hand_over(self, places: NDArray[np.intp], lr_count: int) -> None:
        """Enqueue the copies that put row `places[i]` of [LR tokens, HR tokens] at place i for `encode`."""
        size = self._enhance.row_bytes("tokens")
        target = self._encode.buffer("tokens")
        for place, row, count in _runs(places, lr_count):
            session, first = (self._enhance, row) if row < lr_count else (self._patchify, row - lr_count)
            self._stream.on_device(target, place * size, session.buffer("tokens"), first * size, count * size)


def _runs(places: NDArray[np.intp], border: int) -> Iterator[tuple[int, int, int]]:
    """Cut into stretches of following rows on one side of the border: (place, first row, count)."""
    breaks = np.flatnonzero((np.diff(places) != 1) | (places[1:] == border)) + 1
    for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(places)], strict=True):
        yield start, int(places[start]), end - start


def _checked_rows(encode: Session, index: Index, count: int) -> NDArray[np.int64]:
    """The index as int64 (B, T): a row outside of the tokens would read foreign memory of the GPU."""
    length = encode.inputs["tokens"].shape[1]
    wrong = next((clip for clip in index if len(clip) != length), None)
    if wrong is not None:
        raise BackendError(f"a clip must have {length} crops, got {len(wrong)}; choose its crops anew")
    rows = np.array(index, np.int64).reshape(len(index), -1 if index else length or 0)
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise BackendError(
            f"rows of crops must lie within 0 to {count - 1}, got {rows.min()} to {rows.max()}; "
            "they count LR crops first, then HR crops"
        )
    return rows


def _not_finite(tokens: Mapping[str, NDArray[np.float32]], device: str) -> BackendError:
    """The error that names the first graph whose numbers are not finite."""
    graph = next((name for name, array in tokens.items() if not np.isfinite(array).all()), "encode")
    return BackendError(
        f"graph {graph} gave numbers that are not finite on {device}; "
        "export again with s3clip-export and check its proof"
    )


def _close(opened: Sequence[Session | Stream | Event]) -> None:
    """Close the last first; one that fails to close must not keep the others open."""
    with ExitStack() as closing:
        for each in opened:
            closing.callback(each.close)
