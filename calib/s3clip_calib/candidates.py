"""From studies to graphs of a bundle: the fastest ones that the gate lets pass, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from tqdm import tqdm

from s3clip_calib.columns import write_int8
from s3clip_calib.fidelity import Labels, fidelity, ranking_changes
from s3clip_calib.front import Point, faults_of
from s3clip_calib.layers import find_layers
from s3clip_calib.quantise import quantise, widened
from s3clip_calib.race import race
from s3clip_calib.ranges import Bits
from s3clip_calib.run import Feed
from s3clip_calib.samples import Sample, embeddings
from s3clip_calib.smooth import migrate
from s3clip_calib.study import Study, bounds_of
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.backends.openvino import OpenVinoSession
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.gate import broken_bounds, check_reference, compare
from s3clip_runtime.inference.manifest import PLAIN, Artefact, Manifest, Role, Target
from s3clip_runtime.inference.measure import measure_apart
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.reference import Reference
from s3clip_runtime.inference.sessions import crops_a_run

ORT: Final = Target("onnx", "int8")
OPENVINO: Final = Target("openvino", "int8")
INT8_ENGINE: Final = Target("onnx", "int8-fp16")
FP8_ENGINE: Final = Target("onnx", "fp8-fp16")

TARGETS: Final = (ORT, OPENVINO, INT8_ENGINE, FP8_ENGINE)
"""All that calibration makes."""

BASES: Final[Mapping[Target, Target]] = {
    ORT: PLAIN,
    OPENVINO: PLAIN,
    INT8_ENGINE: Target("onnx", "fp16"),
    FP8_ENGINE: Target("onnx", "fp16"),
}
"""Whose graphs each is made from, and shares where nothing is gained."""

ATTEMPTS: Final = 3
"""Points that are shown to the gate, each with fewer layers in 8 bits than the one before."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A point of the walk and its median milliseconds of `encode` for a clip; None where it cannot run here."""

    point: Point
    ms: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one target.

    Attributes:
        target: which.
        method: of its ranges, "dynamic" if they are taken anew in every run; None if it was refused.
        point: layers of `encode` in 8 bits; None if it was refused.
        proof: against PyTorch's answers in the bundle; None if it was refused.
        held_out: against the float32 graphs on tracklets that gave no ranges.
        tried: what was not taken and why, sentences.
        artefacts: its graphs.
    """

    target: Target
    method: str | None
    point: Point | None
    proof: Proof | None
    held_out: Proof | None
    tried: tuple[str, ...]
    artefacts: tuple[Artefact, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """What candidates are shown to.

    Attributes:
        folder: a draft of the bundle, to be written into.
        manifest: of the draft, without 8-bit targets of calibration.
        tune: clips that the choice among candidates is made on.
        truth: of the held-out clips, by the float32 graphs; `truth_file` is it as a file.
        labels: of the held-out clips.
    """

    folder: Path
    manifest: Manifest
    tune: Sequence[Sample]
    truth: Reference
    truth_file: Path
    labels: Labels

    def file(self, role: Role, target: Target) -> Path:
        """A graph of the draft."""
        return Bundle(self.folder, self.manifest).file(role, target)


def opener(target: Target, role: Role) -> Callable[[Path], Session]:
    """How a graph of this target is opened on the CPU, as the runtime does it."""
    if target.backend == "openvino":
        piece = None if role == "encode" else crops_a_run(usable_cpus())
        return lambda path: OpenVinoSession(path, precision=target.precision, piece=piece)
    return lambda path: OrtSession(path, precision=target.precision)


def time_points(target: Target, study: Study, tune: Sequence[Sample], scratch: Path) -> list[Timed]:
    """Time every point of the walk, each beside the one without a layer in 8 bits."""
    opened, feeds = opener(target, "encode"), [sample.feed for sample in tune[:4]]
    base = scratch / f"{target}-none.onnx"
    onnx.save(study.graph(()), base)
    found = []
    with tqdm(study.points, desc=f"time {target}", unit="point", leave=False, disable=None) as bar:
        for point in bar:
            path = scratch / f"{target}-point.onnx"
            onnx.save(study.graph(point.layers), path)
            sessions = {"none": opened(base), "point": opened(path)}
            try:
                found.append(Timed(point, race(sessions, feeds)["point"]))
            finally:
                for session in sessions.values():
                    session.close()
                path.unlink()
    base.unlink()
    return found


def fastest(timed: Sequence[Timed]) -> list[Point]:
    """Allowed points with a layer in 8 bits, the fastest first; where nothing was timed, most layers first."""
    good = [one for one in timed if not one.point.faults and one.point.layers]
    return [o.point for o in sorted(good, key=lambda o: -o.point.share if o.ms is None else o.ms)]


def dynamic_point(trial: Trial, path: Path) -> tuple[tuple[str, ...], float]:
    """What the scales of every run's own miss of the bounds on OpenVINO, and the loss."""
    session = opener(OPENVINO, "encode")(path)
    try:
        found = np.concatenate([session.run(sample.feed)["embedding"] for sample in trial.tune])
    finally:
        session.close()
    measured = fidelity(embeddings(trial.tune), found)
    return faults_of(measured, bounds_of("int8")), measured.loss


