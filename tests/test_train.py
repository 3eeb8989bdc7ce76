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

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s3clip.checkpoint import MODEL, RunFolder
from s3clip.config import TrainConfig, load_config, parse_config
from s3clip.datasets.catalog import read_train
from s3clip.loop import DivergedError, Interrupted, run_stage
from s3clip.model import IdentityHeads
from s3clip.reid import ReidStage, visual_parameters
from s3clip.train import build_networks, stage_makers, train
from s3clip.vit import Features
from s3clip_runtime.errors import ConfigError, WeightsError

GOLDEN = Path(__file__).parent / "golden"


def tiny_tree(root: Path, **reid: object) -> dict[str, object]:
    return {
        "data": {"root": str(root)},
        "clip": {"weights": "random"},
        "sr": {"embed_dim": 8, "depths": [2], "num_heads": [2]},
        "visual": {
            "width": 32,
            "layers": 2,
            "heads": 2,
            "out_dim": 16,
            "adapter_width": 8,
            "adapter_heads": 2,
            "platform_prompt_depth": 1,
        },
        "text": {"width": 16, "layers": 1, "heads": 2},
        "pretrain": {"sr_steps": 2, "sr_batch": 2, "visual_steps": 2, "visual_identities": 3},
        "prompts": {"epochs": 2, "batch": 4},
        "reid": {"epochs": 2, "identities": 2, "triplets": 1, "clip_length": 2, "accumulation": 2, **reid},
    }


def make_reid(tiny_world: Path, **reid: object) -> ReidStage:
    config = parse_config(tiny_tree(tiny_world, **reid), "test")
    tracklets = read_train(config.data)
    networks = build_networks(config, len({t.identity for t in tracklets}))
    stage = stage_makers(config, networks, tracklets)["reid"]()
    assert isinstance(stage, ReidStage)
    return stage


def test_phase_one_leaves_the_encoder_and_phase_two_the_super_resolver_without_gradients(
    tiny_world: Path,
) -> None:
    stage = make_reid(tiny_world)
    batch = stage._dataset[0]
    sr, visual = stage._sr, list(stage._visual.values())
    stage._phase_one(batch, 1.0)
    assert all(p.grad is not None for p in sr)
    assert all(p.grad is None for p in stage._model.visual.parameters())
    assert all(p.grad is None for p in stage._heads.parameters())
    for p in sr:
        p.grad = None
    stage._phase_two(batch, 1.0, np.random.default_rng(0))
    assert all(p.grad is None for p in sr)
    assert all(p.grad is not None for p in visual)
    frozen = [p for p in stage._model.visual.parameters() if not any(p is q for q in visual)]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_joint_variant_gives_natural_lr_gradients_to_the_super_resolver(tiny_world: Path) -> None:
    # With all L_SR weights at zero, only L_ReID can reach S (A4).
    stage = make_reid(tiny_world, variant="joint", pixel_weight=0.0, tdp_weight=0.0, temporal_weight=0.0)
    stage.accumulate(stage._dataset[0], 1.0, np.random.default_rng(0))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage._sr)
    assert stage._model.normalise_first


def test_a_step_updates_both_networks_and_nothing_frozen(tiny_world: Path) -> None:
    stage = make_reid(tiny_world)
    before = {k: v.clone() for k, v in stage._model.state_dict().items()}
    stage.step(0)
    changed = {k for k, v in stage._model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("sr.") for k in changed)
    trained = visual_parameters(stage._model, stage._heads, backbone=False)
    assert {k for k in changed if k.startswith("visual.")} <= {f"visual.{name}" for name in trained}


def test_two_micro_batches_accumulate_to_the_mean_of_their_gradients(tiny_world: Path) -> None:
    stage = make_reid(tiny_world)
    stage._model.sr.train()
    grads = []
    for number in (0, 1):
        for p in stage._sr:
            p.grad = None
        torch.manual_seed(number)
        stage._phase_one(stage._dataset[number], 1.0)
        grads.append([p.grad.clone() for p in stage._sr if p.grad is not None])
    for p in stage._sr:
        p.grad = None
    for number in (0, 1):
        torch.manual_seed(number)
        stage._phase_one(stage._dataset[number], 0.5)
    for p, first, second in zip(stage._sr, *grads, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, (first + second) / 2, atol=1e-6, rtol=1e-4)


def test_heads_match_the_official_scores() -> None:
    golden = np.load(GOLDEN / "vsla_heads.npz")
    state = {
        k.removeprefix("head_sd/"): torch.from_numpy(golden[k])
        for k in golden.files
        if k.startswith("head_sd/")
    }
    heads = IdentityHeads(32, 16, golden["head_sd/classifier.weight"].shape[0])
    heads.load_state_dict(state)
    features = Features(*(torch.from_numpy(golden[f"head/train_feat{i}"]) for i in range(3)))
    scores = heads.train()(features)
    np.testing.assert_allclose(scores.final.detach(), golden["head/train_score0"], atol=2e-5)
    np.testing.assert_allclose(scores.proj.detach(), golden["head/train_score1"], atol=2e-5)


def config_of(tiny_world: Path, **reid: object) -> TrainConfig:
    return parse_config(tiny_tree(tiny_world, **reid), "test")


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
    config = config_of(tiny_world)
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
    config = config_of(tiny_world).model_copy(update={"checkpoint_every_s": 0.0})
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
    RunFolder(tmp_path, config_of(tiny_world))
    with pytest.raises(ConfigError, match="another configuration"):
        RunFolder(tmp_path, config_of(tiny_world, epochs=3))


class _Diverging:
    name, steps = "diverging", 3

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "one": torch.optim.Adam(self.module.parameters())
        }

    def step(self, index: int) -> dict[str, float]:
        return {"loss": 1.0 if index < 1 else float("nan")}


def test_nan_stops_and_keeps_the_last_checkpoint(tiny_world: Path, tmp_path: Path) -> None:
    run, stage = RunFolder(tmp_path, config_of(tiny_world)), _Diverging()
    with pytest.raises(DivergedError, match="step 1"):
        run_stage(
            stage,
            run,
            {"module": stage.module},
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
    run, stage = RunFolder(tmp_path, config_of(tiny_world)), _Diverging()
    run.save("diverging", 1, {"module": stage.module}, stage.optimizers)
    with pytest.raises(WeightsError, match=r"missing: 1\.bias, 1\.weight"):
        run.load_modules({"module": torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(1, 1))})


def test_configs_of_the_repository_are_valid() -> None:
    files = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert files
    for file in files:
        assert json.loads(load_config(file).model_dump_json())
