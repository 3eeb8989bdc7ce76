"""What networks the public weight files hold, read from the shapes of their tensors (method.md 1.5 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from s3clip.config import SuperResolutionSettings, TextSettings, VisualSettings
from s3clip_runtime.errors import WeightsError
from s3clip_runtime.inference.spec import LR_SIZE, PLATFORMS, SR_SIZE

HEAD_WIDTH = 64
"""Channels of an attention head in CLIP's encoders and in VSLA's adapters; no shape tells it."""

SCALE = SR_SIZE[0] // LR_SIZE[0]


class VslaArchitecture(NamedTuple):
    """What a VSLA-CLIP file was built as.

    Attributes:
        visual: the encoder with its adapters.
        text: the text encoder.
        identities: training identities, of prompts and classifiers.
        prompts: learnt tokens of a text: shared in front, of the identity, shared behind.
    """

    visual: VisualSettings
    text: TextSettings
    identities: int
    prompts: tuple[int, int, int]


class _Shapes:
    """Shapes of a state dict; what is missing or of another rank is named with the file."""

    def __init__(self, state: Mapping[str, Tensor], origin: str) -> None:
        self.origin = origin
        self._state = state

    def __contains__(self, key: str) -> bool:
        return key in self._state

    def of(self, key: str, rank: int) -> tuple[int, ...]:
        if not isinstance(self._state.get(key), Tensor):
            raise WeightsError(
                f"weights {self.origin}: {key} is missing; use a complete file in the official layout"
            )
        shape = tuple(self._state[key].shape)
        if len(shape) != rank:
            raise WeightsError(
                f"weights {self.origin}: {key} must have {rank} dimensions, found {len(shape)}; "
                "use a file in the official layout"
            )
        return shape

    def count(self, prefix: str) -> int:
        """One more than the largest number behind `prefix`; gaps are found when the weights are loaded."""
        numbers = [
            key.removeprefix(prefix).partition(".")[0] for key in self._state if key.startswith(prefix)
        ]
        found = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
        if not found:
            raise WeightsError(
                f"weights {self.origin}: no key begins with {prefix}0; use a file in the official layout"
            )
        return found

    def heads(self, width: int, what: str) -> int:
        if width % HEAD_WIDTH:
            raise WeightsError(
                f"weights {self.origin}: the {what} is {width} wide and must be a multiple of {HEAD_WIDTH}, "
                "the width of an attention head; use a file of the official architecture"
            )
        return width // HEAD_WIDTH


def vsla_architecture(state: Mapping[str, Tensor], origin: str) -> VslaArchitecture:
    """The architecture of a whole VSLA-CLIP model.

    Args:
        state: official keys, with or without `module.` in front.
        origin: named in errors.

    Raises:
        WeightsError: a key that tells a size is missing, or a size that no such model has.
    """
    shapes = _Shapes({key.removeprefix("module."): value for key, value in state.items()}, origin)
    _, text_width = shapes.of("text_encoder.positional_embedding", 2)
    text = TextSettings(
        width=text_width,
        layers=shapes.count("text_encoder.transformer.resblocks."),
        heads=shapes.heads(text_width, "text encoder"),
    )
    identities, own, _ = shapes.of("prompt_learner.cls_ctx", 3)
    before = shapes.of("prompt_learner.prefix_prompt", 3)[1]
    after = shapes.of("prompt_learner.suffix_prompt", 3)[1]
    return VslaArchitecture(_visual(shapes), text, identities, (before, own, after))


def _visual(shapes: _Shapes) -> VisualSettings:
    blocks = "image_encoder.transformer.resblocks."
    width, _, patch, _ = shapes.of("image_encoder.conv1.weight", 4)
    adapter_width = shapes.of(f"{blocks}0.dat.down.weight", 2)[0]
    return VisualSettings(
        width=width,
        layers=shapes.count(blocks),
        heads=shapes.heads(width, "visual encoder"),
        out_dim=shapes.of("image_encoder.proj", 2)[1],
        patch=patch,
        adapter_width=adapter_width,
        adapter_heads=shapes.heads(adapter_width, "adapter"),
        platform_prompt_depth=_prompt_depth(shapes),
    )


def _prompt_depth(shapes: _Shapes) -> int:
    """VSLA-CLIP without platform prompts, its default, has no `cv_embed`."""
    if "cv_embed" not in shapes:
        return 0
    depth, tokens, platforms, _ = shapes.of("cv_embed", 4)
    if (tokens, platforms) != (1, len(PLATFORMS)):
        raise WeightsError(
            f"weights {shapes.origin}: cv_embed holds {tokens} prompt(s) for {platforms} platforms, and must "
            f"hold 1 for {len(PLATFORMS)}, {', '.join(PLATFORMS)}; cut it to these slots in this order"
        )
    return depth


def swinir_architecture(state: Mapping[str, Tensor], origin: str) -> SuperResolutionSettings:
    """The architecture of a lightweight SwinIR x2.

    Args:
        state: official keys.
        origin: named in errors.

    Raises:
        WeightsError: a key that tells a size is missing, or it enlarges by another factor.
    """
    shapes = _Shapes(state, origin)
    channels = shapes.of("upsample.0.weight", 4)[0]
    if channels != 3 * SCALE**2 and channels % 3 == 0 and math.isqrt(channels // 3) ** 2 == channels // 3:
        raise WeightsError(
            f"weights {origin}: enlarges by {math.isqrt(channels // 3)}, and the super-resolver must enlarge "
            f"by {SCALE}; use an x{SCALE} file"
        )
    layers = [f"layers.{index}.residual_group.blocks." for index in range(shapes.count("layers."))]
    return SuperResolutionSettings(
        embed_dim=shapes.of("conv_first.weight", 4)[0],
        depths=tuple(shapes.count(layer) for layer in layers),
        num_heads=tuple(shapes.of(f"{layer}0.attn.relative_position_bias_table", 2)[1] for layer in layers),
    )
