"""Whether `enhance` may compute in 8 bits: its pictures beside float32 ones, and whether that is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from s3clip_calib.fidelity import psnr
from s3clip_calib.methods import Prepared
from s3clip_calib.quantise import quantise
from s3clip_calib.race import race
from s3clip_calib.run import open_graph
from s3clip_runtime.inference.backends import Session

LEAST_PSNR: Final = 60.0
"""dB beside float32 pictures: about one pixel value in sixteen is one level off."""

LEAST_GAIN: Final = 0.95
"""Share of the higher precision's time that 8 bits must stay below: less is not worth another file."""

PICTURE_PEAK: Final = 255.0

PLAIN_FORM: Final = "higher precision"


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One form of `enhance` on one backend.

    Attributes:
        backend: such as "onnx".
        form: "higher precision"; "products" in int8 and convolutions not; "all" layers in int8.
        psnr_db: of its pictures beside those of the float32 graph; infinite for equal ones.
        ms: median of a clip.
    """

    backend: str
    form: str
    psnr_db: float
    ms: float


def int8_forms(prepared: Prepared) -> dict[str, onnx.ModelProto]:
    """The int8 forms by name. The first and the last layer of a super-resolver are convolutions."""
    limits = prepared.limits("mse", "int8")
    products = [layer for layer in prepared.layers if len(layer.shape) == 2]
    return {
        "products": quantise(prepared.model, products, limits, "int8"),
        "all": quantise(prepared.model, prepared.layers, limits, "int8"),
    }


def pictures(model: onnx.ModelProto, crops: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """What the float32 graph makes of each clip's crops, uint8 (T, 128, 64, 3) each."""
    with open_graph(model) as run:
        return [run({"crops": one})["picture"] for one in crops]


def compare_forms(
    backend: str,
    sessions: Mapping[str, Session],
    crops: Sequence[NDArray[np.uint8]],
    expected: Sequence[NDArray[np.uint8]],
) -> list[PictureRow]:
    """Pictures and times of all forms on one backend.

    Args:
        backend: its name.
        sessions: form to its open graph.
        crops: uint8 (T, 64, 32, 3) of some clips.
        expected: of `pictures`.
    """
    feeds: list[dict[str, NDArray[Any]]] = [{"crops": one} for one in crops]
    taken = race(sessions, feeds)
    return [
        PictureRow(backend, form, _psnr(session, feeds, expected), taken[form])
        for form, session in sessions.items()
    ]


def choose_form(rows: Sequence[PictureRow]) -> PictureRow:
    """The fastest form of one backend whose pictures are good enough; the first row if none gains enough."""
    plain, *others = rows
    good = [o for o in others if o.psnr_db >= LEAST_PSNR and o.ms <= plain.ms * LEAST_GAIN]
    return min(good, key=lambda row: row.ms, default=plain)


def _psnr(
    session: Session, feeds: Sequence[Mapping[str, NDArray[Any]]], expected: Sequence[NDArray[np.uint8]]
) -> float:
    found = np.concatenate([session.run(feed)["picture"] for feed in feeds])
    whole = np.concatenate(expected)
    return psnr(whole.astype(np.float32), found.astype(np.float32), PICTURE_PEAK)
