"""The gate: whether graphs rank like the PyTorch model they were made from, by one table of bounds.

It needs no PyTorch: it compares with a `Reference`, so the same check runs where a bundle is made and on the
device that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BundleError, DataError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.evidence import Interval, Proof
from s3clip_runtime.inference.manifest import Precision, Target
from s3clip_runtime.inference.measure import Measured, measure_apart
from s3clip_runtime.inference.reference import Reference, read_reference
from s3clip_runtime.inference.spec import CLIP_LENGTH

AT_LEAST = frozenset(
    {"cosine_mean", "cosine_p1", "cosine_min", "top1_agreement", "top10_agreement", "kendall_tau"}
)
"""Figures that must reach their bound; all others are errors, which must stay at or below it."""

_EIGHT_BITS: Mapping[str, float] = {
    "frames": 0.0,
    "pixels": 0.0,
    "enhance": 5e-2,
    "patchify": 2e-2,
    "encode": 1e-1,
    "cosine_mean": 0.9995,
    "cosine_p1": 0.9995,
    "cosine_min": 0.9995,
    "max_abs_error": 2e-2,
    "top1_agreement": 0.99,
    "top10_agreement": 0.97,
    "kendall_tau": 0.97,
}

BOUNDS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {
        "frames": 0.0,
        "pixels": 0.0,
        "enhance": 1e-4,
        "patchify": 1e-4,
        "encode": 1e-4,
        "cosine_mean": 0.999999,
        "cosine_p1": 0.99999,
        "cosine_min": 0.99999,
        "max_abs_error": 1e-4,
        "top1_agreement": 0.99,
        "top10_agreement": 0.99,
        "kendall_tau": 0.99,
    },
    "bf16": {
        "frames": 0.0,
        "pixels": 0.0,
        "enhance": 5e-2,
        "patchify": 2e-2,
        "encode": 5e-2,
        "cosine_mean": 0.9999,
        "cosine_p1": 0.9999,
        "cosine_min": 0.9999,
        "max_abs_error": 1e-2,
        "top1_agreement": 0.99,
        "top10_agreement": 0.97,
        "kendall_tau": 0.97,
    },
    "int8": _EIGHT_BITS,
    "int8-fp16": _EIGHT_BITS,
    "fp8-fp16": _EIGHT_BITS,
    "fp16": {
        "frames": 0.0,
        "pixels": 0.0,
        "enhance": 5e-3,
        "patchify": 5e-3,
        "encode": 1e-2,
        "cosine_mean": 0.9999,
        "cosine_p1": 0.9995,
        "cosine_min": 0.9995,
        "max_abs_error": 1e-2,
        "top1_agreement": 0.97,
        "top10_agreement": 0.97,
        "kendall_tau": 0.97,
    },
}
"""Stage errors are fractions of the stage's largest output; what the others are, `Proof` says."""

TOP = 10

NEAR_TIE = 1e-4
"""Cosines that lie closer have no order worth keeping: no gallery's threshold is set finer."""


def compare(
    reference: Reference,
    measured: Measured,
    target: Target,
    *,
    rank1_change: Interval | None = None,
    map_change: Interval | None = None,
) -> Proof:
    """The figures of one target, with the bounds of its precision.

    Args:
        reference: N >= 2 clips.
        measured: what the target's graphs gave for them.
        target: whose graphs they were.
        rank1_change, map_change: see `Proof`.

    Raises:
        DataError: fewer than two clips: a ranking needs a neighbour.
    """
    if len(reference.clips) < 2:
        raise DataError(f"a ranking needs at least 2 tracklets, got {len(reference.clips)}; give more data")
    expected, found = reference.embeddings, measured.embeddings
    cosine = cosines(expected, found)
    ours, theirs = similarities(expected), similarities(found)
    return Proof(
        target=str(target),
        device=measured.device,
        tracklets=len(expected),
        crops=len(expected) * CLIP_LENGTH,
        stages=dict(measured.stages),
        cosine_mean=float(cosine.mean()),
        cosine_p1=float(np.quantile(cosine, 0.01)),
        cosine_min=float(cosine.min()),
        max_abs_error=float(np.abs(expected - found).max()),
        top1_agreement=top_agreement(ours, theirs, 1),
        top10_agreement=top_agreement(ours, theirs, min(TOP, len(expected) - 1)),
        kendall_tau=kendall_tau(ours, theirs),
        rank1_change=rank1_change,
        map_change=map_change,
        bounds=dict(BOUNDS[target.precision]),
    )


