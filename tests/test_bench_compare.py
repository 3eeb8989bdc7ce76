"""Comparing two reports: planted regressions are found, and what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_reports import made_machine, made_report, stage_row

from s3clip_runtime.bench.compare import compare
from s3clip_runtime.bench.records import BenchReport
from s3clip_runtime.bench.report_file import read_report, write_report
from s3clip_runtime.cli.bench import main
from s3clip_runtime.errors import DataError


def call(folder: Path, old: BenchReport, new: BenchReport, *words: str) -> Result:
    """The command on two files."""
    for name, report in (("old.json", old), ("new.json", new)):
        write_report(folder / name, report)
    return CliRunner().invoke(main, ["compare", str(folder / "old.json"), str(folder / "new.json"), *words])


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    report = made_report()
    write_report(tmp_path / "a.json", report)
    assert read_report(tmp_path / "a.json") == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def test_the_same_report_twice_has_nothing_slower(tmp_path: Path) -> None:
    done = call(tmp_path, made_report(), made_report())
    assert done.exit_code == 0
    assert "compared by times" in done.stdout
    assert "nothing is more than 1.1 times slower" in done.stdout


def test_a_planted_regression_is_found_and_named(tmp_path: Path) -> None:
    old = made_report(stage_row(), stage_row(stage="encode", p50_ms=40.0), stage_row(clips=8, p50_ms=800.0))
    new = made_report(stage_row(), stage_row(stage="encode", p50_ms=46.0), stage_row(clips=8, p50_ms=700.0))
    done = call(tmp_path, old, new)
    assert done.exit_code == 1
    slower = [line for line in done.stdout.splitlines() if "SLOWER" in line]
    assert len(slower) == 1
    assert "encode" in slower[0]
    assert "1.150" in slower[0]
    assert call(tmp_path, old, new, "--worst", "1.2").exit_code == 0


def test_rows_meet_only_in_the_same_setting() -> None:
    old = made_report(stage_row(p50_ms=100), stage_row(p50_ms=10, threads=2), stage_row(p50_ms=5, crops="hr"))
    new = made_report(stage_row(p50_ms=100), stage_row(p50_ms=10, threads=4), stage_row(p50_ms=5, clips=8))
    found = compare(old, new)
    assert [change.ratio for change in found.changes] == [1.0]
    assert found.left_out == 4


def test_other_machines_are_compared_by_speed_ups() -> None:
    # The new machine is twice as fast, which hides that the contender lost a fifth of its speed-up.
    old = made_report(stage_row(p50_ms=100), stage_row("onnx-fp16", p50_ms=25, speedup=4.0))
    new = made_report(stage_row(p50_ms=50), stage_row("onnx-fp16", p50_ms=15.6, speedup=3.2), cpu="Other")
    found = compare(old, new)
    assert found.measure == "speed-ups"
    assert "cpu: Planted CPU and Other" in found.reason
    assert [change.key[0] for change in found.changes] == ["onnx-fp16"]
    assert found.changes[0].ratio == pytest.approx(1.25)
    assert found.slower(1.1)
    assert found.left_out == 1


def test_a_machine_that_was_slower_this_time_is_no_regression() -> None:
    old = made_report(stage_row(), stage_row("onnx-fp16", p50_ms=25, speedup=4.0), gflops=100)
    new = made_report(stage_row(p50_ms=180), stage_row("onnx-fp16", p50_ms=45, speedup=4.0), gflops=55)
    found = compare(old, new)
    assert found.measure == "speed-ups"
    assert "not equally fast" in found.reason
    assert not found.slower(1.1)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (made_report(space="cd" * 32), "different models"),
        (made_report(stage_row(threads=3)), "no times of the same contender"),
        (
            made_report(cpu="Other").model_copy(update={"reference": "torch-eager"}),
            "measure both with the same reference",
        ),
        (made_report(stage_row(), cpu="Other"), "no speed-ups of the same contender"),
    ],
)
def test_what_cannot_be_compared_exits_with_2(tmp_path: Path, new: BenchReport, words: str) -> None:
    done = call(tmp_path, made_report(), new)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "not a report of s3clip-bench"),
        ("[]", "schema_version of a report must be 1, found None"),
        ('{"schema_version": 2}', "schema_version of a report must be 1, found 2"),
        ('{"schema_version": 1}', "machine: Field required"),
    ],
)
def test_files_that_are_no_reports_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="measure again with s3clip-bench run") as error:
        read_report(path)
    assert words in str(error.value)


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    tree = json.loads(made_report().model_dump_json())
    tree["machine"]["colour"] = "red"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"machine\.colour: Extra inputs"):
        read_report(path)


def test_the_gpu_belongs_to_the_fingerprint() -> None:
    machine = made_machine().model_copy(update={"gpu": "Orin (8.7)"})
    other = made_report().model_copy(update={"machine": machine})
    assert compare(made_report(), other).measure == "speed-ups"
