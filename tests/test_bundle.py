"""The bundle's reader refuses every damaged bundle with a sentence that names what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny_bundle import DIM, SPACE, WIDTH, edit_manifest, manifest_of, with_targets, write_tiny_bundle

from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference.bundle import Bundle, attachment_of, write_manifest
from s3clip_runtime.inference.evidence import Speed
from s3clip_runtime.inference.manifest import (
    EIGHT_BIT_TARGETS,
    PLAIN,
    Artefact,
    Calibration,
    Target,
)
from s3clip_runtime.inference.records import sha256_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    return str(caught.value)


def artefacts(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "manifest.json").read_text())["artefacts"]
    return found


def test_a_written_bundle_is_read_back_unchanged(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest == manifest_of(folder)
    assert bundle.manifest.embedding_space == SPACE
    assert (bundle.manifest.contract.token_width, bundle.manifest.contract.embedding_dim) == (WIDTH, DIM)
    assert bundle.file("encode", PLAIN) == folder / "encode.onnx"


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert sha256_file(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_writing_again_replaces_the_manifest_and_leaves_no_draft(folder: Path) -> None:
    write_manifest(folder, manifest_of(folder).model_copy(update={"name": "second"}))
    assert Bundle.open(folder).manifest.name == "second"
    assert sorted(p.name for p in folder.iterdir()) == [
        "encode.onnx",
        "enhance.onnx",
        "manifest.json",
        "patchify.onnx",
    ]


def test_writing_into_a_missing_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent.*cannot be written"):
        write_manifest(tmp_path / "absent", manifest_of(folder))


def test_missing_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")


def test_missing_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "manifest.json: the manifest is missing" in refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 3])
def test_manifest_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert "not valid JSON" in refusal(folder)


def test_flipped_byte(folder: Path) -> None:
    path = folder / "encode.onnx"
    expected = sha256_file(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = refusal(folder)
    assert "encode.onnx: SHA-256" in message
    assert expected in message
    assert sha256_file(path) in message
    assert "s3clip-export" in message


def test_truncated_file(folder: Path) -> None:
    path = folder / "enhance.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert f"enhance.onnx: size must be {len(data)} bytes, found {len(data) - 1}" in refusal(folder)


def test_missing_file(folder: Path) -> None:
    (folder / "patchify.onnx").unlink()
    assert "patchify.onnx: the file of role patchify is missing" in refusal(folder)


@pytest.mark.parametrize("version", [6, 1, 0, "2", None])
def test_other_schema_version_is_named_before_its_unknown_keys(folder: Path, version: object) -> None:
    edit_manifest(folder, schema_version=version, something_new=1)
    assert f"schema_version must be 2 or 3 or 4 or 5, found {version!r}" in refusal(folder)


def test_unknown_key(folder: Path) -> None:
    edit_manifest(folder, pariti={})
    assert "pariti: Extra inputs are not permitted" in refusal(folder)


@pytest.mark.parametrize("outside", ["../encode.onnx", "sub/../../encode.onnx"])
def test_path_that_escapes(folder: Path, outside: str) -> None:
    (folder.parent / "encode.onnx").write_bytes((folder / "encode.onnx").read_bytes())
    (folder / "sub").mkdir()
    edit_manifest(folder, artefacts=[{**a, "file": outside} for a in artefacts(folder)])
    assert "must lie in the bundle's folder" in refusal(folder)


def test_absolute_path_escapes(folder: Path) -> None:
    other = folder.parent / "enhance.onnx"
    other.write_bytes((folder / "enhance.onnx").read_bytes())
    edit_manifest(folder, artefacts=[{**a, "file": str(other)} for a in artefacts(folder)])
    assert "must lie in the bundle's folder" in refusal(folder)


def test_link_out_of_the_folder_escapes(folder: Path) -> None:
    target = folder.parent / "elsewhere.onnx"
    (folder / "encode.onnx").rename(target)
    (folder / "encode.onnx").symlink_to(target)
    assert "must lie in the bundle's folder" in refusal(folder)


def test_role_that_is_missing_or_double(folder: Path) -> None:
    entries = artefacts(folder)
    edit_manifest(folder, artefacts=entries[:2])
    assert "role encode (onnx-fp32) must be there exactly once, found 0 times" in refusal(folder)
    edit_manifest(folder, artefacts=[*entries, entries[0]])
    assert "role enhance (onnx-fp32) must be there exactly once, found 2 times" in refusal(folder)
    edit_manifest(folder, artefacts=[])
    assert "found 0 times" in refusal(folder)


def test_every_differing_number_of_the_contract_is_named(folder: Path) -> None:
    contract = json.loads((folder / "manifest.json").read_text())["contract"]
    contract["lr_size"] = [32, 16]
    contract["pixel_mean"] = [0.5, 0.5, 0.5]
    contract["platforms"] = ["aerial", "ground"]
    edit_manifest(folder, contract=contract)
    message = refusal(folder)
    assert "lr_size is (64, 32) here, (32, 16) in it" in message
    assert "pixel_mean is (0.485, 0.456, 0.406) here, (0.5, 0.5, 0.5) in it" in message
    assert "platforms is ('ground', 'aerial') here, ('aerial', 'ground') in it" in message
    assert "clip_length" not in message


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_refused_or_harmless(folder: Path, seed: int) -> None:
    """Any byte of any file: a BundleError, or in the manifest's free text a bundle that still opens."""
    rng = random.Random(seed)
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(BundleError):
        Bundle.open(folder)
        assert path.name == "manifest.json"