def check_reference(bundle: Bundle, target: Target, device: str) -> Proof:
    """Measure a target on the device against the reference that lies in the bundle.

    Raises:
        BundleError: the bundle was exported without a reference.
        BackendError: the target cannot run on the device.
    """
    attachment = bundle.manifest.attachments.get("reference")
    if attachment is None:
        raise BundleError(
            f"bundle {bundle.folder}: holds no reference to compare with; check it with "
            f"s3clip-export verify {bundle.folder} DATA, or export it again with --reference"
        )
    path = bundle.folder / attachment.file
    return compare(read_reference(path), measure_apart(bundle.folder, target, path, device), target)


def figures(proof: Proof) -> dict[str, float]:
    """Every figure of a proof that has a bound, the stages' errors under the stages' names."""
    return {
        name: proof.stages[name] if name in proof.stages else float(getattr(proof, name))
        for name in proof.bounds
        if name in proof.stages or hasattr(proof, name)
    }


def broken_bounds(proof: Proof) -> list[str]:
    """What misses its bound, with both values; empty when the graphs may be used.

    A loss of Rank-1 or mAP breaks the gate when it cannot be chance: its whole interval is below zero.
    """
    faults = [
        f"{name} is {value:.6g}, must be at {'least' if name in AT_LEAST else 'most'} {proof.bounds[name]:g}"
        for name, value in figures(proof).items()
        # Written so that a NaN fails too.
        if not (value >= proof.bounds[name] if name in AT_LEAST else value <= proof.bounds[name])
    ]
    faults += [f"{name} was not measured" for name in proof.bounds if name not in figures(proof)]
    for name, change in (("Rank-1", proof.rank1_change), ("mAP", proof.map_change)):
        if change is not None and change.high < 0:
            faults.append(
                f"{name} fell by {-change.value:.4f} (95 % interval {change.low:.4f} to {change.high:.4f}), "
                "must not fall"
            )
    return faults


def first_stage(proof: Proof) -> str | None:
    """The stage in which an error enters: the first one beyond its bound in the order of the data."""
    order = ("frames", "pixels", "enhance", "patchify", "encode")
    for name in order:
        if name in proof.stages and not proof.stages[name] <= proof.bounds[name]:
            return name
    return None


def cosines(
    expected: NDArray[np.float32 | np.float64], found: NDArray[np.float32 | np.float64]
) -> NDArray[np.float64]:
    """Cosine of each pair of rows of two (N, D), in float64."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    result: NDArray[np.float64] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return result


def centred_cosines(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """As `cosines`, after the mean row of `expected` was taken from all rows of both.

    It is the stricter one: embeddings of people have much in common, which hides errors in what tells them
    apart. N >= 2; a row that is the mean itself has no direction and gives NaN.
    """
    mean = expected.astype(np.float64).mean(axis=0)
    return cosines(expected - mean, found - mean)


def top_agreement(ours: NDArray[np.float64], theirs: NDArray[np.float64], count: int) -> float:
    """Mean share of the `count` most similar others by `theirs` that are among those by `ours` too.

    Args:
        ours: float64 (N, N) similarities by PyTorch; the diagonal is -inf. One that is less than `NEAR_TIE`
            behind the last of the most similar counts as among them.
        theirs: those by the graphs.
        count: at least 1, below N.
    """
    least = np.sort(ours, axis=1)[:, -count] - NEAR_TIE
    chosen = np.argsort(-theirs, axis=1, kind="stable")[:, :count]
    return float(np.mean(np.take_along_axis(ours, chosen, axis=1) >= least[:, None]))


def kendall_tau(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Mean over the rows of two similarity matrices (N, N), without their diagonals, of Kendall's tau-b.

    Pairs that `ours` holds less than `NEAR_TIE` apart have no order and are left out.
    """
    count = len(ours)
    taus = []
    for row in range(count):
        others = np.arange(count) != row
        gaps = ours[row, others][:, None] - ours[row, others][None, :]
        first = np.sign(gaps) * (np.abs(gaps) >= NEAR_TIE)
        second = np.sign(theirs[row, others][:, None] - theirs[row, others][None, :]) * (first != 0)
        norm = np.sqrt(np.sum(first * first) * np.sum(second * second))
        taus.append(1.0 if norm == 0 else float(np.sum(first * second) / norm))
    return float(np.mean(taus))


def similarities(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines of all pairs of unit vectors (N, D), float64 (N, N) with -inf on the diagonal."""
    wide = embeddings.astype(np.float64)
    similarity: NDArray[np.float64] = wide @ wide.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity
