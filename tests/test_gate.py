"""The gate catches planted faults, says where they enter, and lets a right bundle through."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from scipy.spatial import distance
from scipy.stats import kendalltau
from tiny_run import tiny_tree
from torch import Tensor, nn
from worlds import write_block_world

from s3clip.config import DataSettings, parse_config
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.models.model import S3Clip, build_model
from s3clip.models.resize import Resize
from s3clip_export.fp16.convert import write_fp16
from s3clip_export.graphs import Encode, Enhance, Patchify
from s3clip_export.onnx import export_graph, graph_sources
from s3clip_export.proof import verify
from s3clip_export.write import export_graphs
from s3clip_runtime.errors import BackendError, DataError
from s3clip_runtime.inference import gate, measure
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import spread_indices
from s3clip_runtime.inference.manifest import PLAIN, TARGETS, Manifest, Precision, Role, Target
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.reference import Reference, read_reference, write_reference
from s3clip_runtime.inference.spec import FRAME_SIZE, LR_SIZE, SR_SIZE

pytestmark = pytest.mark.slow

HALF = Target("onnx", "fp16")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def tiny_model(seed: int, root: Path) -> S3Clip:
    torch.manual_seed(seed)
    model = build_model(parse_config(tiny_tree(root), "test"))
    for name, parameter in model.visual.named_parameters():
        if ".up." in name:  # adapters begin at zero, and what is zero cannot be wrong
            nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


@dataclasses.dataclass
class Case:
    """A right draft bundle, its model and PyTorch's answers."""

    folder: Path
    model: S3Clip
    trial: verify.Trial

    def copy(self, folder: Path) -> Path:
        folder.mkdir()
        for file in self.folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = write_block_world(tmp_path_factory.mktemp("gate") / "world")
    model = tiny_model(0, root)
    folder = tmp_path_factory.mktemp("draft")
    trial = verify.begin_trial(model, DataSettings(root=root), 64, tmp_path_factory.mktemp("reference"))
    manifest = export_graphs(model, folder, name="right", training={})
    write_manifest(folder, write_fp16(folder, manifest, trial.reference.clips))
    return Case(folder, model, trial)


def replace_graph(case: Case, folder: Path, role: Role, module: nn.Module) -> None:
    """Export another module in the place of a role's."""
    source = next(source for source in graph_sources(case.model) if source.role == role)
    export_graph(dataclasses.replace(source, module=module), folder / f"{role}.onnx")
    sign_graph(folder, role)


def sign_graph(folder: Path, role: Role) -> None:
    """Take the file as it is now into the manifest."""
    path = folder / f"{role}.onnx"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    artefacts = tuple(
        a.model_copy(update={"sha256": sha256_file(path), "bytes": path.stat().st_size})
        if a.role == role and a.target == PLAIN
        else a
        for a in manifest.artefacts
    )
    write_manifest(folder, manifest.model_copy(update={"artefacts": artefacts}))


class SwappedChannels(Enhance):
    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(crops[..., [2, 1, 0]])


class SwappedSharpChannels(Patchify):
    def forward(self, crops: Tensor) -> Tensor:
        return super().forward(crops[..., [2, 1, 0]])


class Transposed(Enhance):
    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(crops.transpose(1, 2).reshape(-1, *LR_SIZE, 3))


def unnormalised(model: S3Clip) -> nn.Module:
    other = copy.deepcopy(model)
    other.mean, other.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return Enhance(other)


def bilinear(model: S3Clip) -> nn.Module:
    other = copy.deepcopy(model)
    other.up = Resize(SR_SIZE, FRAME_SIZE, "bilinear")
    return Enhance(other)


GRAPH_FAULTS: dict[str, tuple[Role, Callable[[S3Clip], nn.Module], str]] = {
    "channels": ("enhance", SwappedChannels, "sr.conv_first"),
    "channels of HR": ("patchify", SwappedSharpChannels, "visual"),
    "no normalisation": ("enhance", unnormalised, "visual"),
    "transposed": ("enhance", Transposed, "sr.conv_first"),
    "resize kernel": ("enhance", bilinear, "visual"),
    "stale encode": ("encode", lambda model: Encode(tiny_model(1, Path("/"))), "visual.ln_pre"),
}


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_a_planted_fault_breaks_every_precisions_bounds_and_is_located(
    case: Case, tmp_path: Path, fault: str
) -> None:
    role, make, block = GRAPH_FAULTS[fault]
    folder = case.copy(tmp_path / "bundle")
    replace_graph(case, folder, role, make(case.model))
    bundle = Bundle.draft(folder)
    measured = measure.measure(bundle, PLAIN, case.trial.reference, "cpu")
    for precision in PRECISIONS:
        proof = gate.compare(case.trial.reference, measured, Target("onnx", precision))
        assert gate.broken_bounds(proof)
        assert gate.first_stage(proof) == role
    text = verify.verdict(
        bundle, PLAIN, gate.compare(case.trial.reference, measured, PLAIN), case.trial, case.model
    )
    assert text is not None
    assert f"stage {role}: the error enters in {block} (" in text


