"""s3clip-calib on the demo's trained model: what enters the bundle, what is refused, what stays as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image
from worlds import write_block_world

from s3clip_calib.calibrate import Outcome, calibrate
from s3clip_calib.candidates import FP8_ENGINE, INT8_ENGINE, OPENVINO, ORT
from s3clip_calib.cli import main
from s3clip_calib.fidelity import Fidelity
from s3clip_calib.notebook import Notebook
from s3clip_calib.selection import Wanted
from s3clip_export.fp16.convert import write_fp16
from s3clip_export.tensorrt.layers import check_precisions, eight_bit_products
from s3clip_export.tensorrt.quantised import quantised_products
from s3clip_export.tiers import add_proven_tiers
from s3clip_runtime.errors import BundleError, ConfigError, DataError
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.cpus import cpu_flags, lacking_instructions
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.gate import broken_bounds, check_reference, cosines
from s3clip_runtime.inference.manifest import PLAIN, Target
from s3clip_runtime.inference.records import sha256_file
from s3clip_runtime.inference.reference import read_reference

FP16 = Target("onnx", "fp16")
FEW = Wanted(count=8, held=8)

has_int8 = pytest.mark.skipif(
    lacking_instructions("int8", cpu_flags()) is not None, reason="OpenVINO has no int8 on this CPU"
)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def copy_of_demo(to: Path) -> Path:
    with as_file(files("s3clip_runtime.demo")) as demo:
        return Path(shutil.copytree(demo / "bundle", to))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty tracklets of twenty drawn people."""
    return write_block_world(tmp_path_factory.mktemp("people") / "world", train=10, test=10, tracklets=1)


@pytest.fixture(scope="module")
def with_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with float16 graphs, proven here."""
    folder = copy_of_demo(tmp_path_factory.mktemp("half") / "bundle")
    bundle = Bundle.open(folder)
    reference = read_reference(folder / bundle.manifest.attachments["reference"].file)
    manifest = write_fp16(folder, bundle.manifest, reference.clips)
    write_manifest(folder, manifest)
    proof = check_reference(Bundle.draft(folder), FP16, "cpu")
    write_manifest(folder, manifest.changed(proofs=(*manifest.proofs, proof)))
    return folder


@pytest.fixture(scope="module")
def made(with_fp16: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A bundle with all that calibration makes on this machine."""
    folder = Path(shutil.copytree(with_fp16, tmp_path_factory.mktemp("made") / "bundle"))
    return folder, calibrate(folder, people, FEW)


pytestmark = pytest.mark.slow


def test_every_target_is_proven_and_described(made: tuple[Path, Outcome], people: Path) -> None:
    folder, outcome = made
    bundle = Bundle.open(folder)
    taken = [verdict.target for verdict in outcome.verdicts if verdict.artefacts]
    assert {ORT, INT8_ENGINE, FP8_ENGINE} <= set(taken)
    assert set(taken) == set(bundle.targets) - {PLAIN, FP16}
    calibrations = {one.target: one for one in bundle.manifest.calibrations}
    proofs = {proof.target: proof for proof in bundle.manifest.proofs}
    for verdict in outcome.verdicts:
        if not verdict.artefacts:
            continue
        assert verdict.point is not None
        assert broken_bounds(proofs[str(verdict.target)]) == []
        record = calibrations[str(verdict.target)]
        assert len(record.tracklets) == len(set(record.tracklets)) == 8
        assert all((people / name).is_dir() for name in record.tracklets)
        assert not set(record.kept["encode"]) & set(verdict.point.layers)
    page = (folder / outcome.report).read_text("utf-8")
    assert "onnx-int8" in page
    assert bundle.manifest.attachments["calibration"].file == outcome.report
    manifest = bundle.manifest
    known = {a.file for a in manifest.artefacts} | {a.file for a in manifest.attachments.values()}
    assert {path.name for path in folder.iterdir()} == known | {"manifest.json"}  # nothing is left over
    assert not list(folder.parent.glob("*.jsonl"))


def test_calibration_tracklets_are_balanced_over_cameras(made: tuple[Path, Outcome]) -> None:
    names = Bundle.open(made[0]).manifest.calibrations[0].tracklets
    assert sorted(name.split("/")[1] for name in names) == ["aerial"] * 4 + ["ground"] * 4


def test_the_manifest_tells_which_layers_are_in_8_bits(made: tuple[Path, Outcome]) -> None:
    """Against the graph itself: products that read what DequantizeLinear gives."""
    bundle = Bundle.open(made[0])
    for record in bundle.manifest.calibrations:
        if record.method == "dynamic":
            continue
        model = onnx.load(bundle.file("encode", Target.parse(record.target)))
        made_by = {name: node.op_type for node in model.graph.node for name in node.output}
        products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
        kinds = {n.name: {made_by.get(name) == "DequantizeLinear" for name in n.input[:2]} for n in products}
        assert {True, False} not in kinds.values()
        quantised = {name for name, kind in kinds.items() if kind == {True}}
        assert quantised
        assert not quantised & set(record.kept["encode"])
        kept = {n.name for n in products if n.name not in quantised}
        assert set(record.kept["encode"]) <= kept


