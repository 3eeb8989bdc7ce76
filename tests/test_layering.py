"""The rooms may only know whom the design allows: held by really importing every module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {banned!r}:
            raise ImportError(f"{{name}} must not be imported here")

sys.meta_path.insert(0, Refuse())
for root, package in {packages!r}:
    for file in sorted(pathlib.Path(root, package).rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        importlib.import_module(name)
        print(name)
"""


def import_all(banned: set[str], packages: list[tuple[str, str]]) -> list[str]:
    """Import every module of the packages in a fresh interpreter that refuses the banned names."""
    code = IMPORT_ALL.format(banned=banned, packages=[(str(ROOT / room), name) for room, name in packages])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


TRAINING = {"torch", "torchvision", "open_clip", "s3clip", "s3clip_export"}


def test_the_runtime_needs_no_torch_and_no_other_room() -> None:
    names = import_all({*TRAINING, "s3clip_calib", "onnx"}, [("runtime", "s3clip_runtime")])
    assert "s3clip_runtime.inference.embedder" in names
    assert "s3clip_runtime.cli.run" in names


def test_calib_needs_no_torch_and_no_training_room() -> None:
    assert "s3clip_calib.calibrate" in import_all(TRAINING, [("calib", "s3clip_calib")])


def test_training_does_not_know_export_and_calib() -> None:
    assert "s3clip.train" in import_all({"s3clip_export", "s3clip_calib"}, [(".", "s3clip")])


def test_the_probe_catches_a_banned_import() -> None:
    code = IMPORT_ALL.format(banned={"numpy"}, packages=[(str(ROOT / "runtime"), "s3clip_runtime")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert "numpy must not be imported here" in done.stderr


def test_inference_knows_neither_gallery_nor_streams_nor_bench() -> None:
    for file in (ROOT / "runtime/s3clip_runtime/inference").rglob("*.py"):
        text = file.read_text("utf-8")
        assert "s3clip_runtime.streams" not in text
        assert "s3clip_runtime.gallery" not in text
        assert "s3clip_runtime.bench" not in text
