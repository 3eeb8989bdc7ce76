"""One whole benchmark of a bundle: what is measured, in which order, and the report of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import Final

import numpy as np

from s3clip_runtime.bench.ceilings import matmul_ceiling
from s3clip_runtime.bench.cold import ColdStart, cold_start
from s3clip_runtime.bench.crops import BenchClips, gather
from s3clip_runtime.bench.energy import find_meter, joules_of
from s3clip_runtime.bench.galleries import measure_gallery
from s3clip_runtime.bench.machine import fingerprint
from s3clip_runtime.bench.records import BenchReport, ContenderRow, Crops, GalleryRow, StageRow
from s3clip_runtime.bench.stages import (
    ClipEmbedder,
    Contender,
    Setting,
    Tick,
    graph_rows,
    match_rows,
    prepare_rows,
    tracklet_rows,
)
from s3clip_runtime.errors import BackendError, BundleError, ConfigError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.gate import cosines, similarities, top_agreement
from s3clip_runtime.inference.manifest import PLAIN, Target
from s3clip_runtime.inference.reference import Reference
from s3clip_runtime.inference.targets import choose_target

ENERGY_S: Final = 3.0
"""Least time over which the joules of a tracklet are counted: NVML renews its counter every 0.1 s."""

KINDS: Final[tuple[Crops, ...]] = ("lr", "hr")


@dataclass(frozen=True, slots=True)
class Choices:
    """What is measured.

    Attributes:
        device: "auto", "cpu" or "cuda".
        targets: None takes all of the bundle; those that cannot run are told in the report. Named ones must.
        clips: numbers of tracklets a call.
        threads: numbers of CPU threads.
        rounds: of each setting.
        galleries: numbers of prototypes.
    """

    device: str
    targets: tuple[Target, ...] | None
    clips: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int
    galleries: tuple[int, ...]

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ConfigError: a number below 1, or more threads than cores.
        """
        lists = {
            "clips": self.clips,
            "threads": self.threads,
            "galleries": self.galleries,
            "rounds": (self.rounds,),
        }
        for name, values in lists.items():
            if any(value < 1 for value in values):
                raise ConfigError(f"{name}: {min(values)} is below 1; give numbers from 1")
        if not self.clips or not self.threads:
            raise ConfigError("clips and threads: at least one number each; write for example --clips 1,8")
        if max(self.threads) > usable_cpus():
            raise ConfigError(
                f"threads: {max(self.threads)} are more than the {usable_cpus()} cores that this "
                "process may use; they would only wait for each other"
            )


@dataclass(frozen=True, slots=True)
class Lineup:
    """Who takes part: contenders with their cold starts, and the targets that cannot run with the reason."""

    contenders: tuple[Contender, ...]
    cold: Mapping[str, ColdStart]
    refused: Mapping[str, str]

    @property
    def reference(self) -> str:
        """The contender that speed-ups count against: `PLAIN`, or the first where that cannot run."""
        names = [one.name for one in self.contenders]
        return str(PLAIN) if str(PLAIN) in names else names[0]


def find_lineup(bundle: Bundle, choices: Choices, tick: Tick) -> Lineup:
    """Try every target in a process of its own, which may die: what fails there is not run here.

    Raises:
        BackendError: a target that was asked for cannot run, or none can.
        BundleError: a target that was asked for is not in the bundle.
    """
    asked = choices.targets
    wanted = bundle.targets if asked is None else tuple(dict.fromkeys((PLAIN, *asked)))
    devices: dict[Target, str] = {}
    refused: dict[str, str] = {}
    # All devices first: a target that is not there is told before any process is started.
    for target in wanted:
        with _refusing(target, asked, refused):
            devices[target] = choose_target(bundle, choices.device, target).device
    contenders: list[Contender] = []
    cold: dict[str, ColdStart] = {}
    for target, device in devices.items():
        with _refusing(target, asked, refused):
            tick(f"{target} cold")
            cold[str(target)] = cold_start(bundle.folder, target, device, max(choices.threads))
            contenders.append(Contender(target, device))
    if not contenders:
        raise BackendError(f"no target of bundle {bundle.folder} can run here: {'; '.join(refused.values())}")
    return Lineup(tuple(contenders), cold, refused)


@contextmanager
def _refusing(target: Target, asked: tuple[Target, ...] | None, refused: dict[str, str]) -> Iterator[None]:
    """Note why a target cannot run; an error if it was asked for."""
    try:
        yield
    except (BackendError, BundleError) as error:
        if asked is not None and target in asked:
            raise
        refused[str(target)] = str(error)


def calls_of(choices: Choices, contenders: int) -> int:
    """How often `measure` ticks, for a progress bar: timed calls, and once for each contender's own row."""
    settings = len(KINDS) * len(choices.clips) * len(choices.threads)
    stages = 3 * len(choices.threads) * contenders + len(KINDS) + 1
    return (settings * contenders + stages + len(choices.galleries)) * (choices.rounds + 1) + contenders


