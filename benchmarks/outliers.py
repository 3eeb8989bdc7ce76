"""Random weights that are as hard to round as trained ones: a few massive channels in the residual stream."""

from __future__ import annotations

from typing import cast

import torch

from s3clip.models.model import S3Clip
from s3clip.models.vit import AdaptedBlock

CHANNELS = 6
MAGNITUDES = (8.0, 35.0)
"""Of the channels' offsets, where others are about 1: what trained CLIP encoders show."""

GAMMA_SPREAD = 0.5
"""Standard deviation of the logarithm of the LayerNorms' scales."""

SHARPNESS = 1.5
"""Factor of queries and keys: the attention of random weights is nearly even."""


def plant_outliers(model: S3Clip, seed: int = 1) -> None:
    """Change the encoder's weights in place, the same way for the same seed."""
    draw = torch.Generator().manual_seed(seed)
    visual = model.visual
    width = visual.config.width
    channels = torch.randperm(width, generator=draw)[:CHANNELS]
    offsets = torch.empty(CHANNELS).uniform_(*MAGNITUDES, generator=draw)
    with torch.no_grad():
        visual.positional_embedding[:, channels] += offsets
        for block in cast("list[AdaptedBlock]", list(visual.transformer.resblocks)):
            for norm in (block.ln_1, block.ln_2):
                norm.weight.copy_(torch.exp(GAMMA_SPREAD * torch.randn(width, generator=draw)))
                norm.weight[channels] *= 0.1
            block.attn.in_proj_weight[: 2 * width] *= SHARPNESS