def test_a_stale_half_graph_is_located_too(case: Case, tmp_path: Path) -> None:
    """FP16 blocks are compared with PyTorch as well, each within the bound of its precision."""
    bundle = Bundle.draft(case.copy(tmp_path / "bundle"))
    good = verify.stage_blocks(bundle.file("encode", HALF), "encode", case.trial.reference, case.model)
    assert 1e-5 < max(block.error for block in good) < gate.BOUNDS["fp16"]["encode"]
    stale = verify.stage_blocks(
        bundle.file("encode", HALF), "encode", case.trial.reference, tiny_model(1, Path("/"))
    )
    assert stale[0].error > gate.BOUNDS["fp16"]["encode"]


def test_weights_of_8_bits_rounded_to_6_break_the_gate(case: Case, tmp_path: Path) -> None:
    folder = case.copy(tmp_path / "bundle")
    graph = onnx.load(folder / "encode.onnx")
    for tensor in graph.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.ndim == 2:
            step = np.abs(weights).max() / 127
            six = np.round(np.round(weights / step) / 4) * 4 * step
            tensor.CopyFrom(numpy_helper.from_array(six.astype(np.float32), tensor.name))
    onnx.save(graph, folder / "encode.onnx")
    sign_graph(folder, "encode")
    measured = measure.measure(Bundle.draft(folder), PLAIN, case.trial.reference, "cpu")
    for precision in PRECISIONS:
        proof = gate.compare(case.trial.reference, measured, Target("onnx", precision))
        assert gate.first_stage(proof) == "encode"


def test_a_runtime_that_chooses_other_frames_breaks_the_gate(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "spread_indices", lambda n: [min(i + 1, n - 1) for i in spread_indices(n)])
    assert failing_stage(case, "fp16") == "frames"


def test_a_runtime_with_another_resize_kernel_breaks_the_gate(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bilinear_batch(crops: tuple[NDArray[np.uint8], ...]) -> NDArray[np.uint8]:
        size = (LR_SIZE[1], LR_SIZE[0])
        return np.stack(
            [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BILINEAR)) for c in crops]
        )

    monkeypatch.setattr(measure, "lr_batch", bilinear_batch)
    assert failing_stage(case, "fp16") == "pixels"


def failing_stage(case: Case, precision: Precision) -> str | None:
    measured = measure.measure(Bundle.draft(case.folder), PLAIN, case.trial.reference, "cpu")
    proof = gate.compare(case.trial.reference, measured, Target("onnx", precision))
    assert gate.broken_bounds(proof)
    return gate.first_stage(proof)


