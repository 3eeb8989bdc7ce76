"""A tiny run through export: proofs on real crops, batch sizes, refusals."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from tiny_run import tiny_tree

from s3clip.checkpoint import read_run
from s3clip.config import DataSettings, parse_config
from s3clip.datasets.catalog import read_protocols
from s3clip.models.model import build_model
from s3clip.train import train
from s3clip_export import write
from s3clip_export.cli import main
from s3clip_export.onnx import export_graph, graph_problems, graph_sources
from s3clip_export.origin import origin_of_run
from s3clip_export.proof.verify import choose_tracklets, restrict
from s3clip_runtime.errors import BackendError, BundleError, ConfigError
from s3clip_runtime.inference.backends.cuda import driver_problem
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.gate import broken_bounds, check_reference
from s3clip_runtime.inference.spec import CLIP_LENGTH, PATCHES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_folder(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(parse_config(tiny_tree(tiny_world), "test"), folder, threading.Event())
    return folder


@pytest.fixture(scope="module")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "bundle"
    export_run(run_folder, out)
    return out


def export_run(run: Path, out: Path) -> None:
    origin = origin_of_run(run)
    write.export(origin, out, data=origin.config.data, wanted=write.Wanted(tracklets=8))


def test_the_bundle_opens_with_a_proof_within_bounds(exported: Path) -> None:
    manifest = Bundle.open(exported).manifest
    (proof,) = manifest.proofs
    assert proof.target == "onnx-fp32"
    assert proof.tracklets >= 8
    assert proof.cosine_min >= 0.99999
    assert proof.max_abs_error <= 1e-5
    assert set(proof.stages) == {"frames", "pixels", "enhance", "patchify", "encode"}
    assert manifest.training["config"]["reid"]["variant"] == "two_phase"  # type: ignore[index, call-overload]


def test_graphs_hold_the_contract(exported: Path) -> None:
    for name in ("enhance", "patchify", "encode"):
        graph = onnx.load(exported / f"{name}.onnx")
        assert graph_problems(graph) == []
        text = (exported / f"{name}.onnx").read_bytes()
        assert b'File "' not in text, "stack traces of the exporting machine"
        assert any(node.op_type == "LayerNormalization" for node in graph.graph.node) or name == "patchify"


def test_engines_without_a_gpu_are_refused_before_any_work(run_folder: Path, tmp_path: Path) -> None:
    if driver_problem() is None:
        pytest.skip("this machine has a GPU")
    origin = origin_of_run(run_folder)
    with pytest.raises(BackendError, match="the NVIDIA driver is not installed"):
        write.export(origin, tmp_path / "bundle", data=origin.config.data, wanted=write.Wanted(engines=True))
    assert list(tmp_path.iterdir()) == []


def test_the_command_proves_half_graphs_and_verifies_them_again(
    run_folder: Path, tiny_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    words = [str(run_folder), "-o", str(out), "--fp16", "--tracklets", "8", "--reference", "4"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    before = Bundle.open(out)
    assert [str(t) for t in before.targets] == ["onnx-fp32", "onnx-fp16"]
    assert before.manifest.attachments.keys() == {"range_audit", "report", "reference"}
    page = (out / before.manifest.attachments["report"].file).read_text()
    assert "Largest activations" in page
    assert page.count("data:image/svg+xml") == 2
    for target in before.targets:
        assert broken_bounds(check_reference(before, target, "cpu")) == []
    words = ["verify", str(out), str(tiny_world), "--run", str(run_folder), "--tracklets", "16"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    after = Bundle.open(out)
    assert [p.tracklets for p in after.manifest.proofs] != [p.tracklets for p in before.manifest.proofs]
    assert len(list(out.glob("report-*.html"))) == 1


def test_a_bundle_is_verified_against_its_own_run_alone(
    exported: Path, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["verify", str(exported), str(tiny_world)])
    assert done.exit_code == 2
    assert "no run below runs/ has the weights that it was exported from" in done.output


def test_a_batch_is_its_single_items(exported: Path) -> None:
    rng = np.random.default_rng(0)
    platform = np.arange(17) % 2
    session = OrtSession(exported / "encode.onnx")
    tokens = rng.normal(size=(17, CLIP_LENGTH, PATCHES, 32)).astype(np.float32)
    whole = session.run({"tokens": tokens, "platform": platform})["embedding"]
    for i in (0, 1, 16):
        one = session.run({"tokens": tokens[i : i + 1], "platform": platform[i : i + 1]})["embedding"]
        np.testing.assert_allclose(whole[i], one[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, atol=1e-6)
    assert np.abs(whole[0] - whole[2]).max() > 1e-3  # the input matters


def test_a_run_without_a_super_resolver_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    tree = tiny_tree(tiny_world, epochs=1)
    tree |= {"sr": {"kind": "none"}, "prompts": {"epochs": 0}}
    train(parse_config(tree, "test"), tmp_path / "run", threading.Event())
    with pytest.raises(ConfigError, match="needs a super-resolver"):
        export_run(tmp_path / "run", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_patches_that_do_not_divide_the_frame_export_too(tmp_path: Path) -> None:
    """ViT-L/14 sees 18 x 9 patches of a frame and not its last rows and columns."""
    tree = tiny_tree(tmp_path)
    visual = cast(dict[str, object], tree["visual"])
    torch.manual_seed(0)
    model = build_model(parse_config({**tree, "visual": {**visual, "patch": 14}}, "test")).eval()
    sources = {source.role: source for source in graph_sources(model)}
    crops = np.random.default_rng(0).integers(0, 256, (8, 256, 128, 3), dtype=np.uint8)
    for role in ("patchify", "encode"):
        export_graph(sources[role], tmp_path / f"{role}.onnx")
    tokens = OrtSession(tmp_path / "patchify.onnx").run({"crops": crops})["tokens"]
    assert tokens.shape == (8, 162, 32)
    clip = {"tokens": tokens[None], "platform": np.array([1])}
    found = OrtSession(tmp_path / "encode.onnx").run(clip)["embedding"]
    frames = torch.from_numpy(crops).permute(0, 3, 1, 2)[None] / 255.0
    with torch.no_grad():
        expected = model(frames, torch.tensor([1])).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_picture_is_the_clamped_super_resolution(exported: Path, run_folder: Path) -> None:
    crops = np.random.default_rng(1).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)
    picture = OrtSession(exported / "enhance.onnx").run({"crops": crops})["picture"]
    _, model, _ = read_run(run_folder)
    with torch.no_grad():
        resolved = model.super_resolve(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
    expected = (resolved * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_an_unfinished_run_and_an_existing_bundle_are_refused(
    exported: Path, run_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        export_run(tmp_path, tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists already"):
        export_run(run_folder, exported)


def test_proofs_see_whole_identities_hr_and_lr(tiny_world: Path) -> None:
    protocols = read_protocols(DataSettings(root=tiny_world))
    chosen = choose_tracklets(protocols, 6)
    assert 2 <= len(chosen) <= 8
    assert {t.hr for t in chosen} == {True, False}
    assert restrict(protocols, chosen)  # there is something to rank
