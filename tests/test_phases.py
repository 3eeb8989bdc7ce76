"""Stage 2 on one micro-batch: which network learns from what, method.md's options, number formats."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import begin_run, tiny_config

from s3clip.checkpoint import load_modules
from s3clip.config import ComputeSettings
from s3clip.losses import ReidWeights, reid_loss, smoothed_cross_entropy
from s3clip.models.model import IdentityHeads
from s3clip.models.vit import Features
from s3clip.parallel import World
from s3clip.phases import Phases, visual_parameters
from s3clip.precision import Precision
from s3clip.reid import ReidStage
from s3clip.smoothing import OnlineSmoothing
from s3clip.train import prepare_modules, reid_stage
from s3clip.triplets import MicroBatch

GOLDEN = Path(__file__).parent / "golden"


class Stage2:
    """A fresh stage 2 and its first micro-batch."""

    def __init__(self, root: Path, folder: Path, **reid: object) -> None:
        self.run = begin_run(tiny_config(root, **reid), folder)
        self.stage: ReidStage = reid_stage(self.run)
        self.phases: Phases = self.stage._phases
        self.model, self.heads = self.run.networks.model, self.run.networks.heads
        self.batch: MicroBatch = self.stage._dataset[0]

    def accumulate(self, scale: float = 1.0, *, tdp: bool = True) -> dict[str, float]:
        rng = np.random.default_rng(0)
        losses = self.phases.accumulate(self.batch, scale, rng, self.stage.scalers, tdp=tdp)
        assert sorted(losses) == sorted(self.phases.loss_names(tdp=tdp))
        return {name: value.item() for name, value in losses.items()}


@pytest.fixture
def stage2(tiny_world: Path, tmp_path: Path) -> Stage2:
    return Stage2(tiny_world, tmp_path / "run")


def test_phase_one_leaves_the_encoder_and_phase_two_the_super_resolver_without_gradients(
    stage2: Stage2,
) -> None:
    sr, visual = stage2.phases.sr, list(stage2.phases.visual.values())
    stage2.phases._phase_one(stage2.batch, 1.0, stage2.stage.scalers, True)
    assert all(p.grad is not None for p in sr)
    assert all(p.grad is None for p in stage2.model.visual.parameters())
    assert all(p.grad is None for p in stage2.heads.parameters())
    for p in sr:
        p.grad = None
    stage2.phases._phase_two(stage2.batch, 1.0, np.random.default_rng(0), stage2.stage.scalers)
    assert all(p.grad is None for p in sr)
    assert all(p.grad is not None for p in visual)
    frozen = [p for p in stage2.model.visual.parameters() if not any(p is q for q in visual)]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_joint_variant_gives_natural_lr_gradients_to_the_super_resolver(
    tiny_world: Path, tmp_path: Path
) -> None:
    # With all L_SR weights at zero, only L_ReID can reach S (A4).
    joint = Stage2(
        tiny_world, tmp_path, variant="joint", pixel_weight=0.0, tdp_weight=0.0, temporal_weight=0.0
    )
    joint.accumulate()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in joint.phases.sr)
    assert joint.model.normalise_first


def test_a_frozen_super_resolver_is_the_second_phase_alone(tiny_world: Path, tmp_path: Path) -> None:
    frozen = Stage2(tiny_world, tmp_path / "frozen", variant="frozen_sr")
    both = Stage2(tiny_world, tmp_path / "both")
    losses = frozen.accumulate()
    assert set(frozen.stage.optimizers) == {"visual"}
    assert all(p.grad is None for p in frozen.model.sr.parameters())
    expected = both.accumulate()
    assert losses == {name: expected[name] for name in losses}


@pytest.mark.parametrize("variant", ["two_phase", "joint"])
def test_the_direct_baseline_sees_natural_clips_only(tiny_world: Path, tmp_path: Path, variant: str) -> None:
    config = tiny_config(tiny_world, variant=variant, erasing=0.0)
    config = config.model_copy(update={"sr": config.sr.model_copy(update={"kind": "none"})})
    run = begin_run(config, tmp_path)
    stage = reid_stage(run)
    batch = stage._dataset[0]
    found = stage._phases.accumulate(batch, 1.0, np.random.default_rng(0), stage.scalers)
    assert sorted(found) == sorted(stage._phases.loss_names(tdp=True))
    features = run.networks.model.features(
        torch.cat((batch.lr, batch.hr)) / 255.0, torch.cat((batch.platform_lr, batch.platform_hr))
    )
    text, labels = stage._phases._text, batch.labels.repeat(2)
    expected = reid_loss(features, run.networks.heads(features), text, labels, ReidWeights())
    assert found["total"].item() == pytest.approx(expected.total.item(), abs=1e-5)


def test_a_step_updates_both_networks_and_nothing_frozen(stage2: Stage2) -> None:
    before = {k: v.clone() for k, v in stage2.model.state_dict().items()}
    stage2.stage.step(0)
    changed = {k for k, v in stage2.model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("sr.") for k in changed)
    trained = visual_parameters(stage2.model, stage2.heads, backbone=False)
    assert {k for k in changed if k.startswith("visual.")} <= {f"visual.{name}" for name in trained}


def test_two_micro_batches_accumulate_to_the_mean_of_their_gradients(stage2: Stage2) -> None:
    def phase_one(number: int, scale: float) -> None:
        torch.manual_seed(number)
        stage2.phases._phase_one(stage2.stage._dataset[number], scale, stage2.stage.scalers, True)

    grads = []
    for number in (0, 1):
        for p in stage2.phases.sr:
            p.grad = None
        phase_one(number, 1.0)
        grads.append([p.grad.clone() for p in stage2.phases.sr if p.grad is not None])
    for p in stage2.phases.sr:
        p.grad = None
    for number in (0, 1):
        phase_one(number, 0.5)
    for p, first, second in zip(stage2.phases.sr, *grads, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, (first + second) / 2, atol=1e-6, rtol=1e-4)


def test_tdp_warm_up_and_weight_zero_leave_the_loss_out(
    stage2: Stage2, tiny_world: Path, tmp_path: Path
) -> None:
    assert "tdp" in stage2.accumulate()
    assert "tdp" not in stage2.accumulate(tdp=False)
    assert "tdp" not in Stage2(tiny_world, tmp_path / "none", tdp_weight=0.0).accumulate()
    warm = Stage2(tiny_world, tmp_path / "warm", tdp_warmup=0.5, epochs=2).stage
    first_of_second = next(i for i, update in enumerate(warm._updates) if update.epoch == 2)
    assert "tdp" not in warm.step(0)
    warm._stream = None
    assert "tdp" in warm.step(first_of_second)


@pytest.mark.parametrize("feature", ["final", "proj", "frame", "tokens"])
def test_tdp_features_are_those_of_the_decision(tiny_world: Path, tmp_path: Path, feature: str) -> None:
    """A12: against the definition, from all tokens of all frames."""
    stage2 = Stage2(tiny_world, tmp_path, tdp_feature=feature)
    frames, platform = stage2.batch.hr / 255.0, stage2.batch.platform_hr
    with torch.no_grad():
        seen = stage2.phases._perceived(frames, platform)
        tokens = stage2.model.token_features(frames, platform)
    batch, length = frames.shape[:2]
    final = tokens.final.reshape(batch, length, *tokens.final.shape[1:])
    expected = {
        "final": final[:, :, 0].mean(1),
        "proj": (final[:, :, 0] @ stage2.model.visual.proj).mean(1),
        "frame": final[:, :, 0],
        "tokens": final,
    }[feature]
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    assert np.isfinite(stage2.accumulate()["tdp"])


def test_pixel_space_sr_compares_at_the_output_of_the_super_resolver(
    tiny_world: Path, tmp_path: Path
) -> None:
    stage2 = Stage2(tiny_world, tmp_path, pixel_space="sr")
    stage2.model.eval()
    with torch.no_grad():
        small, sr = stage2.phases._super_resolved(stage2.batch.h2l)
        stage2.model.sr.eval()
        found = stage2.phases._sr_losses(stage2.batch, small, sr, tdp=False)["pixel"]
    hr = (stage2.batch.hr / 255.0).flatten(0, 1)
    shrunk = torch.nn.functional.interpolate(hr, (128, 64), mode="bicubic", antialias=True)
    expected = (small.flatten(0, 1) - shrunk).abs().mean()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.01)])
def test_half_precision_gives_nearly_the_same_losses_and_float32_gradients(
    stage2: Stage2, precision: str, tolerance: float
) -> None:
    expected = stage2.accumulate()
    exact = {name: p.grad.clone() for name, p in stage2.phases.visual.items() if p.grad is not None}
    for p in [*stage2.phases.sr, *stage2.phases.visual.values()]:
        p.grad = None
    stage2.phases._precision = Precision("bf16" if precision == "bf16" else "fp16", "cpu")
    stage2.stage.scalers = {name: stage2.phases._precision.scaler() for name in ("sr", "visual")}
    torch.manual_seed(0)
    losses = stage2.accumulate()
    assert losses != expected  # it really ran in 16 bits
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    scale = stage2.stage.scalers["visual"].get_scale()
    assert scale == (1.0 if precision == "bf16" else 65536.0)
    ours = torch.cat([p.grad.flatten() / scale for p in stage2.phases.visual.values() if p.grad is not None])
    true = torch.cat([grad.flatten() for grad in exact.values()])
    assert ours.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours, true, dim=0) > 0.99


def test_an_overflow_leaves_one_step_out_and_halves_the_scale(stage2: Stage2) -> None:
    stage2.stage._precision = stage2.phases._precision = Precision("fp16", "cpu")
    stage2.stage.scalers = {
        "visual": torch.amp.GradScaler("cpu", init_scale=2.0**60),
        "sr": torch.amp.GradScaler("cpu", init_scale=1.0),
    }
    before = {k: v.clone() for k, v in stage2.model.visual.state_dict().items()}
    metrics = stage2.stage.step(0)
    assert metrics["visual_skipped"] == 1.0
    assert stage2.stage.scalers["visual"].get_scale() == 2.0**59
    assert all(torch.equal(v, before[k]) for k, v in stage2.model.visual.state_dict().items())
    assert "sr_skipped" not in metrics  # each net has a scaler of its own


def test_checkpointed_activations_give_equal_gradients(tiny_world: Path, tmp_path: Path) -> None:
    from s3clip.memory import checkpoint_activations

    grads = []
    for name in ("plain", "saving"):
        stage2 = Stage2(tiny_world, tmp_path / name)
        if name == "saving":
            checkpoint_activations(stage2.model)
        torch.manual_seed(3)  # drop path draws in both passes of a checkpointed block
        stage2.accumulate()
        parameters = [*stage2.phases.sr, *stage2.phases.visual.values()]
        grads.append([p.grad for p in parameters])
    for plain, saving in zip(*grads, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, saving, atol=1e-7, rtol=1e-5)


def test_online_smoothing_is_the_definition() -> None:
    """Against plain loops over two epochs (method.md 5.2)."""
    torch.manual_seed(0)
    smoothing = OnlineSmoothing(1, 3)
    labels = torch.tensor([0, 0, 1, 2])
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    first[0, 0] = first[1, 0] = first[2, 1] = 5.0  # right; the last one is wrong
    first[3] = torch.tensor([4.0, 0.0, 0.0])
    soft = torch.full((3, 3), 1 / 3)
    for logits in (first, second):
        share = logits.softmax(1)
        rows = []
        for p, y in zip(share, labels, strict=True):
            rows.append(-0.5 * p[y].log() - 0.5 * (soft[y] * p.log()).sum())
        torch.testing.assert_close(smoothing(0, logits, labels), torch.stack(rows).mean())
        for label in range(3):
            right = [p for p, y in zip(share, labels, strict=True) if y == label and p.argmax() == label]
            if right:
                soft[label] = torch.stack(right).mean(0)
        smoothing.end_epoch(World())
        torch.testing.assert_close(smoothing.targets[0], soft)


def test_online_smoothing_is_trained_with_and_survives_a_checkpoint(tiny_world: Path, tmp_path: Path) -> None:
    fixed, online = (
        Stage2(tiny_world, tmp_path / kind, label_smoothing=kind, epochs=1) for kind in ("fixed", "online")
    )
    assert fixed.run.networks.smoothing is None
    smoothing = online.run.networks.smoothing
    assert smoothing is not None
    assert fixed.accumulate()["identity"] != online.accumulate()["identity"]
    for index in range(online.stage.steps):
        online.stage.step(index)
    assert smoothing.counts.sum() == 0  # the epoch's end was seen
    saved, modules = smoothing.targets.clone(), online.run.networks.modules()
    online.run.folder.save("reid", 1, modules, online.stage.optimizers, online.stage.scalers)
    smoothing.targets.zero_()
    load_modules(online.run.folder.path, modules)
    assert torch.equal(smoothing.targets, saved)


def test_the_fixed_target_is_the_default_of_all_three_classifiers(stage2: Stage2) -> None:
    assert stage2.phases._entropies == (smoothed_cross_entropy,) * 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_networks_give_the_same_features_and_gradients_under_the_same_keys(
    stage2: Stage2, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: two compile workers would import torch each, 5 s of CPU time, while other tests run.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    model = stage2.model.eval()
    crops, frames = torch.rand(2, 3, 64, 32), stage2.batch.hr[:1] / 255.0
    platform = torch.tensor([1])

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        resolved, features = model.super_resolve(crops), model.features(frames, platform).final
        model.zero_grad()
        features.sum().backward()  # type: ignore[no-untyped-call]
        assert model.visual.conv1.weight.grad is not None
        return resolved.detach(), features.detach(), model.visual.conv1.weight.grad.clone()

    expected, keys = run(), list(model.state_dict())
    compute = ComputeSettings(compile=True)
    prepare_modules(replace(stage2.run, config=stage2.run.config.model_copy(update={"compute": compute})))
    for ours, theirs in zip(run(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == keys
