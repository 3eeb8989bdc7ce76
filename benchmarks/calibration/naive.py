"""ONNX Runtime's static quantiser as it comes, and the gate that such graphs are shown to."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from benchmarks.calibration.clips import Clips
from s3clip_calib.candidates import ORT, Trial, artefacts_of, show_to_gate
from s3clip_calib.run import Feed
from s3clip_calib.samples import as_reference, labels
from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.inference.manifest import PLAIN
from s3clip_runtime.inference.reference import write_reference

NAIVE: Final[Mapping[str, tuple[str, bool]]] = {
    "naive static int8, U8S8 per tensor": ("QUInt8", False),
    "naive static int8, S8S8 per channel": ("QInt8", True),
}
"""Row to the type of activations and whether weights have a scale for each channel."""


def quantise_naively(name: str, clips: Clips, path: Path) -> None:
    """Write `encode` with every operator in int8 that the quantiser knows, ranges of all values.

    Args:
        name: of `NAIVE`.
        clips: whose calibration clips give the ranges.
        path: the file to write.
    """
    ort: Any = importlib.import_module("onnxruntime.quantization")
    kind, per_channel = NAIVE[name]
    ort.quantize_static(
        str(clips.bundle.file("encode", PLAIN)),
        str(path),
        _Reader([sample.feed for sample in clips.calibration]),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=getattr(ort.QuantType, kind),
        weight_type=ort.QuantType.QInt8,
    )


class _Reader:
    """What the quantiser takes its ranges from."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Inputs of one clip; None behind the last."""
        feed = next(self._left, None)
        return None if feed is None else dict(feed)


def gate(clips: Clips, path: Path, scratch: Path) -> tuple[str, ...]:
    """What the gate refuses in a bundle whose onnx-int8 encoder is this file, as at a calibration's end.

    Args:
        clips: with the bundle, its reference, and held-out clips.
        path: of the encoder.
        scratch: a folder for a copy of the float32 graphs.
    """
    folder, truth_file = scratch / "gate", scratch / "held.npz"
    folder.mkdir()
    manifest = clips.bundle.manifest
    kept = tuple(artefact for artefact in manifest.artefacts if artefact.target == PLAIN)
    reference = manifest.attachments["reference"]
    for name in {*(artefact.file for artefact in kept), reference.file}:
        shutil.copy2(clips.bundle.folder / name, folder / name)
    encoder = Path(shutil.copy2(path, folder / "encode.qdq.onnx"))
    manifest = manifest.changed(artefacts=kept, proofs=(), attachments={"reference": reference})
    truth = as_reference(clips.held)
    write_reference(truth_file, truth)
    trial = Trial(folder, manifest, clips.tune, truth, truth_file, labels(clips.held))
    try:
        *_, faults = show_to_gate(trial, ORT, artefacts_of(trial, ORT, {"encode": encoder}))
    except S3ClipError as error:  # such as embeddings that are not finite
        return (without_folder(error, scratch),)
    finally:
        shutil.rmtree(folder)
    return tuple(faults)


def without_folder(error: Exception, folder: Path) -> str:
    """The error in one line, with files named as they are in the folder: the page is for other machines."""
    return " ".join(str(error).replace(f"{folder}/", "").split())