def half_graph(path: Path, study: Study, point: Point) -> onnx.ModelProto:
    """The float16 `encode` with a point's layers in 8 bits; what the audit kept in float32 stays that."""
    model = onnx.load(path)
    layers = find_layers(model)
    model = migrate(model, layers, study.prepared.moved)
    chosen = [layer for layer in layers if layer.name in point.layers]
    wide = widened(model, chosen)
    chosen = [layer for layer in find_layers(wide) if layer.name in point.layers]
    return quantise(wide, chosen, study.limits, study.bits)


def artefacts_of(trial: Trial, target: Target, files: Mapping[Role, Path]) -> tuple[Artefact, ...]:
    """The target's three graphs: those of `files`, and for the others the files of its base."""
    found = []
    for base in (a for a in trial.manifest.artefacts if a.target == BASES[target]):
        changes: dict[str, object] = {"backend": target.backend, "precision": target.precision}
        path = files.get(base.role)
        if path is not None:
            opset = next(o.version for o in onnx.load(path).opset_import if not o.domain)
            changes |= {
                "file": path.name,
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
                "opset": opset,
            }
        found.append(base.model_copy(update=changes))
    return tuple(found)


def show_to_gate(
    trial: Trial, target: Target, artefacts: Sequence[Artefact]
) -> tuple[Proof, Proof, list[str]]:
    """Proofs against PyTorch and on held-out tracklets, and every bound that is missed.

    Raises:
        BackendError: the target cannot run here.
    """
    others = tuple(a for a in trial.manifest.artefacts if a.target != target)
    write_manifest(trial.folder, trial.manifest.changed(artefacts=(*others, *artefacts)))
    proof = check_reference(Bundle.draft(trial.folder), target, "cpu")
    measured = measure_apart(trial.folder, target, trial.truth_file, "cpu")
    rank1, mean_ap = ranking_changes(trial.truth.embeddings, measured.embeddings, trial.labels)
    held = compare(trial.truth, measured, target, rank1_change=rank1, map_change=mean_ap)
    # Data of one kind of crops leaves the other kind's graph to the bundle's own reference.
    held = held.model_copy(
        update={"bounds": {k: v for k, v in held.bounds.items() if _was_measured(k, held)}}
    )
    faults = [f"beside PyTorch: {fault}" for fault in broken_bounds(proof)]
    return proof, held, faults + [f"on held-out tracklets: {fault}" for fault in broken_bounds(held)]


def _was_measured(name: str, proof: Proof) -> bool:
    return name in proof.stages or hasattr(proof, name)


def settle(
    trial: Trial,
    target: Target,
    points: Sequence[Point],
    write: Callable[[Point], tuple[str, Mapping[Role, Path]]],
    tried: list[str],
) -> Verdict:
    """Show points to the gate until one passes.

    Args:
        trial: what they are shown to.
        target: whose graphs.
        points: the best first.
        write: writes a point's graphs, and gives the method and the files.
        tried: what was not taken before; grows.
    """
    if not points:
        tried.append("no layer can compute in 8 bits within the bounds and be faster")
    for point in points[:ATTEMPTS]:
        method, files = write(point)
        artefacts = artefacts_of(trial, target, files)
        proof, held, faults = show_to_gate(trial, target, artefacts)
        if not faults:
            return Verdict(target, method, point, proof, held, tuple(tried), artefacts)
        tried.append(
            f"{len(point.layers)} layers, {point.share:.0%} of the operations, by {method}: {'; '.join(faults)}"
        )
    return Verdict(target, None, None, None, None, tuple(tried), ())


def bits_of(target: Target) -> Bits:
    """Type of a target's layers."""
    return "fp8" if target.precision == "fp8-fp16" else "int8"


def write_columns(trial: Trial) -> Path:
    """`encode` with int8 weights alone, for OpenVINO's own scales."""
    path = trial.folder / "encode.int8.onnx"
    path.unlink(missing_ok=True)  # it may be a link to the old bundle's
    write_int8(trial.file("encode", PLAIN), path)
    return path
