"""What is exported: the network of a finished run, or one put together from files of weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from s3clip.checkpoint import MODEL, read_origins, read_run
from s3clip.config import ClipSettings, SuperResolutionSettings, TrainConfig
from s3clip.models.architecture import VslaArchitecture, swinir_architecture, vsla_architecture
from s3clip.models.model import IdentityHeads, S3Clip, build_model
from s3clip.models.swinir import SwinIR
from s3clip.models.text import CONTEXT_LENGTH, PromptLearner, TextEncoder
from s3clip.models.weights import is_vsla, load_official, load_vsla, read_state, read_swinir_state
from s3clip_export.foreign import foreign_super_resolver, is_function
from s3clip_runtime.errors import ConfigError, WeightsError
from s3clip_runtime.inference.records import sha256_file


@dataclass(frozen=True)
class Origin:
    """A network to export and where it comes from.

    Attributes:
        model: in eval mode, without gradients.
        config: of the run; for files of weights `visual`, `text`, `clip` and `sr` tell what they hold and the
            rest are defaults that nobody trained with. `sr` does not describe a foreign super-resolver.
        training: the manifest's entry of the same name.
    """

    model: S3Clip
    config: TrainConfig
    training: dict[str, JsonValue]


def origin_of_run(run: Path) -> Origin:
    """The network of a finished s3clip-train.

    Raises:
        ConfigError: no finished run there, or it has no super-resolver.
        WeightsError: its weights do not fit its configuration.
    """
    config, model, results = read_run(run)
    if model.direct:
        raise ConfigError(
            f"run {run}: sr.kind is none, and a bundle needs a super-resolver for LR crops; "
            "export a run with another sr.kind"
        )
    training: dict[str, JsonValue] = {
        "config": json.loads(config.model_dump_json()),
        # without paths: they are the trainer's own
        "weights_sha256": cast(JsonValue, sorted(read_origins(run).values())),
        "model_sha256": sha256_file(run / MODEL),
        "results": results,
    }
    return Origin(model, config, training)


def origin_of_checkpoints(vsla: Path, sr: str) -> Origin:
    """A network of published weights. Its architecture is that of the files.

    Args:
        vsla: a whole VSLA-CLIP in the official layout. Text encoder, prompts and classifiers must fit too,
            though they are not exported: a file that was cut or renamed is not what it says.
        sr: file of a lightweight SwinIR x2 in the official layout, or MODULE:FUNCTION that makes another
            super-resolver: see `foreign_super_resolver`.

    Raises:
        WeightsError: a file is missing, of another layout, or lacks or has keys that it should not.
        ConfigError: the function cannot be called, or its super-resolver breaks the contract; or both files
            have one name, by which the manifest tells them apart.
    """
    state, files = _read_vsla(vsla), [vsla]
    architecture = vsla_architecture(state, str(vsla))
    config = TrainConfig(
        visual=architecture.visual, text=architecture.text, clip=ClipSettings(weights=Path(vsla.name))
    )
    training: dict[str, JsonValue] = {}
    known = {"visual", "text", "clip"}
    if is_function(sr):
        # Any kind without weights does: the network takes its place.
        config = config.model_copy(update={"sr": SuperResolutionSettings(kind="bicubic")})
        model = build_model(config)
        model.sr = foreign_super_resolver(sr)
        training["super_resolver"] = sr
    else:
        config, model = _with_swinir(config, Path(sr))
        files.append(Path(sr))
        known.add("sr")
    _load_vsla(model, architecture, state, str(vsla))
    training |= {
        "checkpoints": _hashes(files),
        "config": json.loads(config.model_dump_json(include=known)),
        "results": {},
    }
    return Origin(model.eval().requires_grad_(False), config, training)


def _read_vsla(file: Path) -> dict[str, Tensor]:
    state = read_state(file)
    if not is_vsla(state):
        raise WeightsError(
            f"weights {file}: no key begins with image_encoder., as those of VSLA-CLIP do; "
            "give --vsla a file in its official layout"
        )
    return state


def _load_vsla(model: S3Clip, architecture: VslaArchitecture, state: dict[str, Tensor], origin: str) -> None:
    """Fill the encoder; the parts that only training needs are built for the strict reader and dropped."""
    visual, text = architecture.visual, architecture.text
    before, own, after = architecture.prompts
    template = torch.zeros(CONTEXT_LENGTH, text.width)
    modules: dict[str, nn.Module] = {
        "visual": model.visual,
        "text": TextEncoder(text.width, text.layers, text.heads, visual.out_dim),
        "prompts": PromptLearner(architecture.identities, template, before, own, after),
        "heads": IdentityHeads(visual.width, visual.out_dim, architecture.identities),
    }
    load_vsla(modules, state, origin)


def _with_swinir(config: TrainConfig, file: Path) -> tuple[TrainConfig, S3Clip]:
    """The configuration with the file's architecture, and its network with the file's weights."""
    state = read_swinir_state(file)
    settings = swinir_architecture(state, str(file)).model_copy(update={"weights": Path(file.name)})
    config = config.model_copy(update={"sr": settings})
    model = build_model(config)
    load_official(cast(SwinIR, model.sr), state, str(file))
    return config, model


def _hashes(files: list[Path]) -> dict[str, JsonValue]:
    """SHA-256 by file name: paths are the exporter's own."""
    hashes: dict[str, JsonValue] = {file.name: sha256_file(file) for file in files}
    if len(hashes) < len(files):
        raise ConfigError(
            f"--vsla and --sr must be files of different names, found {files[0].name} twice; rename one"
        )
    return hashes
