"""The three graphs of a bundle as traceable modules: uint8 crops in, one unit vector out.

The networks are those of s3clip_export.rewrites, and stand where `s3clip.models` has them (`sr`, `visual`).

Bytes are cast right after the input and right before the output, and transposed as floats: TensorRT knows
UINT8 only as an input or output with a Cast beside it, and refuses to transpose it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3clip.clips import unit_range
from s3clip.models.model import S3Clip
from s3clip_export.rewrites.encoder import LeanEncoder
from s3clip_export.rewrites.patches import CropPatches, PicturePatches
from s3clip_export.rewrites.swinir import with_rewritten_swinir


class Enhance(nn.Module):
    """LR crops uint8 (N, 64, 32, 3) RGB to tokens (N, 128, width) and pictures uint8 (N, 128, 64, 3).

    Pictures are for people to look at: only they are clamped, the tokens see the raw output (A11).
    """

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        self.model = with_rewritten_swinir(model)
        self.visual = PicturePatches(model)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        resolved = self.model.super_resolve(unit_range(crops).permute(0, 3, 1, 2))
        picture = (resolved * 255.0).round().clamp(0.0, 255.0).permute(0, 2, 3, 1)
        return self.visual(resolved), picture.to(torch.uint8)


class Patchify(nn.Module):
    """HR crops uint8 (N, 256, 128, 3) RGB to patch tokens (N, 128, width)."""

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        self.visual = CropPatches(model)

    def forward(self, crops: Tensor) -> Tensor:
        """See the class."""
        tokens: Tensor = self.visual(crops)
        return tokens


class Encode(nn.Module):
    """Tokens (B, T, 128, width) and platform ids int64 (B,) to unit embeddings (B, D)."""

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        self.visual = LeanEncoder(model.visual)

    def forward(self, tokens: Tensor, platform: Tensor) -> Tensor:
        """See the class."""
        embeddings: Tensor = self.visual(tokens, platform)
        return embeddings
