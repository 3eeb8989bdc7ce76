"""Stage 2's gradient isolation, the heads' golden numbers, and runs that resume exactly."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import begin_run, tiny_config
from worlds import write_block_world

from s3clip.checkpoint import MODEL, ORIGINS, RunFolder
from s3clip.config import TrainConfig, WatchSettings, load_config
from s3clip.loop import DivergedError, Interrupted, run_stage
from s3clip.networks import build_networks
from s3clip.parallel import World
from s3clip.train import reid_stage, stage_makers, train
from s3clip_runtime.errors import ConfigError, DataError, SinkError, WeightsError

KILLS = 10


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


def train_to_the_end(config: TrainConfig, out: Path) -> None:
    """What a killed process was doing."""
    train(config, out, threading.Event())


@pytest.mark.slow
def test_a_run_killed_without_warning_resumes_to_the_same_weights(tiny_world: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_world).model_copy(update={"checkpoint_every_s": 0.0})
    train(config, tmp_path / "whole", threading.Event())
    total = len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    killed = 0
    # Each run is a process of its own; torch is imported once, in the server that they are forked from.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "s3clip.train", "torch._dynamo"])
    for lines in sorted(np.random.default_rng(1).choice(np.arange(1, total), KILLS, replace=False)):
        child = context.Process(target=train_to_the_end, args=(config, tmp_path / "killed"))
        child.start()
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.is_alive():
            if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
                child.kill()
            time.sleep(0.002)
        child.join(timeout=60)
        killed += child.exitcode == -signal.SIGKILL
    assert killed == KILLS
    train(config, tmp_path / "killed", threading.Event())
    weights, others = load_file(tmp_path / "whole" / MODEL), load_file(tmp_path / "killed" / MODEL)
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    # Each step is logged once, though some were done twice.
    logged = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "killed")]
    assert logged[0] == logged[1]


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
    files = set((Path(__file__).parents[1] / "configs").glob("*.toml"))
    files = {file for file in files if file.name != "site.toml"}  # of s3clip-run: tests/test_site.py
    assert files
    for file in files:
        assert json.loads(load_config(file).model_dump_json())


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(
    tiny_world: Path, tmp_path: Path, small_disk: Path
) -> None:
    """A real file system of 400 KB: the second checkpoint does not fit beside the first."""
    run = RunFolder(small_disk / "run", tiny_config(tiny_world))
    small, large = torch.nn.Linear(100, 300), torch.nn.Linear(300, 300)
    run.save("reid", 1, {"module": small}, {}, {})
    with pytest.raises(SinkError, match=r"after step 2 of stage reid .*last good checkpoint is kept"):
        run.save("reid", 2, {"module": large}, {}, {})
    assert run.position() == ("reid", 1)
    before = small.weight.clone()
    torch.nn.init.zeros_(small.weight)
    run.load_modules({"module": small})
    assert torch.equal(small.weight, before)
    with pytest.raises(SinkError, match=r"metrics\.jsonl"):
        run.log({"text": "x" * 1_000_000})


def test_a_run_starts_from_anothers_prompts_and_weights(tiny_world: Path, tmp_path: Path) -> None:
    begun = begin_run(tiny_config(tiny_world), tmp_path / "first")
    begun.folder.save("prompts", 1, begun.networks.modules(), {}, {})
    (tmp_path / "first" / ORIGINS).write_text('{"clip.pt": "ab12"}')
    config = tiny_config(tiny_world).model_copy(update={"start": tmp_path / "first", "seed": 99})
    follower = begin_run(config, tmp_path / "second")
    for name, module in begun.networks.modules().items():
        ours = follower.networks.modules()[name].state_dict()
        assert all(torch.equal(value, ours[key]) for key, value in module.state_dict().items())
    assert list(stage_makers(follower)) == ["reid"]
    clip, run = follower.networks.origins.items()
    assert clip == ("clip.pt", "ab12")
    assert run[0].endswith("first/checkpoint/modules.safetensors")
    sr = config.sr.model_copy(update={"kind": "bicubic"})
    baseline = begin_run(config.model_copy(update={"sr": sr}), tmp_path / "third")
    assert torch.equal(baseline.networks.prompts.cls_ctx, begun.networks.prompts.cls_ctx)
    other = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path})})
    with pytest.raises(ConfigError, match="one list of identities"):
        build_networks(other, 5)


def test_tensorboard_gets_the_metrics(tiny_world: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tiny_world).model_copy(update={"watch": WatchSettings(tensorboard=True)})
    run = RunFolder(tmp_path, config)
    run.log({"stage": "reid", "step": 3, "pixel": 0.25})
    run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reid/pixel")] == [(3, 0.25)]


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0_for_a_requeue(tiny_world: Path, tmp_path: Path) -> None:
    """Through the command, as a scheduler sees it; the second call ends what the first began."""
    config = tmp_path / "long.toml"
    config.write_text(
        f'[data]\nroot = "{tiny_world}"\n[clip]\nweights = "random"\n'
        "[sr]\nembed_dim = 8\ndepths = [2]\nnum_heads = [2]\n"
        "[visual]\nwidth = 32\nlayers = 2\nheads = 2\nout_dim = 16\nadapter_width = 8\nadapter_heads = 2\n"
        "platform_prompt_depth = 1\n[text]\nwidth = 16\nlayers = 1\nheads = 2\n"
        "[prompts]\nepochs = 200\nbatch = 4\nwarmup_epochs = 1\n"
        "[reid]\nepochs = 1\nidentities = 2\ntriplets = 1\nclip_length = 2\naccumulation = 2\n",
        encoding="utf-8",
    )
    command = [str(Path(sys.executable).parent / "s3clip-train"), str(config), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "the same command resumes" in errors
    done = len(metrics.read_text().splitlines())
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(records) > done > 0
    assert [r["step"] for r in records if r["stage"] == "prompts"] == list(
        range(sum(r["stage"] == "prompts" for r in records))
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    world = write_block_world(tmp_path / "world")
    config = tiny_config(world)
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    run = begin_run(config, tmp_path / "run")
    for picture in (world / "train").rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:-20])
    with pytest.raises(DataError) as caught:
        reid_stage(run).step(0)
    assert str(caught.value).startswith(str(world))
    assert len(str(caught.value).splitlines()) == 1
