"""Forms of super-resolution and races: what is compared, and which is taken."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from s3clip_calib.methods import prepare
from s3clip_calib.race import MOST_ROUNDS, ROUNDS, race
from s3clip_calib.super_resolution import (
    LEAST_PSNR,
    PLAIN_FORM,
    PictureRow,
    choose_form,
    compare_forms,
    int8_forms,
    pictures,
)
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.spec import LR_SIZE

ENHANCE = Path(str(files("s3clip_runtime.demo"))) / "bundle" / "enhance.onnx"


def crops(seed: int) -> NDArray[np.uint8]:
    """Two smooth random pictures."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (2, LR_SIZE[0] // 8, LR_SIZE[1] // 8, 3))
    return np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)


def test_forms_of_super_resolution_differ_in_their_convolutions(tmp_path: Path) -> None:
    model = onnx.load(ENHANCE)
    (prepared,) = prepare(model, [{"crops": crops(1)}], (None,))
    forms = int8_forms(prepared)
    for name, graph in forms.items():
        made = {output: node.op_type for node in graph.graph.node for output in node.output}
        read = {
            node.op_type: {made.get(node.input[1]) == "DequantizeLinear"}
            for node in graph.graph.node
            if node.op_type == "Conv"
        }
        assert read["Conv"] == {name == "all"}
    tested = [crops(2), crops(3)]
    expected = pictures(model, tested)
    sessions = {PLAIN_FORM: OrtSession(ENHANCE)}
    for name, graph in forms.items():
        onnx.save(graph, tmp_path / f"{name}.onnx")
        sessions[name] = OrtSession(tmp_path / f"{name}.onnx", precision="int8")
    rows = {row.form: row for row in compare_forms("onnx", sessions, tested, expected)}
    assert rows[PLAIN_FORM].psnr_db == float("inf")
    for name in forms:
        found = [sessions[name].run({"crops": one})["picture"].astype(np.float64) for one in tested]
        error = np.mean((np.concatenate(found) - np.concatenate(expected).astype(np.float64)) ** 2)
        assert rows[name].psnr_db == pytest.approx(20 * np.log10(255 / np.sqrt(error)))
    assert rows["all"].psnr_db < rows["products"].psnr_db
    for session in sessions.values():
        session.close()


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        ([("products", 70.0, 80.0), ("all", 65.0, 60.0)], "all"),
        ([("products", 70.0, 80.0), ("all", LEAST_PSNR - 0.1, 60.0)], "products"),
        ([("products", 70.0, 96.0), ("all", 59.0, 60.0)], PLAIN_FORM),  # 4 % is no gain
        ([("products", float("nan"), 50.0)], PLAIN_FORM),
    ],
)
def test_a_form_must_keep_its_pictures_and_be_faster(
    rows: list[tuple[str, float, float]], taken: str
) -> None:
    plain = PictureRow("onnx", PLAIN_FORM, float("inf"), 100.0)
    assert choose_form([plain, *(PictureRow("onnx", *row) for row in rows)]).form == taken


class Sleeper:
    """A session that takes its time, and notes when it was asked."""

    inputs: Mapping[str, TensorInfo] = MappingProxyType({})
    outputs: Mapping[str, TensorInfo] = MappingProxyType({})
    device = "cpu"

    def __init__(self, seconds: float, first: float, asked: list[float]) -> None:
        self._seconds, self._first, self._asked = seconds, first, asked

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        time.sleep(self._first or self._seconds)
        self._first = 0.0
        self._asked.append(self._seconds)
        return {}

    def close(self) -> None:
        """Nothing is held."""


def test_a_race_takes_turns_and_leaves_the_first_call_out() -> None:
    asked: list[float] = []
    sessions = {"slow": Sleeper(0.06, 0.3, asked), "fast": Sleeper(0.05, 0.0, asked)}
    taken = race(sessions, [{}])
    assert asked == [0.06, 0.05] * (ROUNDS + 1)
    assert 60 <= taken["slow"] < 90
    assert 50 <= taken["fast"] < taken["slow"]


def test_tiny_graphs_run_more_often() -> None:
    asked: list[float] = []
    race({"one": Sleeper(0.001, 0.0, asked)}, [{}])
    assert ROUNDS + 1 < len(asked) <= MOST_ROUNDS + 1
