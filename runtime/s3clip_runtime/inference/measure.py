"""Run a bundle's graphs on a reference, in a process of its own.

    python -m s3clip_runtime.inference.measure BUNDLE TARGET DEVICE REFERENCE OUT

Native libraries may end the interpreter (a driver that does not fit, float16 kernels on the CPU): the process
that asks survives that and says so.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip_runtime.errors import BackendError, S3ClipError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.inference.backends.cuda import gpu
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import Role, Target
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.reference import Reference, read_reference
from s3clip_runtime.inference.sessions import open_session

TIMEOUT_S = 3600.0
"""Of one measurement. Full-size graphs take 2 s a tracklet on two CPU cores."""


ERROR_SUFFIX = ".txt"
"""Of the file in which the process tells an expected error."""

CLIPS_AT_ONCE = 4
"""Clips between two steps of the progress bar: a full-size one takes 2 s on two CPU cores."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the graphs of one target gave.

    Attributes:
        embeddings: float32 (N, D).
        stages: error of each stage when it is fed with the reference's own input, see `bundle.Proof`.
        device: where they ran, with the GPU's name.
    """

    embeddings: NDArray[np.float32]
    stages: Mapping[str, float]
    device: str


def measure(bundle: Bundle, target: Target, reference: Reference, device: str) -> Measured:
    """Embed the reference's clips, and run each stage alone on the reference's own input.

    Raises:
        BackendError: the target cannot run on the device.
    """
    parts = []
    with (
        Embedder(bundle, device=device, target=target) as embedder,
        tqdm(
            total=len(reference.clips), desc=f"{target} on {embedder.device}", unit="clip", leave=False
        ) as bar,
    ):
        where = embedder.device
        for first in range(0, len(reference.clips), CLIPS_AT_ONCE):
            parts.append(embedder.embed(reference.clips[first : first + CLIPS_AT_ONCE]))
            bar.update(len(parts[-1]))
    embeddings = np.concatenate(parts)
    stages = {"frames": _frames_error(reference), "pixels": _pixels_error(reference)}
    with ExitStack() as stack:
        sessions: dict[Role, Session] = {}
        for role in ("enhance", "patchify", "encode"):
            sessions[role] = open_session(bundle, role, target, where)
            stack.callback(sessions[role].close)
        stages |= _graph_errors(sessions, reference)
    return Measured(embeddings, stages, where if where == "cpu" else f"{where} ({gpu().name})")


def measure_apart(
    folder: Path, target: Target, reference: Path, device: str, *, timeout_s: float = TIMEOUT_S
) -> Measured:
    """`measure` in a process of its own.

    Args:
        folder: of a bundle, which may lack proofs: this is what makes them.
        target: whose graphs are run.
        reference: file of `write_reference`.
        device: "auto", "cpu" or "cuda".
        timeout_s: seconds until the process is ended.

    Raises:
        BackendError: the target cannot run there; the process died or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="s3clip-measure-") as scratch:
        out = Path(scratch) / "measured.npz"
        words = [str(folder), str(target), device, str(reference), str(out)]
        try:
            # Its standard error is ours: there are the progress bar and what native libraries say.
            # -P: no module of the working folder is taken for one of ours.
            done = subprocess.run(
                [sys.executable, "-P", "-m", "s3clip_runtime.inference.measure", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BackendError(
                f"bundle {folder}: the {target} graphs did not finish on {device} in {timeout_s:.0f} s; "
                "use fewer tracklets or a faster device"
            ) from None
        if done.returncode != 0:
            raise BackendError(f"bundle {folder}: {target} on {device}: {_cause(done.returncode, out)}")
        with np.load(out, allow_pickle=False) as file:
            stages = dict(zip(file["names"].tolist(), file["errors"].tolist(), strict=True))
            return Measured(file["embeddings"], stages, str(file["device"]))


def _cause(code: int, out: Path) -> str:
    if code < 0:
        return (
            f"the process was ended by {signal.Signals(-code).name} inside a native library; "
            "run s3clip-doctor, which checks their versions"
        )
    told = out.with_suffix(ERROR_SUFFIX)
    return told.read_text("utf-8") if told.is_file() else "the process failed, its traceback is above"


def _frames_error(reference: Reference) -> float:
    """Share of clips whose frames the runtime would not choose from the whole tracklet."""
    wrong = [
        tuple(spread_indices(length)) != chosen
        for length, chosen in zip(reference.lengths, reference.frames, strict=True)
    ]
    return float(np.mean(wrong))


def _pixels_error(reference: Reference) -> float:
    """Largest difference of resized crops, of 1."""
    worst = 0.0
    for position, pixels in reference.pixels.items():
        clip = reference.clips[position]
        made = hr_batch(clip.crops) if clip.hr else lr_batch(clip.crops)
        worst = max(worst, float(np.abs(made.astype(np.int16) - pixels.astype(np.int16)).max()) / 255.0)
    return worst


def _graph_errors(sessions: Mapping[Role, Session], reference: Reference) -> dict[str, float]:
    errors: dict[str, float] = {}
    for position, pixels in reference.pixels.items():
        role: Role = "patchify" if reference.clips[position].hr else "enhance"
        tokens = sessions[role].run({"crops": pixels})["tokens"]
        errors[role] = max(errors.get(role, 0.0), relative_error(tokens, reference.tokens[position]))
    positions = list(reference.tokens)
    if positions:
        platforms = np.array([reference.clips[i].platform for i in positions], np.int64)
        tokens = np.stack([reference.tokens[i] for i in positions])
        found = sessions["encode"].run({"tokens": tokens, "platform": platforms})["embedding"]
        errors["encode"] = relative_error(found, reference.embeddings[positions])
    return errors


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference as a share of the largest expected absolute value; huge if `found` is not finite."""
    if not np.isfinite(found).all():
        return float(np.finfo(np.float32).max)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def main(arguments: list[str]) -> int:
    """Measure and write OUT; an expected error goes into a file beside it, with exit code 2."""
    folder, target, device, reference, out = arguments
    try:
        measured = measure(
            Bundle.draft(Path(folder)), Target.parse(target), read_reference(Path(reference)), device
        )
    except S3ClipError as error:
        Path(out).with_suffix(ERROR_SUFFIX).write_text(" ".join(str(error).split()), "utf-8")
        return 2
    np.savez(
        out,
        embeddings=measured.embeddings,
        names=np.array(list(measured.stages)),
        errors=np.array(list(measured.stages.values())),
        device=np.array(measured.device),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
