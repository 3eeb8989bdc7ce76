"""A training run from configuration to results: data, pretraining, prompts, ReID, evaluation."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from s3clip import prompts as prompt_stage
from s3clip.checkpoint import MODEL, RESULTS, RunFolder, write_atomic
from s3clip.config import TrainConfig
from s3clip.datasets import Tracklet
from s3clip.datasets.catalog import read_protocols, read_train
from s3clip.evaluate import ProtocolResult, evaluate, results_table
from s3clip.loop import Stage, run_stage
from s3clip.model import IdentityHeads, S3Clip, build_model
from s3clip.pretrain import SuperResolutionPretraining, VisualPretraining
from s3clip.prompts import PromptStage
from s3clip.reid import ReidStage
from s3clip.swinir import SwinIR
from s3clip.text import CONTEXT_LENGTH, PromptLearner, TextEncoder
from s3clip.vit import sine_positions
from s3clip.weights import clip_state, load_clip, load_swinir
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.spec import PATCH_GRID


@dataclass(frozen=True)
class Networks:
    """Everything that has weights in a run."""

    model: S3Clip
    heads: IdentityHeads
    prompts: PromptLearner
    text: TextEncoder

    def modules(self) -> dict[str, nn.Module]:
        """By the names that checkpoints use."""
        return {"model": self.model, "heads": self.heads, "prompts": self.prompts, "text": self.text}


def build_networks(config: TrainConfig, identities: int) -> Networks:
    """All networks with their starting weights; random ones follow the seed."""
    torch.manual_seed(config.seed)
    model = build_model(config)
    torch.manual_seed(config.seed + 1)  # a baseline without a network in S's place starts with the same heads
    heads = IdentityHeads(config.visual.width, config.visual.out_dim, identities)
    text = TextEncoder(config.text.width, config.text.layers, config.text.heads, config.visual.out_dim)
    template = 0.02 * torch.randn(CONTEXT_LENGTH, config.text.width)
    if config.clip.weights == "random":
        with torch.no_grad():
            model.visual.positional_embedding.copy_(sine_positions(PATCH_GRID, config.visual.width))
    else:
        template = load_clip(model.visual, text, clip_state(config.clip.weights))
    if config.sr.weights is not None:
        if not isinstance(model.sr, SwinIR):
            raise ConfigError(
                f"sr.weights is {config.sr.weights}, but sr.kind is {config.sr.kind}; remove one"
            )
        load_swinir(model.sr, config.sr.weights)
    return Networks(model, heads, PromptLearner(identities, template), text)


def stage_makers(
    config: TrainConfig, networks: Networks, tracklets: list[Tracklet]
) -> dict[str, Callable[[], Stage]]:
    """The stages in their order; each is made when its turn comes, for it may read what came before."""
    labels = {identity: i for i, identity in enumerate(sorted({t.identity for t in tracklets}))}
    model, seed, device = networks.model, config.seed, config.device
    rows = torch.tensor([labels[t.identity] for t in tracklets], device=device)

    def prompts() -> Stage:
        features = prompt_stage.cache_features(model, tracklets, device=device)
        return PromptStage(networks.prompts, networks.text, features, rows, config.prompts, seed=seed)

    def reid() -> Stage:
        everyone = torch.arange(len(labels), device=device)
        with torch.no_grad():
            text = prompt_stage.text_features(networks.prompts, networks.text, everyone)
        return ReidStage(
            model,
            networks.heads,
            text,
            tracklets,
            labels,
            config.reid,
            seed=seed,
            device=device,
            workers=config.data.workers,
        )

    makers: dict[str, Callable[[], Stage]] = {}
    if config.pretrain.sr_steps and isinstance(model.sr, SwinIR):
        makers["pretrain_sr"] = lambda: SuperResolutionPretraining(
            model, tracklets, config.pretrain, seed=seed, device=device
        )
    if config.pretrain.visual_steps:
        makers["pretrain_visual"] = lambda: VisualPretraining(
            model, networks.heads, tracklets, labels, config.pretrain, seed=seed, device=device
        )
    if config.prompts.epochs:
        makers["prompts"] = prompts
    if config.reid.epochs:
        makers["reid"] = reid
    return makers


def train(config: TrainConfig, out: Path, stop: threading.Event) -> dict[str, ProtocolResult]:
    """Run or resume `out` to its end: weights, results.json and a table on standard output.

    Raises:
        Interrupted: `stop` was set; the same call resumes.
        ConfigError, DataError, WeightsError: see their messages.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _check_device(config.device)
    run = RunFolder(out, config)
    tracklets = read_train(config.data)
    networks = build_networks(config, len({t.identity for t in tracklets}))
    modules = networks.modules()
    for module in modules.values():
        module.to(config.device)
    _run_stages(config, run, networks, tracklets, stop)
    save_file({k: v.contiguous() for k, v in networks.model.state_dict().items()}, out / (MODEL + ".part"))
    (out / (MODEL + ".part")).replace(out / MODEL)
    protocols = read_protocols(config.data)
    results = evaluate(networks.model, protocols, device=config.device)
    write_atomic(out / RESULTS, json.dumps(results, indent=2))
    print(results_table(results))
    return results


def _run_stages(
    config: TrainConfig, run: RunFolder, networks: Networks, tracklets: list[Tracklet], stop: threading.Event
) -> None:
    makers = stage_makers(config, networks, tracklets)
    names, modules = list(makers), networks.modules()
    position = run.position()
    first, start = 0, 0
    if position is not None:
        run.load_modules(modules)
        first, start = names.index(position[0]), position[1]
    for name in names[first:]:
        stage = makers[name]()
        if start:
            run.load_optimizers(stage.optimizers)
        if start < stage.steps:
            run_stage(
                stage,
                run,
                modules,
                start=start,
                seed=config.seed,
                checkpoint_every_s=config.checkpoint_every_s,
                stop=stop,
            )
        start = 0


def _check_device(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device is {device}, but this machine has no usable CUDA device; set device = 'cpu'"
        )