def test_int8_embeddings_are_those_of_the_reference(made: tuple[Path, Outcome]) -> None:
    bundle = Bundle.open(made[0])
    reference = read_reference(bundle.folder / bundle.manifest.attachments["reference"].file)
    with Embedder(bundle, device="cpu", target=ORT) as embedder:
        found = embedder.embed(reference.clips)
    assert cosines(reference.embeddings, found).min() >= 0.9995
    assert not np.array_equal(found, reference.embeddings)  # it did compute in 8 bits


@has_int8
def test_openvino_gets_the_fastest_form(made: tuple[Path, Outcome]) -> None:
    folder, outcome = made
    verdict = next(v for v in outcome.verdicts if v.target == OPENVINO)
    assert verdict.method in ("dynamic", "max", "percentile", "mse", "entropy")
    proof = check_reference(Bundle.open(folder), OPENVINO, "cpu")
    assert broken_bounds(proof) == []


@pytest.mark.rtx
@pytest.mark.parametrize("target", [INT8_ENGINE, FP8_ENGINE], ids=str)
def test_tensorrt_builds_the_calibrated_graphs_in_8_bits(
    made: tuple[Path, Outcome], target: Target, tmp_path: Path
) -> None:
    """TensorRT for RTX, which builds without a GPU; what really runs in 8 bits is read from its log."""
    trt = pytest.importorskip("tensorrt_rtx")
    from s3clip_export.tensorrt.build import build_engine

    bundle = Bundle.open(made[0])
    path = bundle.file("encode", target)
    report = build_engine(
        trt, path, tmp_path / "encode.engine", target_capabilities=["8.9"], batches=(1, 8, 8)
    )
    wanted = quantised_products(onnx.load(path))
    record = next(one for one in bundle.manifest.calibrations if one.target == str(target))
    assert wanted
    assert not set(wanted) & set(record.kept["encode"])
    check_precisions(report.layers, target.precision, quantised_nodes=wanted)
    assert len(eight_bit_products(report.layers, target.precision)) >= 0.95 * len(wanted)


def test_a_second_calibration_is_refused_and_changes_nothing(
    made: tuple[Path, Outcome], people: Path
) -> None:
    before = contents(made[0])
    with pytest.raises(BundleError, match=r"quantised already, its onnx-int8 was calibrated on world"):
        calibrate(made[0], people, Wanted((ORT,), count=8, held=8))
    assert contents(made[0]) == before