def test_a_foreign_graph_under_a_right_hash_is_a_sentence_and_exit_2(folder: Path, tmp_path: Path) -> None:
    (folder / "enhance.onnx").write_bytes(b"\x08\x08not a graph at all" * 100)
    write_manifest(folder, manifest_of(folder))
    command = "from s3clip_runtime.cli.run import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "video.mp4@ground", "--bundle", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "enhance.onnx: onnxruntime cannot load it on cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unproven_target_is_refused_and_a_draft_is_not(folder: Path) -> None:
    edit_manifest(folder, proofs=[])
    assert "the proof of onnx-fp32 is missing; s3clip-export verify writes it" in refusal(folder)
    assert Bundle.draft(folder).targets == (PLAIN,)


def test_an_engine_entry_belongs_to_tensorrt_alone(folder: Path) -> None:
    engine = {
        "tensorrt": "10.3.0",
        "compute_capability": "8.7",
        "gpu": "Orin",
        "driver": "540.4",
        "onnx_sha256": "ab" * 32,
        "profile": [1, 8, 64],
        "inputs": {},
        "outputs": {},
    }
    first, *others = artefacts(folder)
    edit_manifest(folder, artefacts=[{**first, "engine": engine}, *others])
    assert "an engine entry belongs to backend tensorrt, and to it alone" in refusal(folder)


def test_a_damaged_attachment(folder: Path) -> None:
    (folder / "report.html").write_text("proof")
    entry = attachment_of(folder / "report.html")
    write_manifest(folder, manifest_of(folder).model_copy(update={"attachments": {"report": entry}}))
    assert Bundle.open(folder).manifest.attachments["report"].file == "report.html"
    (folder / "report.html").write_text("prooF")
    assert "report.html: SHA-256 must be" in refusal(folder)


def test_targets_are_named(folder: Path) -> None:
    assert Target.parse("tensorrt-fp16") == Target("tensorrt", "fp16")
    with pytest.raises(ConfigError, match="target 'trt' is unknown; use one of onnx-fp32"):
        Target.parse("trt")
    with pytest.raises(BundleError, match="holds no tensorrt-fp16 graphs, only onnx-fp32"):
        Bundle.open(folder).file("encode", Target("tensorrt", "fp16"))


# Schema 5: 8 bits, how they were made, and how fast they were

SPEED = Speed(
    target="onnx-fp32", device="cpu", cpu="Some CPU @ 2 GHz", cores=2, gpu=None, lr_ms=900.0, hr_ms=500.5,
    measured=datetime(2026, 12, 1, tzinfo=UTC),
)  # fmt: skip
CALIBRATION = Calibration(
    target="onnx-int8", data="streets", seed=3, tracklets=("0004/g1", "0001/a2"), method="percentile",
    smoothing=0.5, kept={"enhance": (), "patchify": ("conv",), "encode": ("block-0", "block-3")},
)  # fmt: skip


