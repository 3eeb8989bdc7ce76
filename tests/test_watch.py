"""What one sees of the super-resolver: against its own definition on a network whose output is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import begin_run, tiny_config

from s3clip.clips import load_crops
from s3clip.watch import SuperResolutionWatch
from s3clip_runtime.inference.preprocess import resize_bicubic


def watch(tiny_world: Path, folder: Path, kind: str) -> SuperResolutionWatch:
    config = tiny_config(tiny_world)
    config = config.model_copy(update={"sr": config.sr.model_copy(update={"kind": kind})})
    run = begin_run(config, folder / "run")
    return SuperResolutionWatch(
        run.networks.model, run.tracklets, folder / "strips", every=2, count=3, device="cpu"
    )


def test_plain_bicubic_has_its_own_psnr_and_no_drift(tiny_world: Path, tmp_path: Path) -> None:
    found = watch(tiny_world, tmp_path, "bicubic").look(2)
    run = begin_run(tiny_config(tiny_world), tmp_path / "other")
    sharp = [t for t in run.tracklets if t.hr]
    errors = []
    for tracklet in (sharp[i * len(sharp) // 3] for i in range(3)):
        crop = load_crops(tracklet, [len(tracklet) // 2])[0]
        truth = resize_bicubic(crop, (128, 64)).astype(np.float64)
        guess = resize_bicubic(resize_bicubic(crop, (64, 32)), (128, 64)).astype(np.float64)
        errors.append(10 * np.log10(255**2 / np.mean((truth - guess) ** 2)))
    assert found["psnr"] == pytest.approx(np.mean(errors), abs=0.05)  # Pillow also rounds between two passes
    assert 0 < found["ssim"] < 1
    assert found["drift"] < 0.6


def test_drift_shows_a_network_that_leaves_bicubic(tiny_world: Path, tmp_path: Path) -> None:
    looking = watch(tiny_world, tmp_path, "bicubic")
    looking._model.sr = torch.nn.Sequential(looking._model.sr, torch.nn.Threshold(2.0, 0.0))  # all black
    found = looking.look(2)
    strip = np.asarray(Image.open(tmp_path / "strips" / "epoch-002.png"))
    assert found["drift"] > 50
    assert found["psnr"] < 15
    assert (strip[10:100, 70:120] == 0).all()  # the second picture of the first group is S's


def test_strips_come_every_so_many_epochs_and_leave_the_mode_alone(tiny_world: Path, tmp_path: Path) -> None:
    looking = watch(tiny_world, tmp_path, "swinir")
    looking._model.train()
    assert looking.look(1) == {}
    assert set(looking.look(2)) == {"psnr", "ssim", "drift"}
    assert looking._model.training
    assert [path.name for path in sorted((tmp_path / "strips").iterdir())] == ["epoch-002.png"]
    picture = Image.open(tmp_path / "strips" / "epoch-002.png")
    assert picture.size == (3 * 3 * 66 - 2, 2 * 130 - 2)
