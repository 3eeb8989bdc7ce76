"""Times of whole tracklets and of each stage alone, for all contenders in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.galleries import made_gallery, unit_vectors
from s3clip_runtime.bench.records import Crops, Stage, StageRow
from s3clip_runtime.bench.rounds import Rounds, interleave
from s3clip_runtime.gallery.recognition.recogniser import MATCHES
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.manifest import Role, Target
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.sessions import open_session
from s3clip_runtime.inference.spec import CLIP_LENGTH

MATCH_PROTOTYPES = 1000
"""Of the gallery that the stage "match" searches: a hundred people."""

Tick = Callable[[str], None]


class ClipEmbedder(Protocol):
    """An `Embedder`, or an opponent in its place."""

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Clips to unit vectors, float32 (N, D)."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A target of the bundle and the device that it runs on."""

    target: Target
    device: str

    @property
    def name(self) -> str:
        """As rows call it."""
        return str(self.target)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a group of rows has in common. `reference`: the contender that speed-ups count against."""

    crops: Crops
    clips: int
    threads: int
    rounds: int
    reference: str

    def rows(self, stage: Stage, found: Rounds) -> list[StageRow]:
        """One row a contender of the rounds."""
        base = found.samples.get(self.reference)
        rows = []
        for name, samples in found.samples.items():
            latency = samples.latency
            other = base is not None and name != self.reference
            rows.append(
                StageRow(
                    contender=name,
                    stage=stage,
                    clips=self.clips,
                    threads=self.threads,
                    latency=latency,
                    cpu_ms=float(np.median(samples.cpu_ms)),
                    # A clock's step is far below a microsecond: the bound only keeps 0 from dividing.
                    tracklets_per_s=1000 * self.clips / max(latency.p50_ms, 1e-6),
                    speedup=samples.speedup_over(base) if base is not None and other else None,
                    foreign_load=found.foreign_load,
                    crops=self.crops,
                )
            )
        return rows


def tracklet_rows(
    embedders: Mapping[str, ClipEmbedder], clips: Sequence[Clip], setting: Setting, tick: Tick
) -> list[StageRow]:
    """Crops to embeddings, all stages together."""
    calls = {name: partial(embedder.embed, clips) for name, embedder in embedders.items()}
    return setting.rows("tracklet", interleave(calls, setting.rounds, tick=tick))


def prepare_rows(clips: Sequence[Clip], setting: Setting, tick: Tick) -> list[StageRow]:
    """Resizing of crops, which is the same for all contenders and told under the reference's name."""
    resize = lr_batch if setting.crops == "lr" else hr_batch
    calls = {setting.reference: partial(resize, _crops(clips))}
    return setting.rows("prepare", interleave(calls, setting.rounds, tick=tick))


def match_rows(dim: int, setting: Setting, tick: Tick) -> list[StageRow]:
    """The search in a gallery of `MATCH_PROTOTYPES`, told under the reference's name too."""
    with made_gallery(MATCH_PROTOTYPES, dim) as gallery:
        queries = unit_vectors(setting.clips, dim, seed=1)
        calls = {setting.reference: lambda: gallery.search(queries, MATCHES)}
        return setting.rows("match", interleave(calls, setting.rounds, tick=tick))


def graph_rows(
    bundle: Bundle,
    contenders: Sequence[Contender],
    clips: Mapping[Crops, Sequence[Clip]],
    setting: Setting,
    tick: Tick,
) -> list[StageRow]:
    """The three graphs alone, one after the other, so that each contender holds one of them at a time.

    On a GPU the copies to and from the host are in these times; they are not in "tracklet", where an engine
    hands its tokens on without leaving the device. `encode` gets the tokens that the reference's `enhance`
    gave; its time does not depend on the kind of clips, so there is one row.

    Args:
        clips: of both kinds, `setting.clips` each.
        setting: its `crops` is not used.
    """
    lr, hr = clips["lr"], clips["hr"]
    enhance, made = _timed_graph(
        bundle, contenders, "enhance", {"crops": lr_batch(_crops(lr))}, setting, tick
    )
    patchify, _ = _timed_graph(bundle, contenders, "patchify", {"crops": hr_batch(_crops(hr))}, setting, tick)
    tokens = made["tokens"].reshape(len(lr), CLIP_LENGTH, *made["tokens"].shape[1:])
    platform = np.array([clip.platform for clip in lr], np.int64)
    encode, _ = _timed_graph(
        bundle, contenders, "encode", {"tokens": tokens, "platform": platform}, setting, tick
    )
    return [
        *replace(setting, crops="lr").rows("enhance", enhance),
        *replace(setting, crops="hr").rows("patchify", patchify),
        *replace(setting, crops="lr").rows("encode", encode),
    ]


def _timed_graph(
    bundle: Bundle,
    contenders: Sequence[Contender],
    role: Role,
    inputs: dict[str, NDArray[Any]],
    setting: Setting,
    tick: Tick,
) -> tuple[Rounds, dict[str, NDArray[Any]]]:
    """The rounds of one graph, and what the reference's gave."""
    with ExitStack() as opened:
        sessions: dict[str, Session] = {}
        for one in contenders:
            sessions[one.name] = open_session(bundle, role, one.target, one.device, setting.threads)
            opened.callback(sessions[one.name].close)
        calls = {name: partial(session.run, inputs) for name, session in sessions.items()}
        return interleave(calls, setting.rounds, tick=tick), sessions[setting.reference].run(inputs)


def _crops(clips: Sequence[Clip]) -> list[NDArray[np.uint8]]:
    return [crop for clip in clips for crop in clip.crops]
