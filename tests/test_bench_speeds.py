"""A benchmark leaves its winner in the bundle, and the next embedder takes it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_reports import made_report, stage_row
from made_switches import switch
from tiny_bundle import manifest_of, with_targets, write_tiny_bundle

from s3clip_runtime.bench.records import StageRow
from s3clip_runtime.bench.report_file import read_report
from s3clip_runtime.bench.speeds import record_speeds, speeds_of, winner_text
from s3clip_runtime.cli.bench import main
from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference import targets
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.cpus import cpu_model
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.evidence import Speed
from s3clip_runtime.inference.manifest import PLAIN, Target

CORES = len(os.sched_getaffinity(0))
INT8 = Target("onnx", "int8")
QUICK = ["--device", "cpu", "--rounds", "2", "--galleries", "100"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with its plain graphs once more as onnx-int8."""
    folder = write_tiny_bundle(tmp_path / "bundle")
    write_manifest(folder, with_targets(manifest_of(folder), INT8))
    return folder


def bench(folder: Path, *words: str) -> Result:
    out = str(folder.parent / "a.json")
    done = CliRunner().invoke(main, ["run", str(folder), "-o", out, *QUICK, *words])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.slow
def test_a_run_is_recorded_and_the_next_embedder_takes_the_winner(folder: Path, tmp_path: Path) -> None:
    with Embedder(Bundle.open(folder), threads=1) as embedder:
        if embedder.device == "cuda":
            pytest.skip("this machine has CUDA, where auto does not look at speeds of the CPU")
        assert embedder.target == PLAIN
        assert "onnx-int8 is left unused: not measured beside onnx-fp32" in embedder.device_reason
    done = bench(folder, "--clips", "1,2", "--threads", str(CORES))
    report, bundle = read_report(tmp_path / "a.json"), Bundle.open(folder)
    recorded = {speed.target: speed for speed in bundle.manifest.speeds}
    assert list(recorded) == ["onnx-fp32", "onnx-int8"]
    for name, speed in recorded.items():
        medians = [
            row.latency.p50_ms
            for kind in ("lr", "hr")
            for row in report.stages
            if (row.contender, row.stage, row.crops, row.clips) == (name, "tracklet", kind, 1)
        ]
        assert [speed.lr_ms, speed.hr_ms] == medians
        assert (speed.device, speed.cpu, speed.cores, speed.gpu) == ("cpu", cpu_model(), CORES, None)
        assert speed.measured == report.created
    winner = min(recorded.values(), key=lambda speed: speed.lr_ms + speed.hr_ms)
    assert f"fastest here: {winner.target} on cpu, {winner.lr_ms:.1f} ms an LR tracklet" in done.stdout
    with Embedder(bundle, threads=1) as embedder:
        assert str(embedder.target) == winner.target
        assert f"{winner.target} took" in embedder.device_reason
    assert "--device auto will take it" in done.stdout


@pytest.mark.slow
def test_a_second_run_replaces_the_speeds_of_the_first(folder: Path) -> None:
    foreign = Speed(
        target="onnx-int8", device="cpu", cpu="Another CPU", cores=CORES, gpu=None, lr_ms=1, hr_ms=1,
        measured=manifest_of(folder).created,
    )  # fmt: skip
    write_manifest(folder, Bundle.open(folder).manifest.changed(speeds=(foreign,)))
    words = ("--clips", "1", "--threads", str(CORES))
    bench(folder, *words)
    first = Bundle.open(folder).manifest.speeds
    bench(folder, *words, "--target", "onnx-fp32")  # the other target keeps its speed
    second = Bundle.open(folder).manifest.speeds
    assert foreign == first[0] == second[0]
    assert [speed.target for speed in first[1:]] == ["onnx-fp32", "onnx-int8"]
    assert {speed.target for speed in second[1:]} == {"onnx-fp32", "onnx-int8"}
    assert len(second) == 3
    renewed = {speed.target: speed.measured for speed in second[1:]}
    assert renewed["onnx-int8"] == first[2].measured
    assert renewed["onnx-fp32"] > first[1].measured


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "threads"), [("2", CORES), ("1", CORES - 1)])
def test_other_settings_are_not_recorded_and_the_reason_is_said(
    folder: Path, clips: str, threads: int
) -> None:
    if threads == 0:
        pytest.skip("fewer cores than all of them are none here")
    done = bench(folder, "--clips", clips, "--threads", str(threads))
    assert (
        "the bundle keeps no speeds of this run: a target is chosen by calls of one tracklet" in done.stderr
    )
    assert f"measure with --clips 1 and --threads {CORES} among the settings" in done.stderr
    assert "fastest here" not in done.stdout
    assert "speeds" not in json.loads((folder / "manifest.json").read_text())


