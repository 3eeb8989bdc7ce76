"""Stage 2's gradient isolation, the heads' golden numbers, and runs that resume exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_config

from s3clip.checkpoint import MODEL, RunFolder
from s3clip.config import load_config
from s3clip.loop import DivergedError, Interrupted, run_stage
from s3clip.parallel import World
from s3clip.train import train
from s3clip_runtime.errors import ConfigError, WeightsError


def stop_after(event: threading.Event, run: Path, lines: int) -> None:
    """Ask for a stop once the run has logged so many steps."""
    while not event.is_set():
        file = run / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= lines:
            event.set()
        time.sleep(0.002)


@pytest.mark.slow
def test_interrupted_runs_end_with_the_weights_of_an_uninterrupted_one(
    tiny_world: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_world)
    train(config, tmp_path / "whole", threading.Event())
    stops = 0
    for lines in (1, 3, 6, 8):  # in pretraining, in the prompts, in stage 2
        stop = threading.Event()
        watcher = threading.Thread(target=stop_after, args=(stop, tmp_path / "cut", lines))
        watcher.start()
        try:
            train(config, tmp_path / "cut", stop)
        except Interrupted:
            stops += 1
        stop.set()
        watcher.join(timeout=10)
    train(config, tmp_path / "cut", threading.Event())
    assert stops >= 2
    whole, cut = load_file(tmp_path / "whole" / MODEL), load_file(tmp_path / "cut" / MODEL)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.slow
def test_a_run_killed_without_warning_resumes_to_the_same_weights(tiny_world: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_world).model_copy(update={"checkpoint_every_s": 0.0})
    train(config, tmp_path / "whole", threading.Event())
    code = (
        "import sys, threading, pathlib\n"
        "from s3clip.config import TrainConfig\nfrom s3clip.train import train\n"
        "config = TrainConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "train(config, pathlib.Path(sys.argv[2]), threading.Event())\n"
    )
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    for lines in (2, 7):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(file), str(tmp_path / "killed")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.002)
        child.wait(timeout=60)
        assert child.returncode == -signal.SIGKILL
    train(config, tmp_path / "killed", threading.Event())
    whole, killed = load_file(tmp_path / "whole" / MODEL), load_file(tmp_path / "killed" / MODEL)
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_a_run_folder_refuses_another_configuration(tiny_world: Path, tmp_path: Path) -> None:
    RunFolder(tmp_path, tiny_config(tiny_world))
    with pytest.raises(ConfigError, match="another configuration"):
        RunFolder(tmp_path, tiny_config(tiny_world, epochs=3))


class _Diverging:
    name, steps = "diverging", 3

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "one": torch.optim.Adam(self.module.parameters())
        }

        self.scalers: dict[str, torch.amp.GradScaler] = {}

    def describe(self, index: int) -> str:
        return f"identities {index}, 7"

    def step(self, index: int) -> dict[str, float]:
        return {"loss": 1.0 if index < 1 else float("nan")}


def test_nan_stops_and_keeps_the_last_checkpoint(tiny_world: Path, tmp_path: Path) -> None:
    run, stage = RunFolder(tmp_path, tiny_config(tiny_world)), _Diverging()
    with pytest.raises(DivergedError, match=r"step 1: .*identities 1, 7"):
        run_stage(
            stage,
            run,
            {"module": stage.module},
            World(),
            start=0,
            seed=0,
            checkpoint_every_s=0.0,
            stop=threading.Event(),
        )
    assert run.position() == ("diverging", 1)


def test_unknown_settings_name_the_near_miss(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[reid]\nidentites = 4\n")
    with pytest.raises(ConfigError, match="did you mean identities"):
        load_config(file)
    file.write_text("")
    assert load_config(file, ["reid.epochs=3", "clip.weights=random"]).reid.epochs == 3
    with pytest.raises(ConfigError, match=r"reid\.epochs"):
        load_config(file, ["reid.epochs=many"])


def test_checkpoints_load_strictly(tiny_world: Path, tmp_path: Path) -> None:
    run, stage = RunFolder(tmp_path, tiny_config(tiny_world)), _Diverging()
    run.save("diverging", 1, {"module": stage.module}, stage.optimizers, {})
    with pytest.raises(WeightsError, match=r"missing: 1\.bias, 1\.weight"):
        run.load_modules({"module": torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(1, 1))})


def test_configs_of_the_repository_are_valid() -> None:
    files = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert files
    for file in files:
        assert json.loads(load_config(file).model_dump_json())
