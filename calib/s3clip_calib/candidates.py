"""From studies to graphs of a bundle: the fastest ones that the gate lets pass, or why there are none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from s3clip_runtime.inference.manifest import PLAIN, Artefact, CalibrationMethod, Manifest, Role, Target
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

STEP_BACK: Final = 0.97
"""Share of a refused point's multiply-adds that the next one of its method stays below: the walk's points lie
close to each other around its bound, and what the gate refuses at one it refuses at the next."""


TIE: Final = 1.05
"""Times that differ by less are equal: two races of one graph on a busy machine differ by as much."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A point of the walk and its median milliseconds of `encode` for a clip."""

    point: Point
    ms: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """An `encode` for the gate.

    Attributes:
        method: of its ranges, or "dynamic".
        point: its layers in 8 bits.
        write: gives its file, in the draft.
    """

    method: CalibrationMethod
    point: Point
    write: Callable[[], Path]


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
    method: CalibrationMethod | None
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

    def save(self, graph: onnx.ModelProto, stem: str) -> Path:
        """Write a graph into the draft, under a name with its hash: no file of the old bundle is touched."""
        data = graph.SerializeToString()
        path = self.folder / f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}.onnx"
        if not path.exists():
            path.write_bytes(data)
        return path


def base_precision(target: Target) -> Target:
    """What a CPU target is to be faster than: its backend's best without 8 bits."""
    return Target("openvino", "bf16") if target == OPENVINO else PLAIN


@contextmanager
def opened(role: Role, files: Mapping[str, tuple[Path, Target]]) -> Iterator[dict[str, Session]]:
    """Name to a session on the CPU of a graph, opened as the runtime opens it for a target."""
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name, (path, target) in files.items():
            if target.backend == "openvino":
                piece = None if role == "encode" else crops_a_run(usable_cpus())
                sessions[name] = OpenVinoSession(path, precision=target.precision, piece=piece)
            else:
                sessions[name] = OrtSession(path, precision=target.precision)
            stack.callback(sessions[name].close)
        yield sessions


def time_points(target: Target, study: Study, tune: Sequence[Sample], scratch: Path) -> list[Timed]:
    """Time every point of the walk on this CPU."""
    feeds, path = [sample.feed for sample in tune[:4]], scratch / "point.onnx"
    found = []
    with tqdm(study.points, desc=f"time {target}", unit="point", leave=False, disable=None) as bar:
        for point in bar:
            onnx.save(study.graph(point.layers), path)
            with opened(
                "encode", {"point": (path, target if point.layers else base_precision(target))}
            ) as one:
                found.append(Timed(point, race(one, feeds)["point"]))
    return found


def fastest(timed: Sequence[Timed]) -> list[Point]:
    """Allowed points with a layer in 8 bits: those as fast as the fastest, most layers first, then others.

    Within `TIE` two times are one, and more layers make a smaller file.
    """
    good = [one for one in timed if not one.point.faults and one.point.layers]
    least = min((one.ms for one in good), default=0.0)
    ties = [one for one in good if one.ms <= least * TIE]
    others = sorted((one for one in good if one.ms > least * TIE), key=lambda one: one.ms)
    return [o.point for o in (*sorted(ties, key=lambda one: -one.point.share), *others)]


def dynamic_candidate(trial: Trial, study: Study, scratch: Path) -> Candidate:
    """`encode` with int8 weights alone, whose activations OpenVINO rounds with scales of every run's own."""
    write_int8(trial.file("encode", PLAIN), scratch / "columns.onnx")
    path = trial.save(onnx.load(scratch / "columns.onnx"), "encode.columns")
    with opened("encode", {"dynamic": (path, OPENVINO)}) as sessions:
        run = sessions["dynamic"].run
        found = np.concatenate([run(sample.feed)["embedding"] for sample in trial.tune])
    names = tuple(layer.name for layer in study.prepared.layers if len(layer.shape) == 2)
    done = sum(row.operations for row in study.rows if row.layer in names)
    measured = fidelity(embeddings(trial.tune), found)
    share = done / sum(row.operations for row in study.rows)
    point = Point(names, share, measured, faults_of(measured, bounds_of("int8")))
    return Candidate("dynamic", point, lambda: path)


def half_graph(path: Path, study: Study, point: Point) -> onnx.ModelProto:
    """The float16 `encode` with a point's layers in 8 bits, also those that the audit kept in float32."""
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
    candidates: Sequence[Candidate],
    enhance: Mapping[Role, Path],
    tried: list[str],
) -> Verdict:
    """Show candidates to the gate until one passes.

    Args:
        trial: what they are shown to.
        target: whose graphs.
        candidates: the best first.
        enhance: its graph of `enhance`, empty to share that of the base.
        tried: what was not taken before; grows.
    """
    if not candidates:
        tried.append("no set of layers is within the bounds on the clips that sets are chosen by")
    limits: dict[CalibrationMethod, float] = {}
    left = ATTEMPTS
    for one in candidates:
        if left == 0 or one.point.share > limits.get(one.method, float("inf")):
            continue
        left, limits[one.method] = left - 1, STEP_BACK * one.point.share
        files: dict[Role, Path] = {"encode": one.write(), **enhance}
        artefacts = artefacts_of(trial, target, files)
        proof, held, faults = show_to_gate(trial, target, artefacts)
        if not faults:
            return Verdict(target, one.method, one.point, proof, held, tuple(tried), artefacts)
        tried.append(
            f"{len(one.point.layers)} layers, {one.point.share:.0%} of the operations, by {one.method}: "
            f"{'; '.join(faults)}"
        )
    return Verdict(target, None, None, None, None, tuple(tried), ())


def bits_of(target: Target) -> Bits:
    """Type of a target's layers."""
    return "fp8" if target.precision == "fp8-fp16" else "int8"