def test_a_right_bundle_passes_20_times_of_20(case: Case, tmp_path: Path) -> None:
    bundle = Bundle.draft(case.folder)
    rng = np.random.default_rng(0)
    for trial in range(20):
        root = write_block_world(tmp_path / str(trial), train=0, test=3)  # 12 tracklets: ten are not all
        for path in root.rglob("*.jpg"):
            # Half of the tracklets are HR and half LR: at 20 to 200 pixels 14 of 16 were LR.
            height = rng.integers(130, 200) if "ground" in path.parts else rng.integers(20, 120)
            noise = rng.integers(0, 256, (height, rng.integers(20, 200), 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        tracklets = protocol_tracklets(read_protocols(DataSettings(root=root)))
        reference = verify.make_reference(case.model, tracklets)
        for target in (PLAIN, HALF):
            proof = gate.compare(reference, measure.measure(bundle, target, reference, "cpu"), target)
            assert gate.broken_bounds(proof) == []


def test_a_process_apart_measures_the_same(case: Case) -> None:
    apart = measure.measure_apart(case.folder, PLAIN, case.trial.file, "cpu")
    here = measure.measure(Bundle.draft(case.folder), PLAIN, case.trial.reference, "cpu")
    np.testing.assert_allclose(apart.embeddings, here.embeddings, atol=1e-6)
    assert apart.stages.keys() == here.stages.keys()
    assert apart.device == "cpu"


def test_what_happens_apart_is_said_here(case: Case) -> None:
    with pytest.raises(BackendError, match=r"onnx-fp16 on cuda: .*has no CUDAExecutionProvider"):
        measure.measure_apart(case.folder, HALF, case.trial.file, "cuda")
    with pytest.raises(BackendError, match=r"did not finish on cpu in 0 s"):
        measure.measure_apart(case.folder, PLAIN, case.trial.file, "cpu", timeout_s=0.1)


def test_a_process_that_dies_is_a_sentence(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for onnxruntime that ends the interpreter as a native library would."""
    (tmp_path / "onnxruntime.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BackendError, match="the process was ended by SIGSEGV inside a native library"):
        measure.measure_apart(case.folder, PLAIN, case.trial.file, "cpu")


def test_a_reference_survives_its_file_and_its_part_keeps_rows_together(case: Case, tmp_path: Path) -> None:
    reference = case.trial.reference
    write_reference(tmp_path / "r.npz", reference)
    assert_equal(read_reference(tmp_path / "r.npz"), reference)
    last = max(reference.tokens)
    part = reference.part([0, last])
    np.testing.assert_array_equal(part.tokens[1], reference.tokens[last])
    np.testing.assert_array_equal(part.embeddings[1], reference.embeddings[last])


def assert_equal(a: Reference, b: Reference) -> None:
    assert (a.lengths, a.frames) == (b.lengths, b.frames)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    for one, other in zip(a.clips, b.clips, strict=True):
        assert (one.platform, one.hr) == (other.platform, other.hr)
        for crop, same in zip(one.crops, other.crops, strict=True):
            np.testing.assert_array_equal(crop, same)
    assert a.tokens.keys() == b.tokens.keys()


def test_agreements_equal_slow_and_foreign_ones() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 12, 5))
    ours, theirs = (v @ v.T for v in vectors)
    for matrix in (ours, theirs):
        np.fill_diagonal(matrix, -np.inf)
    rows = range(12)
    taus = [kendalltau(np.delete(ours[i], i), np.delete(theirs[i], i)).statistic for i in rows]
    assert gate.kendall_tau(ours, theirs) == pytest.approx(np.mean(taus), abs=1e-3)
    shared = [len(set(np.argsort(-ours[i])[:3]) & set(np.argsort(-theirs[i])[:3])) / 3 for i in rows]
    assert gate.top_agreement(ours, theirs, 3) == pytest.approx(np.mean(shared))
    assert gate.kendall_tau(ours, ours) == 1.0


def test_centred_cosines_see_what_a_common_part_hides() -> None:
    rng = np.random.default_rng(5)
    common = 50 * rng.normal(size=7)  # what all people share
    own = rng.normal(size=(20, 7))
    own -= own.mean(axis=0)
    error = 0.3 * rng.normal(size=(20, 7))
    expected, found = ((3 * (common + part)).astype(np.float32) for part in (own, own + error))
    truth = [1 - distance.cosine(mine, theirs) for mine, theirs in zip(own, own + error, strict=True)]
    np.testing.assert_allclose(gate.centred_cosines(expected, found), truth, atol=1e-5)
    assert gate.cosines(expected, found).min() > 0.9999 > 0.99 > gate.centred_cosines(expected, found).min()
    np.testing.assert_allclose(gate.centred_cosines(expected, expected), 1, atol=1e-12)
    assert gate.centred_cosines(expected, found).dtype == np.float64


def test_all_eight_bit_targets_have_one_table_of_bounds() -> None:
    quantised = [target.precision for target in TARGETS if target.quantised]
    assert all(gate.BOUNDS[precision] is gate.BOUNDS["int8"] for precision in quantised)
    assert set(gate.BOUNDS) == set(get_args(Precision))


def test_near_ties_are_no_disagreement_and_others_are() -> None:
    ours = np.array(
        [[0, 0.9, 0.9 - 5e-5, 0.1], [0.9, 0, 0.5, 0.4], [0.9 - 5e-5, 0.5, 0, 0.3], [0.1, 0.4, 0.3, 0]]
    )
    np.fill_diagonal(ours, -np.inf)
    swapped = ours.copy()
    swapped[0, [1, 2]] = ours[0, [2, 1]]
    assert gate.top_agreement(ours, swapped, 1) == 1.0
    assert gate.kendall_tau(ours, swapped) == 1.0
    swapped = ours.copy()
    swapped[0, [1, 3]] = ours[0, [3, 1]]
    assert gate.top_agreement(ours, swapped, 1) == 0.75
    assert gate.kendall_tau(ours, swapped) < 0.9


def test_a_stage_that_was_not_measured_is_a_fault(case: Case) -> None:
    measured = measure.measure(Bundle.draft(case.folder), PLAIN, case.trial.reference, "cpu")
    stages = {name: error for name, error in measured.stages.items() if name != "enhance"}
    proof = gate.compare(case.trial.reference, dataclasses.replace(measured, stages=stages), PLAIN)
    assert gate.broken_bounds(proof) == ["enhance was not measured"]


def test_one_clip_cannot_be_ranked(case: Case) -> None:
    reference = case.trial.reference.part([0])
    measured = measure.Measured(reference.embeddings, {}, "cpu")
    with pytest.raises(DataError, match="needs at least 2 tracklets, got 1"):
        gate.compare(reference, measured, PLAIN)
