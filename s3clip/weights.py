"""Weights of the public releases into our modules, all keys or none."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from s3clip.swinir import DERIVED_KEYS, SwinIR
from s3clip.text import TextEncoder, prompt_token_ids
from s3clip.vit import VisualEncoder, is_adapter_parameter, resize_position_embedding
from s3clip_runtime.errors import WeightsError
from s3clip_runtime.inference.spec import PATCH_GRID

CLIP_ARCHITECTURE = "ViT-B-16-quickgelu"
"""OpenAI trained ViT-B/16 with QuickGELU; open_clip's plain `ViT-B-16` means exact GELU (method.md 2)."""

TEXT_KEYS = ("transformer.", "ln_final.", "positional_embedding", "text_projection")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load every tensor or none.

    Raises:
        WeightsError: lists the missing, unexpected and mis-shaped keys.
    """
    own = module.state_dict()
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model needs {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "mis-shaped": shapes,
    }
    if any(problems.values()):
        text = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise WeightsError(f"weights {origin} do not fit the model ({text}); use a file of the same variant")
    module.load_state_dict(dict(state))


def load_swinir(module: SwinIR, path: Path) -> None:
    """Fill a super-resolver from an official `.pth` (keys below `params`, `params_ema` or none).

    Raises:
        WeightsError: unreadable file, or keys that do not fit.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"weights {path}: not a readable PyTorch file ({error}); fetch it again") from None
    for key in ("params", "params_ema"):
        if key in content:
            content = content[key]
            break
    load_official(module, cast(dict[str, Tensor], content), str(path))


def load_official(module: SwinIR, state: Mapping[str, Tensor], origin: str) -> None:
    """Fill a super-resolver from an official state dict; derived constants are dropped, the rest must fit.

    Raises:
        WeightsError: as of `load_strict`.
    """
    given = {key: value for key, value in state.items() if key.rpartition(".")[2] not in DERIVED_KEYS}
    load_strict(module, given, origin)


def clip_state(source: str | Path) -> dict[str, Tensor]:
    """CLIP ViT-B/16's state dict: `openai` through open_clip's cache and download, or a local file.

    Raises:
        WeightsError: it cannot be had or read.
    """
    import open_clip

    if isinstance(source, Path) and not source.is_file():
        raise WeightsError(f"clip.weights {source}: no such file; give OpenAI's ViT-B-16.pt or set 'openai'")
    try:
        model = open_clip.create_model(CLIP_ARCHITECTURE, pretrained=str(source), precision="fp32")
    except Exception as error:  # open_clip and its hub client raise many kinds
        raise WeightsError(
            f"clip.weights {source}: could not be loaded ({error}); download ViT-B-16.pt and give its path"
        ) from error
    return cast(dict[str, Tensor], model.state_dict())


def load_clip(visual: VisualEncoder, text: TextEncoder, state: Mapping[str, Tensor]) -> Tensor:
    """Fill both encoders from a CLIP state dict; adapters and platform prompts keep their values.

    Args:
        state: keys of OpenAI or open_clip; position tables of another square grid are resized.

    Returns:
        (77, width) embedded prompt template for `PromptLearner`.

    Raises:
        WeightsError: keys that are missing or do not fit.
    """
    picture = {
        key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")
    }
    if "positional_embedding" in picture:
        table = picture["positional_embedding"]
        picture["positional_embedding"] = resize_position_embedding(table, PATCH_GRID)
    own = {key: value for key, value in visual.state_dict().items() if is_adapter_parameter(key)}
    load_strict(visual, {**picture, **own}, "of CLIP's visual encoder")
    load_strict(
        text,
        {key: value for key, value in state.items() if key.startswith(TEXT_KEYS)},
        "of CLIP's text encoder",
    )
    if "token_embedding.weight" not in state:
        raise WeightsError(
            "weights of CLIP's text encoder: token_embedding.weight is missing; use a full CLIP file"
        )
    return state["token_embedding.weight"][prompt_token_ids()]
