"""Clips on their way through a bundle's float32 graphs: inputs of the encoder, and the truth for the gate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip_calib.fidelity import Labels
from s3clip_calib.run import Feed
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.manifest import PLAIN, Role
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.reference import Reference
from s3clip_runtime.inference.sessions import open_session
from s3clip_runtime.inference.tracklets import Tracklet, read_clip


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip and what the float32 graphs make of it.

    Attributes:
        tracklet: where it is from.
        clip: its crops.
        pixels: uint8 (T, h, w, 3), the input of `enhance` or, for an HR clip, of `patchify`.
        tokens: float32 (T, patches, width), the input of `encode`.
        embedding: float32 (D,), unit length.
    """

    tracklet: Tracklet
    clip: Clip
    pixels: NDArray[np.uint8]
    tokens: NDArray[np.float32]
    embedding: NDArray[np.float32]

    @property
    def feed(self) -> Feed:
        """Inputs of `encode`."""
        return {"tokens": self.tokens[None], "platform": np.array([self.clip.platform], np.int64)}


class Plain:
    """The float32 graphs of a bundle on the CPU. It owns three sessions: use it as a context manager."""

    def __init__(self, bundle: Bundle) -> None:
        with ExitStack() as opened:
            self._sessions: dict[Role, Session] = {}
            for role in get_args(Role):
                self._sessions[role] = open_session(bundle, role, PLAIN, "cpu")
                opened.callback(self._sessions[role].close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def samples(self, tracklets: Sequence[Tracklet], what: str) -> list[Sample]:
        """Run every tracklet's clip, with a progress bar; a full-size clip's tokens take 3 MB of memory.

        Raises:
            DataError: a picture cannot be read.
            BackendError: a graph failed.
        """
        bar = tqdm(tracklets, desc=what, unit="tracklet", leave=False, disable=None)
        return [self._sample(tracklet) for tracklet in bar]

    def _sample(self, tracklet: Tracklet) -> Sample:
        clip = read_clip(tracklet)
        pixels = hr_batch(clip.crops) if clip.hr else lr_batch(clip.crops)
        tokens = self._sessions["patchify" if clip.hr else "enhance"].run({"crops": pixels})["tokens"]
        feed = {"tokens": tokens[None], "platform": np.array([clip.platform], np.int64)}
        (embedding,) = self._sessions["encode"].run(feed)["embedding"]
        return Sample(tracklet, clip, pixels, tokens, embedding)


def embeddings(samples: Sequence[Sample]) -> NDArray[np.float32]:
    """(N, D), a row a sample."""
    return np.stack([sample.embedding for sample in samples])


def labels(samples: Sequence[Sample]) -> Labels:
    """Identities and cameras, where they are known."""
    return Labels(
        tuple(sample.tracklet.identity for sample in samples),
        tuple(sample.tracklet.camera for sample in samples),
    )


def as_reference(samples: Sequence[Sample]) -> Reference:
    """The samples as a truth for the gate, with pixels and tokens of the first LR and the first HR clip."""
    firsts = [next((i for i, s in enumerate(samples) if s.clip.hr is hr), None) for hr in (False, True)]
    kept = [i for i in firsts if i is not None]
    lengths = tuple(len(sample.tracklet.files) for sample in samples)
    return Reference(
        clips=tuple(sample.clip for sample in samples),
        lengths=lengths,
        frames=tuple(tuple(spread_indices(length)) for length in lengths),
        embeddings=embeddings(samples),
        pixels={i: samples[i].pixels for i in kept},
        tokens={i: samples[i].tokens for i in kept},
    )
