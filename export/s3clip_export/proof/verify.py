"""The proof: every target of a bundle against the PyTorch model, on real tracklets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip.clips import hr_tensor, load_crops, lr_tensor, unit_range
from s3clip.config import DataSettings
from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.catalog import is_synthetic, protocol_tracklets, read_protocols
from s3clip.evaluation.evaluate import rank_protocol
from s3clip.models.model import S3Clip, embedding
from s3clip_export.fp16.audit import round_stored
from s3clip_export.fp16.isolated import run_isolated
from s3clip_export.proof.bisect import BlockError, block_errors, first_fault
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.evidence import Interval, Proof
from s3clip_runtime.inference.gate import broken_bounds, compare, cosines, first_stage
from s3clip_runtime.inference.manifest import Role, Target
from s3clip_runtime.inference.measure import measure_apart, relative_error
from s3clip_runtime.inference.ranking import paired_bootstrap
from s3clip_runtime.inference.reference import Reference, write_reference

STAGE_CLIPS = 2
"""LR clips and HR clips, each, whose tokens are compared: 3 MB a clip at full size."""


@dataclass(frozen=True)
class Trial:
    """What a bundle is measured on.

    Attributes:
        tracklets: those of `reference`, in its order; a reference may hold one clip more.
        protocols: of these tracklets alone; empty where none of them has a match.
        reference: PyTorch's answers.
        file: the reference as a file.
        synthetic: the crops were drawn by s3clip itself.
    """

    tracklets: list[Tracklet]
    protocols: list[Protocol]
    reference: Reference
    file: Path
    synthetic: bool


def choose_tracklets(protocols: Sequence[Protocol], count: int) -> list[Tracklet]:
    """All tracklets of some identities, to be ranked; about `count`, HR and LR where both exist.

    Identities are spread evenly over the test split. At least two tracklets are chosen.

    Raises:
        DataError: fewer than two tracklets: a ranking needs a neighbour.
    """
    everything = protocol_tracklets(protocols)
    if len(everything) < 2:
        raise DataError(f"a proof needs at least 2 tracklets, got {len(everything)}; give a larger data set")
    people: dict[int, list[Tracklet]] = defaultdict(list)
    for tracklet in everything:
        people[tracklet.identity].append(tracklet)
    groups = list(people.values())
    wanted = min(len(groups), max(1, round(len(groups) * count / len(everything))))
    chosen = [t for i in range(wanted) for t in groups[i * len(groups) // wanted]][: max(count, 2)]
    for hr in (True, False):  # a stage without a clip would not be measured
        if not any(t.hr is hr for t in chosen):
            chosen += [t for t in everything if t.hr is hr][:1]
    return chosen if len(chosen) > 1 else everything[:2]


def restrict(protocols: Sequence[Protocol], tracklets: Sequence[Tracklet]) -> list[Protocol]:
    """The protocols on these tracklets alone, those that can still be measured."""
    names = {t.name for t in tracklets}
    cut = [
        Protocol(p.name, [t for t in p.query if t.name in names], [t for t in p.gallery if t.name in names])
        for p in protocols
    ]
    return [p for p in cut if p.query and p.gallery and p.answerable]


def make_reference(model: S3Clip, tracklets: Sequence[Tracklet]) -> Reference:
    """Run PyTorch on every tracklet's evaluation clip, on the CPU and in float32."""
    plan = [(tracklet, tracklet.hr) for tracklet in tracklets]
    # Where data has no HR tracklet, or no LR one, the first tracklet also goes the other way: no graph stays
    # unmeasured.
    plan += [(tracklets[0], hr) for hr in (True, False) if all(t.hr is not hr for t in tracklets)]
    clips, frames, embeddings = [], [], []
    pixels: dict[int, NDArray[np.uint8]] = {}
    tokens: dict[int, NDArray[np.float32]] = {}
    left = {True: STAGE_CLIPS, False: STAGE_CLIPS}
    for position, (tracklet, hr) in enumerate(tqdm(plan, desc="PyTorch", unit="tracklet", leave=False)):
        chosen = spread_indices(len(tracklet))
        crops = load_crops(tracklet, chosen)
        batch = hr_tensor(crops) if hr else lr_tensor(crops)
        seen, vector = _run_torch(model, batch, tracklet.platform, hr=hr)
        clips.append(Clip(tuple(crops), tracklet.platform, hr))
        frames.append(tuple(chosen))
        embeddings.append(vector)
        if left[hr] > 0:
            left[hr] -= 1
            pixels[position] = batch.permute(0, 2, 3, 1).numpy()
            tokens[position] = seen
    lengths = tuple(len(tracklet) for tracklet, _ in plan)
    return Reference(tuple(clips), lengths, tuple(frames), np.stack(embeddings), pixels, tokens)