def written(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return found


def test_a_manifest_without_anything_of_schema_5_has_none_of_its_keys(folder: Path) -> None:
    keys = written(folder).keys()
    assert written(folder)["schema_version"] == 2
    assert not {"calibrations", "speeds"} & keys


@pytest.mark.parametrize(
    "changes", [{"calibrations": (CALIBRATION,)}, {"speeds": (SPEED,)}], ids=["calibrations", "speeds"]
)
def test_calibrations_and_speeds_are_read_back_and_need_schema_5(
    folder: Path, changes: dict[str, object]
) -> None:
    manifest = manifest_of(folder).changed(**changes)
    write_manifest(folder, manifest)
    assert written(folder)["schema_version"] == 5
    assert Bundle.open(folder).manifest == manifest
    assert manifest.changed(calibrations=(), speeds=()).schema_version == 2
    edit_manifest(folder, schema_version=2)
    assert "schema_version must be 5 for what it holds, found 2" in refusal(folder)


@pytest.mark.parametrize("target", EIGHT_BIT_TARGETS, ids=str)
def test_eight_bit_targets_need_schema_5(folder: Path, target: Target) -> None:
    write_manifest(folder, with_targets(manifest_of(folder), target))
    assert written(folder)["schema_version"] == 5
    assert Bundle.open(folder).targets == (PLAIN, target)
    assert target.quantised
    edit_manifest(folder, schema_version=4)
    assert "schema_version must be 5 for what it holds, found 4" in refusal(folder)


def test_the_eight_bit_targets_have_the_agreed_names() -> None:
    assert list(map(str, EIGHT_BIT_TARGETS)) == [
        "onnx-int8",
        "onnx-int8-fp16",
        "onnx-fp8-fp16",
        "tensorrt-int8-fp16",
        "tensorrt-fp8-fp16",
    ]
    assert [Target.parse(str(target)) for target in EIGHT_BIT_TARGETS] == list(EIGHT_BIT_TARGETS)
    assert Target("openvino", "int8").quantised
    assert not any(Target.parse(name).quantised for name in ("onnx-fp16", "openvino-bf16", "tensorrt-fp32"))


def test_a_target_that_does_not_exist_is_refused(folder: Path) -> None:
    changed = [{**entry, "precision": "int8-fp16", "backend": "openvino"} for entry in artefacts(folder)]
    edit_manifest(folder, artefacts=[*artefacts(folder), *changed])
    assert "target openvino-int8-fp16 must be one of onnx-fp32, " in refusal(folder)


@pytest.mark.parametrize(
    "change", [{"lr_ms": 0}, {"hr_ms": -1}, {"cores": 0}, {"device": "npu"}, {"cpu": ""}]
)
def test_a_speed_that_cannot_be_is_refused(folder: Path, change: dict[str, object]) -> None:
    entry = {**SPEED.model_dump(mode="json"), **change}
    edit_manifest(folder, schema_version=5, speeds=[entry])
    assert f"speeds.0.{next(iter(change))}: " in refusal(folder)


def test_new_graphs_of_a_target_cost_it_its_speeds_alone(folder: Path) -> None:
    other = SPEED.model_copy(update={"target": "onnx-int8"})
    manifest = with_targets(manifest_of(folder), Target("onnx", "int8")).changed(speeds=(SPEED, other))
    assert manifest.changed(name="renamed").speeds == (SPEED, other)
    rebuilt: tuple[Artefact, ...] = tuple(
        a.model_copy(update={"sha256": "cd" * 32}) if a.precision == "int8" and a.role == "encode" else a
        for a in manifest.artefacts
    )
    assert manifest.changed(artefacts=rebuilt).speeds == (SPEED,)
    assert manifest.changed(artefacts=rebuilt, speeds=(other,)).speeds == (other,)
    assert manifest.changed(artefacts=manifest.artefacts[:3]).speeds == (SPEED,)