def test_the_command_tells_what_was_made_without_torch(tmp_path: Path, people: Path) -> None:
    folder = copy_of_demo(tmp_path / "bundle")
    code = (
        "import sys\nfor name in ('torch', 's3clip', 's3clip_export'): sys.modules[name] = None\n"
        "from s3clip_calib.cli import main; main(prog_name='s3clip-calib')"
    )
    words = [str(folder), str(people), "--target", "onnx-int8", "--tracklets", "8", "--held", "8"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "onnx-int8: " in done.stdout
    assert "held-out tracklets" in done.stdout
    assert "s3clip-bench run" in done.stderr
    assert Bundle.open(folder).targets == (PLAIN, ORT)
    assert Bundle.open(folder).manifest.schema_version == 5


def test_a_killed_calibration_goes_on(tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of_demo(tmp_path / "bundle")
    before, wanted, add = contents(folder), Wanted((ORT,), count=8, held=8), Notebook.add
    measured: list[str] = []

    def counted(self: Notebook, section: str, layer: str, row: Fidelity) -> None:
        if len(measured) == 5:
            raise KeyboardInterrupt
        add(self, section, layer, row)
        measured.append(layer)

    monkeypatch.setattr(Notebook, "add", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(folder, people, wanted)
    assert contents(folder) == before
    assert (tmp_path / "bundle-calibration.jsonl").is_file()
    first, again = list(measured), measured
    again.clear()

    def noted(self: Notebook, section: str, layer: str, row: Fidelity) -> None:
        again.append(layer)
        add(self, section, layer, row)

    monkeypatch.setattr(Notebook, "add", noted)
    calibrate(folder, people, wanted)
    assert again
    assert not set(first) & set(again)
    assert not (tmp_path / "bundle-calibration.jsonl").exists()


def test_a_target_that_the_gate_refuses_is_left_out_with_the_reason(
    tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is another model's, so nothing can come near it."""
    folder = copy_of_demo(tmp_path / "bundle")
    monkeypatch.setattr("s3clip_calib.candidates.broken_bounds", lambda proof: ["cosine_min is too small"])
    outcome = calibrate(folder, people, Wanted((ORT,), count=8, held=8))
    (verdict,) = outcome.verdicts
    assert verdict.artefacts == ()
    assert "cosine_min is too small" in " ".join(verdict.tried)
    bundle = Bundle.open(folder)
    assert bundle.targets == (PLAIN,)
    assert bundle.manifest.calibrations == ()
    assert "cosine_min is too small" in (folder / outcome.report).read_text("utf-8")


def empty(root: Path) -> None:
    root.mkdir()


def one_camera(root: Path) -> None:
    write_block_world(root, train=10, test=10, tracklets=1)
    shutil.rmtree(root / "train" / "aerial")
    shutil.rmtree(root / "test" / "aerial")


def too_few(root: Path) -> None:
    write_block_world(root, train=2, test=2, tracklets=1)


def nan_crop(root: Path) -> None:
    write_block_world(root, train=10, test=10, tracklets=1)
    victim = next((root / "train" / "ground").rglob("*.jpg"))
    Image.fromarray(np.full((150, 70), np.nan, np.float32)).save(victim.with_suffix(".tiff"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (empty, "must hold pictures"),
        (one_camera, "must be of two cameras or more, found only ground/ground0"),
        (too_few, "8 calibration tracklets were asked for, found 4 to choose from"),
        (nan_crop, "float32"),
    ],
)
def test_bad_data_leaves_the_bundle_alone(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    folder, data = copy_of_demo(tmp_path / "bundle"), tmp_path / "data"
    spoil(data)
    before = contents(folder)
    words = [str(folder), str(data), "--target", "onnx-int8", "--tracklets", "8", "--held", "8"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert contents(folder) == before


def test_a_bundle_without_reference_and_one_of_quantised_graphs_are_refused(
    tmp_path: Path, people: Path, made: tuple[Path, Outcome]
) -> None:
    folder = copy_of_demo(tmp_path / "bare")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["attachments"]["reference"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="holds no reference"):
        calibrate(folder, people, FEW)
    folder = copy_of_demo(tmp_path / "quantised")
    source = Bundle.open(made[0]).file("encode", ORT)
    shutil.copy(source, folder / "encode.onnx")
    bundle = json.loads((folder / "manifest.json").read_text())
    for artefact in bundle["artefacts"]:
        if artefact["role"] == "encode":
            artefact |= {"sha256": sha256_file(source), "bytes": source.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(bundle))
    with pytest.raises(BundleError, match="quantised already, it holds QuantizeLinear"):
        calibrate(folder, people, FEW)


def test_what_cannot_be_made_is_told_before_any_work(tmp_path: Path, people: Path) -> None:
    folder = copy_of_demo(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="onnx-fp8-fp16 cannot be made: the bundle holds no onnx-fp16"):
        calibrate(folder, people, Wanted((FP8_ENGINE,), count=8, held=8))
    with pytest.raises(ConfigError, match=r"--tracklets 4: must be at least 8"):
        calibrate(folder, people, Wanted(count=4))
    with pytest.raises(ConfigError, match=r"target onnx-fp16 is not made by calibration"):
        calibrate(folder, people, Wanted((FP16,)))


def test_too_few_people_to_prove_on(tmp_path: Path, people: Path) -> None:
    data = write_block_world(tmp_path / "data", train=3, test=4, tracklets=1)
    with pytest.raises(DataError, match=r"14 tracklets leave \d to .*, must be at least 4"):
        calibrate(copy_of_demo(tmp_path / "bundle"), data, Wanted((ORT,), count=8, held=8))


@has_int8
def test_targets_may_be_calibrated_one_after_the_other(tmp_path: Path, people: Path) -> None:
    """A tier of s3clip-export, and an older calibration, keep their files until they are made anew."""
    folder = copy_of_demo(tmp_path / "bundle")
    add_proven_tiers(folder, (OPENVINO,))
    before = Bundle.open(folder).artefact("encode", OPENVINO)
    calibrate(folder, people, Wanted((ORT,), count=8, held=8))
    bundle = Bundle.open(folder)
    assert bundle.artefact("encode", OPENVINO) == before
    first = bundle.artefact("encode", ORT)
    calibrate(folder, people, Wanted((OPENVINO,), count=8, held=8, seed=1))
    bundle = Bundle.open(folder)
    assert bundle.artefact("encode", ORT) == first
    assert [one.target for one in bundle.manifest.calibrations] == ["onnx-int8", "openvino-int8"]
    assert bundle.artefact("encode", OPENVINO) != before
    assert not (folder / before.file).exists()
    assert len(list(folder.glob("calibration-*.html"))) == 1