def measure(bundle: Bundle, choices: Choices, lineup: Lineup, tick: Tick) -> BenchReport:
    """Measure everything but cameras.

    Args:
        bundle: a verified bundle.
        choices: checked.
        lineup: of `find_lineup`.
        tick: called with a contender's name before each timed call.

    Raises:
        S3ClipError: a contender failed although it had started before.
    """
    clips = gather(bundle)
    dim = bundle.manifest.contract.embedding_dim
    stages = list(_stages(bundle, choices, lineup, clips, tick))
    contenders = _contender_rows(bundle, choices, lineup, clips, tick)
    return BenchReport(
        created=datetime.now(UTC),
        machine=fingerprint(),
        bundle=bundle.manifest.name,
        embedding_space=bundle.manifest.embedding_space,
        reference=lineup.reference,
        data=clips.data,
        synthetic=clips.synthetic,
        refused=dict(lineup.refused),
        stages=tuple(stages),
        contenders=tuple(contenders),
        galleries=tuple(_gallery_rows(choices, dim, tick)),
        ceilings=tuple(matmul_ceiling(threads) for threads in choices.threads),
    )


def _stages(
    bundle: Bundle, choices: Choices, lineup: Lineup, clips: BenchClips, tick: Tick
) -> Iterator[StageRow]:
    """Whole tracklets in all settings; single stages with the first number of clips."""
    few, most = choices.clips[0], max(choices.threads)
    for threads in choices.threads:
        with ExitStack() as opened:
            embedders = {
                one.name: opened.enter_context(
                    Embedder(bundle, device=one.device, target=one.target, threads=threads)
                )
                for one in lineup.contenders
            }
            for kind, count in product(KINDS, choices.clips):
                setting = Setting(kind, count, threads, choices.rounds, lineup.reference)
                yield from tracklet_rows(embedders, clips.take(kind, count), setting, tick)
        # After the embedders are closed: both at once would hold all weights twice.
        setting = Setting("lr", few, threads, choices.rounds, lineup.reference)
        taken = {kind: clips.take(kind, few) for kind in KINDS}
        yield from graph_rows(bundle, lineup.contenders, taken, setting, tick)
    for kind in KINDS:
        setting = Setting(kind, few, most, choices.rounds, lineup.reference)
        yield from prepare_rows(clips.take(kind, few), setting, tick)
    setting = Setting("lr", few, most, choices.rounds, lineup.reference)
    yield from match_rows(bundle.manifest.contract.embedding_dim, setting, tick)


def _contender_rows(
    bundle: Bundle, choices: Choices, lineup: Lineup, clips: BenchClips, tick: Tick
) -> Iterator[ContenderRow]:
    sizes = dict.fromkeys(bundle.targets, 0)
    for artefact in bundle.manifest.artefacts:
        sizes[artefact.target] += artefact.bytes
    for one in lineup.contenders:
        tick(one.name)
        with Embedder(bundle, device=one.device, target=one.target, threads=max(choices.threads)) as embedder:
            accuracy = accuracy_of(embedder, clips.reference)
            energy_j, source = _energy(embedder, clips)
        cold = lineup.cold[one.name]
        yield ContenderRow(
            contender=one.name,
            device=one.device,
            file_bytes=sizes[one.target],
            cold_start_ms=cold.start_ms,
            peak_memory_bytes=cold.peak_bytes,
            energy_j=energy_j,
            energy_source=source,
            cosine_mean=accuracy[0],
            cosine_min=accuracy[1],
            top1_agreement=accuracy[2],
        )


def accuracy_of(
    embedder: ClipEmbedder, reference: Reference | None
) -> tuple[float | None, float | None, float | None]:
    """Mean and smallest cosine to PyTorch's embeddings, and how often the nearest neighbour is the same."""
    if reference is None:
        return None, None, None
    found = np.concatenate([embedder.embed([clip]) for clip in reference.clips])
    cosine = cosines(reference.embeddings, found)
    agreement = None
    if len(found) > 1:
        agreement = top_agreement(similarities(reference.embeddings), similarities(found), 1)
    return float(cosine.mean()), float(cosine.min()), agreement


def _energy(embedder: Embedder, clips: BenchClips) -> tuple[float | None, str]:
    meter, source = find_meter(embedder.device)
    if meter is None:
        return None, source
    call: Callable[[], object] = partial(embedder.embed, clips.take("lr", 1))
    call()  # the first one may still compile
    return joules_of(meter, call, ENERGY_S), source


def _gallery_rows(choices: Choices, dim: int, tick: Tick) -> Iterator[GalleryRow]:
    for prototypes in choices.galleries:
        yield measure_gallery(prototypes, dim, choices.rounds, tick=tick)