@pytest.mark.slow
def test_a_bundle_on_a_read_only_file_system_is_measured_all_the_same(
    small_disk: Path, tmp_path: Path
) -> None:
    folder = write_tiny_bundle(small_disk / "bundle")
    before = (folder / "manifest.json").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    out = tmp_path / "a.json"
    words = ["run", str(folder), "-o", str(out), *QUICK, "--clips", "1", "--threads", str(CORES)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    told = " ".join(done.stderr.split())
    assert f"the bundle keeps no speeds of this run: {folder}/manifest.json: cannot be written" in told
    assert read_report(out).contenders[0].contender == "onnx-fp32"
    assert (folder / "manifest.json").read_bytes() == before
    assert (tmp_path / "a-plots").is_dir()


# Planted numbers


def planted_rows(lr_ms: float, hr_ms: float) -> list[StageRow]:
    """What is to be recorded, among rows that look like it."""
    return [
        stage_row(p50_ms=lr_ms, threads=CORES),
        stage_row(p50_ms=hr_ms, threads=CORES, crops="hr"),
        stage_row(p50_ms=7, threads=CORES, clips=8),
        stage_row(p50_ms=7, threads=CORES + 1),
        stage_row(p50_ms=7, threads=CORES + 1, crops="hr"),
        stage_row(stage="enhance", p50_ms=7, threads=CORES),
        stage_row(stage="patchify", p50_ms=7, threads=CORES, crops="hr"),
    ]


def planted(target: str, lr_ms: float, hr_ms: float) -> Speed:
    report = made_report(*planted_rows(lr_ms, hr_ms))
    plain = report.model_copy(update={"contenders": report.contenders[:1]})
    return speeds_of(plain)[0].model_copy(update={"target": target})


def test_the_right_rows_are_recorded() -> None:
    report = made_report(*planted_rows(900.5, 400.25))
    (speed,) = speeds_of(report.model_copy(update={"contenders": report.contenders[:1]}))
    assert speed == Speed(
        target="onnx-fp32", device="cpu", cpu=cpu_model(), cores=CORES, gpu=None, lr_ms=900.5, hr_ms=400.25,
        measured=report.created,
    )  # fmt: skip


def test_a_report_without_such_rows_gives_none() -> None:
    with pytest.raises(ConfigError, match=rf"tracklet on all {CORES} cores, and there were none; measure"):
        speeds_of(made_report(*planted_rows(1, 1)[2:]))


def test_graphs_that_were_exported_meanwhile_keep_no_old_speeds(folder: Path) -> None:
    opened = Bundle.open(folder)
    write_tiny_bundle(folder, encode_weight=2.0)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="its graphs became other ones while they were measured"):
        record_speeds(opened, [planted("onnx-fp32", 1, 1)])
    assert (folder / "manifest.json").read_bytes() == before


def test_what_others_wrote_meanwhile_stays(folder: Path) -> None:
    opened = Bundle.open(folder)
    write_manifest(folder, opened.manifest.with_switch(switch(40.0)))
    recorded = record_speeds(opened, [planted("onnx-fp32", 3, 2)])
    assert Bundle.open(folder) == recorded
    assert recorded.manifest.switch == switch(40.0)
    assert [speed.lr_ms for speed in recorded.manifest.speeds] == [3]


def test_a_winner_that_is_not_taken_has_its_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "choose_device", lambda asked: ("cpu", "no GPU"))
    speeds = [planted("onnx-int8", 30, 10)]
    text = winner_text(record_speeds(Bundle.open(folder), speeds), speeds)
    assert text.startswith("fastest here: onnx-int8 on cpu, 30.0 ms an LR tracklet and 10.0 an HR one; ")
    assert "--device auto will take onnx-fp32 on cpu: no GPU; onnx-fp32 is the first choice" in text
    assert "onnx-int8 is left unused: not measured beside onnx-fp32 on this machine" in text
    speeds.append(planted("onnx-fp32", 50, 20))
    text = winner_text(record_speeds(Bundle.open(folder), speeds), speeds)
    assert text.endswith("10.0 an HR one; --device auto will take it")
