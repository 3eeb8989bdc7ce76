"""Weights of the public releases into our modules, all keys or none."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from s3clip.models.swinir import DERIVED_KEYS, SwinIR
from s3clip.models.text import TextEncoder, prompt_token_ids
from s3clip.models.vit import VisualEncoder, is_adapter_parameter, resize_position_embedding
from s3clip_runtime.errors import WeightsError

TEXT_KEYS = ("transformer.", "ln_final.", "positional_embedding", "text_projection")

SWINIR_URL = (
    "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/"
    "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2.pth"
)

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Keys of OpenAI's files that hold settings."""


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


def read_state(path: Path) -> dict[str, Any]:
    """Content of a PyTorch file: a state dict, or a dict that holds one.

    OpenAI's files are TorchScript archives; all others are read without running any of their code.

    Raises:
        WeightsError: no such file, or no weights in it.
    """
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file; correct the path or download it")
    try:
        if _is_torchscript(path):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
            content = {key: value for key, value in state.items() if key not in NOT_WEIGHTS}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"weights {path}: not a readable PyTorch file ({error}); fetch it again") from None
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"weights {path}: holds no state dict; name a file of weights")
    return cast(dict[str, Any], content)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def swinir_file(source: str | Path) -> Path:
    """The official SwinIR-S file: a local one, or by torch hub's cache and download for `official`.

    Raises:
        WeightsError: it cannot be downloaded.
    """
    if isinstance(source, Path):
        return source
    path = Path(torch.hub.get_dir()) / "checkpoints" / SWINIR_URL.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(SWINIR_URL, str(path))
        except OSError as error:
            raise WeightsError(
                f"sr.weights official: {SWINIR_URL} could not be downloaded ({error}); fetch it elsewhere, "
                "then set sr.weights to the file"
            ) from None
    return path


def load_swinir(module: SwinIR, path: Path) -> None:
    """Fill a super-resolver from an official `.pth` (keys below `params`, `params_ema` or none).

    Raises:
        WeightsError: unreadable file, or keys that do not fit.
    """
    load_official(module, read_swinir_state(path), str(path))


def read_swinir_state(path: Path) -> dict[str, Any]:
    """State dict of an official `.pth`, from below `params` or `params_ema` where it has these.

    Raises:
        WeightsError: as of `read_state`.
    """
    content = read_state(path)
    for key in ("params", "params_ema"):
        if key in content:
            return cast(dict[str, Any], content[key])
    return content


def load_official(module: SwinIR, state: Mapping[str, Tensor], origin: str) -> None:
    """Fill a super-resolver from an official state dict; derived constants are dropped, the rest must fit.

    Raises:
        WeightsError: as of `load_strict`.
    """
    given = {key: value for key, value in state.items() if key.rpartition(".")[2] not in DERIVED_KEYS}
    load_strict(module, given, origin)


def clip_file(source: str | Path, architecture: str) -> Path:
    """CLIP's file: a local one, or by open_clip's cache and download for `openai`.

    Raises:
        WeightsError: the architecture is unknown or not QuickGELU, or the file cannot be downloaded.
    """
    import open_clip

    settings = open_clip.get_model_config(architecture)
    if settings is None or not settings.get("quick_gelu", False):
        raise WeightsError(
            f"clip.architecture {architecture}: must be one of open_clip's with QuickGELU, which OpenAI's "
            "weights were trained with; their names end in -quickgelu"
        )
    if isinstance(source, Path):
        return source
    published = open_clip.pretrained.get_pretrained_cfg(architecture, source)
    try:
        return Path(open_clip.pretrained.download_pretrained(published))
    except Exception as error:  # open_clip and its hub client raise many kinds
        raise WeightsError(
            f"clip.weights {source}: {architecture} could not be downloaded ({error}); fetch it elsewhere, "
            "then set clip.weights to the file"
        ) from error


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
        key.removeprefix("visual."): value.float()
        for key, value in state.items()
        if key.startswith("visual.")
    }
    if "positional_embedding" in picture:
        table = picture["positional_embedding"]
        picture["positional_embedding"] = resize_position_embedding(table, visual.config.grid)
    own = {key: value for key, value in visual.state_dict().items() if is_adapter_parameter(key)}
    load_strict(visual, {**picture, **own}, "of CLIP's visual encoder")
    load_strict(
        text,
        {key: value.float() for key, value in state.items() if key.startswith(TEXT_KEYS)},
        "of CLIP's text encoder",
    )
    if "token_embedding.weight" not in state:
        raise WeightsError(
            "weights of CLIP's text encoder: token_embedding.weight is missing; use a full CLIP file"
        )
    return state["token_embedding.weight"][prompt_token_ids()].float()


def is_vsla(state: Mapping[str, object]) -> bool:
    """Whether a state dict is that of a whole VSLA-CLIP model (method.md 3)."""
    return any(key.removeprefix("module.").startswith("image_encoder.") for key in state)


def load_vsla(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], origin: str) -> None:
    """Fill encoder, text encoder, prompts and heads from an official VSLA-CLIP `.pth`.

    The identities of the file must be those of the training split, in sorted order: prompts and classifiers
    are theirs. Nothing is left out silently.

    Args:
        modules: `visual`, `text`, `prompts`, `heads`.
        state: official keys, with or without `module.` in front.
        origin: named in errors.

    Raises:
        WeightsError: keys that are missing, unexpected or of another shape, as with another number of
            identities or platforms.
    """
    prefixes = {"image_encoder.": "visual", "text_encoder.": "text", "prompt_learner.": "prompts"}
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    for key, value in state.items():
        key = key.removeprefix("module.")
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is not None:
            parts[prefixes[prefix]][key.removeprefix(prefix)] = value
        else:
            parts["visual" if key == "cv_embed" else "heads"][key] = value
    for name, module in modules.items():
        load_strict(module, parts[name], f"{origin}:{name}")
