"""Everything that has weights in a run, and where these start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from s3clip.checkpoint import load_modules, read_config, read_origins
from s3clip.config import TrainConfig
from s3clip.models.model import IdentityHeads, S3Clip, build_model
from s3clip.models.swinir import SwinIR
from s3clip.models.text import CONTEXT_LENGTH, PromptLearner, TextEncoder
from s3clip.models.vit import sine_positions
from s3clip.models.weights import (
    clip_file,
    is_vsla,
    load_clip,
    load_swinir,
    load_vsla,
    read_state,
    swinir_file,
)
from s3clip.phases import CLASSIFIERS
from s3clip.smoothing import OnlineSmoothing
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.records import sha256_file


@dataclass(frozen=True)
class Networks:
    """The modules of a run.

    Attributes:
        smoothing: soft targets, only with `reid.label_smoothing = "online"`.
        origins: SHA-256 of every file that weights came from, also by way of another run, by its path.
    """

    model: S3Clip
    heads: IdentityHeads
    prompts: PromptLearner
    text: TextEncoder
    smoothing: OnlineSmoothing | None
    origins: dict[str, str]

    def modules(self) -> dict[str, nn.Module]:
        """By the names that checkpoints use."""
        named: dict[str, nn.Module] = {
            "model": self.model,
            "heads": self.heads,
            "prompts": self.prompts,
            "text": self.text,
        }
        return named if self.smoothing is None else {**named, "smoothing": self.smoothing}


def build_networks(config: TrainConfig, identities: int) -> Networks:
    """All networks with their starting weights; random ones follow the seed.

    Raises:
        WeightsError: a file of weights cannot be had or does not fit.
        ConfigError: `start` names no run, or one on other data.
    """
    torch.manual_seed(config.seed)
    model = build_model(config)
    torch.manual_seed(config.seed + 1)  # a baseline without a network in S's place starts with the same heads
    heads = IdentityHeads(config.visual.width, config.visual.out_dim, identities)
    text = TextEncoder(config.text.width, config.text.layers, config.text.heads, config.visual.out_dim)
    prompts = PromptLearner(identities, 0.02 * torch.randn(CONTEXT_LENGTH, config.text.width))
    smoothing = OnlineSmoothing(CLASSIFIERS, identities) if config.reid.label_smoothing == "online" else None
    networks = Networks(model, heads, prompts, text, smoothing, {})
    if config.start is not None:
        _load_run(networks, config, config.start)
    else:
        _load_clip(networks, config)
        _load_sr(networks, config)
    return networks


def _load_run(networks: Networks, config: TrainConfig, run: Path) -> None:
    """The weights of another run's checkpoint; a baseline leaves out its super-resolver."""
    theirs = read_config(run).data
    if (theirs.kind, theirs.root) != (config.data.kind, config.data.root):
        raise ConfigError(
            f"start {run}: was trained on {theirs.kind} {theirs.root}, this run is on {config.data.kind} "
            f"{config.data.root}; prompts and classifiers belong to one list of identities"
        )
    ignore = () if isinstance(networks.model.sr, SwinIR) else ("model/sr.",)
    modules = {name: module for name, module in networks.modules().items() if name != "smoothing"}
    file = load_modules(run, modules, ignore=(*ignore, "smoothing/"))
    networks.origins.update({**read_origins(run), str(file): sha256_file(file)})


def _load_clip(networks: Networks, config: TrainConfig) -> None:
    visual, source = networks.model.visual, config.clip.weights
    if source == "random":
        with torch.no_grad():
            visual.positional_embedding.copy_(sine_positions(visual.config.grid, config.visual.width))
        return
    file = clip_file(source, config.clip.architecture)
    state = read_state(file)
    if is_vsla(state):
        parts = {
            "visual": visual,
            "text": networks.text,
            "prompts": networks.prompts,
            "heads": networks.heads,
        }
        load_vsla(parts, state, str(file))
    else:
        networks.prompts.set_template(load_clip(visual, networks.text, state))
    networks.origins[str(file)] = sha256_file(file)


def _load_sr(networks: Networks, config: TrainConfig) -> None:
    source, sr = config.sr.weights, networks.model.sr
    if source == "random":
        return
    if not isinstance(sr, SwinIR):
        raise ConfigError(f"sr.weights is {source}, but sr.kind is {config.sr.kind}; remove one")
    file = swinir_file(source)
    load_swinir(sr, file)
    networks.origins[str(file)] = sha256_file(file)