def _run_torch(
    model: S3Clip, batch: torch.Tensor, platform: int, *, hr: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.no_grad():
        frames = unit_range(batch) if hr else model.enhance(unit_range(batch))
        tokens = model.visual.patch_tokens(model.normalise(frames))
        vector = embedding(model.visual(tokens[None], torch.tensor([platform])))
    return tokens.numpy(), vector[0].numpy()


def begin_trial(model: S3Clip, data: DataSettings, count: int, scratch: Path) -> Trial:
    """Choose tracklets and run PyTorch on them.

    Args:
        model: in eval mode, on the CPU.
        data: whose test split is used.
        count: about how many tracklets.
        scratch: an existing folder, for the reference's file.

    Raises:
        DataError: as `choose_tracklets`, or the data cannot be read.
    """
    protocols = read_protocols(data)
    tracklets = choose_tracklets(protocols, count)
    reference = make_reference(model, tracklets)
    file = scratch / "reference.npz"
    write_reference(file, reference)
    return Trial(tracklets, restrict(protocols, tracklets), reference, file, is_synthetic(data))


def shipped_part(reference: Reference, count: int) -> Reference:
    """`count` >= 2 clips for the bundle; tokens, which are large, stay with one LR and one HR clip."""
    known = [next(i for i in reference.tokens if reference.clips[i].hr is hr) for hr in (False, True)]
    others = [i for i in range(len(reference.clips)) if i not in known]
    part = reference.part(sorted([*known, *others][:count]))
    kept = [next(i for i in part.tokens if part.clips[i].hr is hr) for hr in (False, True)]
    return replace(part, pixels={i: part.pixels[i] for i in kept}, tokens={i: part.tokens[i] for i in kept})


def prove(folder: Path, target: Target, trial: Trial) -> tuple[Proof, NDArray[np.float64]]:
    """Measure one target of a bundle, in a process of its own, and compare.

    Engines run on CUDA, all else on the CPU.

    Returns:
        The proof, and float64 (N,) each clip's cosine with PyTorch.

    Raises:
        BackendError: the target cannot run here.
    """
    measured = measure_apart(folder, target, trial.file, "cuda" if target.backend == "tensorrt" else "cpu")
    if target == Target("onnx", "fp16"):
        rounded = _rounded_errors(Bundle.draft(folder), target, trial.reference)
        worst = {name: max(measured.stages[name], error) for name, error in rounded.items()}
        measured = replace(measured, stages={**measured.stages, **worst})
    rank1, mean_ap = _ranking_changes(trial, measured.embeddings)
    proof = compare(trial.reference, measured, target, rank1_change=rank1, map_change=mean_ap)
    return proof, cosines(trial.reference.embeddings, measured.embeddings)


def explain(bundle: Bundle, target: Target, proof: Proof, trial: Trial, model: S3Clip) -> str:
    """Where the error of a failed proof enters: the stage, and in an ONNX graph also the block."""
    stage = first_stage(proof)
    if stage is None:
        return "every stage alone is within its bound: the errors add up from stage to stage"
    role = next((role for role in get_args(Role) if role == stage), None)
    if role is None:
        return f"the error enters in stage {stage}, before the graphs"
    if target.backend != "onnx":
        return f"the error enters in stage {stage}"
    errors = stage_blocks(bundle.file(role, target), role, trial.reference, model)
    return f"stage {stage}: {first_fault(errors, proof.bounds[stage])}"


def stage_blocks(path: Path, role: Role, reference: Reference, model: S3Clip) -> list[BlockError]:
    """Error of every block of one ONNX graph on a clip of the reference."""
    return block_errors(model, role, path, _feeds(role, reference))


def verdict(bundle: Bundle, target: Target, proof: Proof, trial: Trial, model: S3Clip) -> str | None:
    """None for a proof within its bounds, else what is broken and where the error enters."""
    faults = broken_bounds(proof)
    if not faults:
        return None
    return f"the {target} graphs differ from PyTorch: {'; '.join(faults)}; " + explain(
        bundle, target, proof, trial, model
    )


def _rounded_errors(bundle: Bundle, target: Target, reference: Reference) -> dict[str, float]:
    """Errors of FP16 graphs that store every tensor in float16, as a GPU does.

    ONNX Runtime alone keeps most of them in float32 on a CPU, which flatters them.
    """
    errors = {}
    for role in get_args(Role):
        feeds = _feeds(role, reference)
        graph = round_stored(onnx.load(bundle.file(role, target)))
        (found,) = run_isolated(graph, [feeds], graph=role, optimisation="none")
        if role == "encode":
            errors[role] = relative_error(found["embedding"], reference.embeddings[list(reference.tokens)])
        else:
            position = _position(role, reference)
            errors[role] = relative_error(found["tokens"], reference.tokens[position])
    return errors


def _position(role: Role, reference: Reference) -> int:
    """The first clip whose tokens come from this graph."""
    return next(i for i in reference.pixels if reference.clips[i].hr is (role == "patchify"))


def _feeds(role: Role, reference: Reference) -> dict[str, NDArray[np.generic]]:
    if role != "encode":
        return {"crops": reference.pixels[_position(role, reference)]}
    positions = list(reference.tokens)
    platforms = np.array([reference.clips[i].platform for i in positions], np.int64)
    return {"tokens": np.stack([reference.tokens[i] for i in positions]), "platform": platforms}


def _ranking_changes(trial: Trial, found: NDArray[np.float32]) -> tuple[Interval | None, Interval | None]:
    """Change of Rank-1 and mAP over the valid queries of all protocols together."""
    hits: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    precisions: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    names = [t.name for t in trial.tracklets]
    for protocol in trial.protocols:
        theirs, ours = (
            rank_protocol(protocol, dict(zip(names, vectors[: len(names)], strict=True)))
            for vectors in (found, trial.reference.embeddings)
        )
        valid = ours.valid
        first = (theirs.first_hit_rank[valid] == 1, ours.first_hit_rank[valid] == 1)
        hits.append((first[0].astype(np.float64), first[1].astype(np.float64)))
        precisions.append((theirs.ap[valid], ours.ap[valid]))
    return _interval(hits), _interval(precisions)


def _interval(pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Interval | None:
    if not pairs:
        return None
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    change = paired_bootstrap(a, b)
    return Interval(value=change.mean, low=change.low, high=change.high)
