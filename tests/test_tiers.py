"""The CPU tiers of a bundle: proven against its own reference without PyTorch, or nothing is changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from s3clip_export import tiers
from s3clip_export.tiers import BF16, INT8
from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.cpus import cpu_flags, lacking_instructions
from s3clip_runtime.inference.gate import broken_bounds, check_reference
from s3clip_runtime.inference.manifest import PLAIN
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.reference import read_reference
from s3clip_runtime.inference.sessions import open_session

pytestmark = pytest.mark.skipif(
    lacking_instructions("int8", cpu_flags()) is not None,
    reason="this CPU has no bfloat16 or int8 instructions; test_openvino.py tests the refusal",
)

COMMAND = (
    "import sys; sys.modules['torch'] = None\n"
    "from s3clip_export.cli import main; main(prog_name='s3clip-export')"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo's bundle: a trained tiny model with six tracklets of reference."""
    with as_file(files("s3clip_runtime.demo")) as demo:
        return Path(shutil.copytree(demo / "bundle", tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def test_tiers_are_added_without_pytorch_and_hold_their_bounds(folder: Path) -> None:
    before = contents(folder)
    words = [sys.executable, "-c", COMMAND, "tiers", str(folder), "--bf16", "--int8"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "every bound holds" in done.stdout
    bundle = Bundle.open(folder)
    assert bundle.targets == (PLAIN, BF16, INT8)
    for proof in bundle.manifest.proofs:
        assert broken_bounds(proof) == []
    assert bundle.artefact("encode", INT8).bytes < 0.4 * bundle.artefact("encode", PLAIN).bytes
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {
        "encode.int8.onnx",
        "manifest.json",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_second_time_gives_the_same_targets(folder: Path) -> None:
    tiers.add_proven_tiers(folder, (INT8,))
    tiers.add_proven_tiers(folder, (BF16,))
    tiers.add_proven_tiers(folder, (INT8,))
    assert set(Bundle.open(folder).targets) == {PLAIN, BF16, INT8}
    assert len(Bundle.open(folder).manifest.proofs) == 3


class Tokens(CalibrationDataReader):  # type: ignore[misc]
    """What a static quantiser learns its scales from: the tokens of the very clips it is judged on."""

    def __init__(self, bundle: Bundle) -> None:
        self._feeds = self._make(bundle)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)

    def _make(self, bundle: Bundle) -> Iterator[dict[str, NDArray[Any]]]:
        reference = read_reference(bundle.folder / bundle.manifest.attachments["reference"].file)
        for position, tokens in reference.tokens.items():
            platform = np.array([reference.clips[position].platform])
            yield {"tokens": tokens[None], "platform": platform}


def test_fixed_scales_of_whole_tensors_do_not_pass(folder: Path) -> None:
    """ONNX Runtime's static quantiser in the int8 encoder's place: the gate refuses what it makes."""
    bundle = Bundle.open(folder)
    path = folder / "encode.int8.onnx"
    quantize_static(
        str(bundle.file("encode", PLAIN)),
        str(path),
        Tokens(bundle),
        quant_format=QuantFormat.QDQ,
        per_channel=False,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    manifest = tiers.add_tiers(folder, bundle.manifest, (BF16,))
    plain = [a for a in manifest.artefacts if a.target == BF16]
    crude = [
        a.model_copy(
            update={"precision": "int8"}
            | (
                {"file": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
                if a.role == "encode"
                else {}
            )
        )
        for a in plain
    ]
    write_manifest(folder, manifest.changed(artefacts=(*manifest.artefacts, *crude)))
    proof = check_reference(Bundle.draft(folder), INT8, "cpu")
    assert proof.cosine_min < 0.9995
    assert any(fault.startswith("cosine_min is ") for fault in broken_bounds(proof))


def test_a_tier_that_misses_a_bound_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weakened(source: Path, target: Path) -> int:
        target.write_bytes(wrong.read_bytes())
        return 1

    wrong = folder.parent / "wrong.onnx"
    weaken(folder / "encode.onnx", wrong)
    before = contents(folder)
    monkeypatch.setattr(tiers, "write_int8", weakened)
    with pytest.raises(BundleError, match=r"openvino-int8 differs from PyTorch: .*cosine_min is"):
        tiers.add_proven_tiers(folder, (INT8,))
    assert contents(folder) == before


def weaken(source: Path, target: Path) -> None:
    """A fifth less in every matrix."""
    model = onnx.load(source)
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype == np.float32 and values.ndim == 2 and min(values.shape) > 8:
            constant.CopyFrom(numpy_helper.from_array(values * np.float32(0.8), constant.name))
    onnx.save(model, target)


def test_without_a_reference_nothing_is_proven(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, manifest.changed(attachments={"report": manifest.attachments["report"]}))
    with pytest.raises(BundleError, match="holds no reference to prove CPU tiers with"):
        tiers.add_proven_tiers(folder, (BF16,))


def test_a_machine_without_the_instructions_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr(tiers, "openvino_problem", lambda precision: "it has no such instructions")
    with pytest.raises(BackendError, match="openvino-bf16 cannot be proven on this machine: it has no such"):
        tiers.add_proven_tiers(folder, (BF16,))
    assert contents(folder) == before


def test_the_command_wants_a_tier(folder: Path) -> None:
    words = [sys.executable, "-c", COMMAND, "tiers", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("no tier is named; give --bf16, --int8 or both")


def test_bfloat16_really_rounds(folder: Path) -> None:
    """The tokens of the same file differ from float32's by more than float32 can."""
    tiers.add_proven_tiers(folder, (BF16,))
    bundle = Bundle.open(folder)
    crops = np.random.default_rng(0).integers(0, 256, (2, 256, 128, 3), dtype=np.uint8)
    found = []
    for target in (PLAIN, BF16):
        session = open_session(bundle, "patchify", target, "cpu", threads=1)
        found.append(session.run({"crops": crops})["tokens"])
        session.close()
    error = float(np.abs(found[1] - found[0]).max() / np.abs(found[0]).max())
    assert 1e-4 < error < 2e-2
