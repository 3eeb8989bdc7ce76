"""The doors of training and export: quick help, and errors that name their cure."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

MODULES = {
    "s3clip-train": "s3clip.cli",
    "s3clip-export": "s3clip_export.cli",
    "s3clip-doctor": "s3clip_runtime.cli.doctor",
    "s3clip-bench": "s3clip_export.bench",
    "s3clip-calib": "s3clip_calib.cli",
}


def call(module: str, *words: str, without: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a fresh interpreter, in which the package `without` cannot be imported."""
    hide = "" if without is None else f"sys.modules[{without!r}] = None; "
    code = f"import sys; {hide}from {module} import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("command", "module"), MODULES.items())
def test_help_needs_no_torch(command: str, module: str) -> None:
    done = call(module, "--help", without="torch")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_help_of_the_doctor_answers_in_under_a_second() -> None:
    seconds = []
    for _ in range(3):  # the first start may have to compile, and neighbours may slow down another
        began = time.monotonic()
        assert call("s3clip_runtime.cli.doctor", "--help", without="numpy").returncode == 0
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("s3clip.cli", ["config.toml"], "train"),
        ("s3clip.cli", ["evaluate", "runs/a"], "train"),
        ("s3clip_export.cli", ["runs/a", "-o", "bundle"], "export"),
    ],
)
def test_a_missing_extra_is_named(module: str, words: list[str], extra: str) -> None:
    done = call(module, *words, without="torch")
    assert done.returncode == 2
    assert f'torch is not installed; this command needs: pip install "s3clip[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_calibration_names_its_extra() -> None:
    done = call("s3clip_calib.cli", "bundle", "data", without="onnx")
    assert done.returncode == 2
    assert 'onnx is not installed; this command needs: pip install "s3clip[calib]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_engines_are_built_without_torch(tmp_path: Path) -> None:
    done = call("s3clip_export.cli", "engines", str(tmp_path / "bundle"), without="torch")
    assert done.returncode == 2
    assert "the folder does not exist; give the folder of s3clip-export" in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_help_of_the_evaluation_needs_no_torch(command: str) -> None:
    done = call("s3clip.cli", command, "--help", without="torch")
    assert done.returncode == 0, done.stderr
    assert "RUN" in done.stdout


def test_comparing_needs_no_torch(tmp_path: Path) -> None:
    done = call("s3clip.cli", "compare", str(tmp_path), str(tmp_path), without="torch")
    assert "no evaluation.json here" in done.stderr


def test_the_gate_is_one_of_the_benchmarks() -> None:
    done = call("s3clip_export.bench", "--help", without="torch")
    assert all(f"\n  {name} " in done.stdout for name in ("run", "cameras", "compare", "page", "gate"))


def test_a_missing_config_is_one_line(tmp_path: Path) -> None:
    done = call("s3clip.cli", str(tmp_path / "absent.toml"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no such file" in done.stderr
