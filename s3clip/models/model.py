"""S3-CLIP as one module: super-resolver, resize, VSLA-CLIP encoder and the training heads."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s3clip.config import TrainConfig
from s3clip.models.resize import Kernel, Resize
from s3clip.models.swinir import SwinIR
from s3clip.models.vit import Features, TokenFeatures, VisualConfig, VisualEncoder
from s3clip_runtime.inference.spec import FRAME_SIZE, LR_SIZE, PIXEL_MEAN, PIXEL_STD, PLATFORMS, SR_SIZE


class Scores(NamedTuple):
    """Identity logits (B, N_id) of the two classifiers: on `final` and on `proj`."""

    final: Tensor
    proj: Tensor


class IdentityHeads(nn.Module):
    """Batch-norm necks with frozen bias and classifiers without bias (method.md 2); training only."""

    def __init__(self, width: int, out_dim: int, identities: int) -> None:
        super().__init__()
        self.bottleneck = _neck(width)
        self.bottleneck_proj = _neck(out_dim)
        self.classifier = _classifier(width, identities)
        self.classifier_proj = _classifier(out_dim, identities)

    def forward(self, features: Features) -> Scores:
        """Logits from the features before the necks."""
        return Scores(
            self.classifier(self.bottleneck(features.final)),
            self.classifier_proj(self.bottleneck_proj(features.proj)),
        )


def _neck(width: int) -> nn.BatchNorm1d:
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def _classifier(width: int, identities: int) -> nn.Linear:
    classifier = nn.Linear(width, identities, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier


class S3Clip(nn.Module):
    """The whole network from pixels to embedding.

    Args:
        sr: maps (N, 3, 64, 32) to (N, 3, 128, 64): SwinIR, or a plain resize as the baseline.
        visual: the encoder.
        normalise_first: the joint variant S+I normalises before super-resolution (method.md 7.3).
        clamp: keep super-resolved pictures in [0, 1] outside training (A11).
        kernel: of the resize behind `sr`.
        direct: there is no `sr`, LR crops are resized to 256x128 before they come here.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        sr: nn.Module,
        visual: VisualEncoder,
        *,
        normalise_first: bool,
        clamp: bool = False,
        kernel: Kernel = "bicubic",
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.sr = sr
        self.up = Resize(SR_SIZE, FRAME_SIZE, kernel)
        self.visual = visual
        self.normalise_first = normalise_first
        self.clamp = clamp
        self.direct = direct
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def with_super_resolver(self, sr: nn.Module) -> S3Clip:
        """The same network, sharing all weights, but for another module in the super-resolver's place."""
        made = copy.copy(self)
        made._modules = {**self._modules, "sr": sr}  # a shallow copy shares the table of its children
        return made

    def normalise(self, pixels: Tensor) -> Tensor:
        """ImageNet normalisation of (..., 3, H, W) in [0, 1]."""
        return (pixels - self.mean) / self.std

    def denormalise(self, pixels: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return pixels * self.std + self.mean

    def super_resolve(self, crops: Tensor) -> Tensor:
        """LR crops (N, 3, 64, 32) in [0, 1] to pictures (N, 3, 128, 64), about [0, 1]; clamped see A11."""
        output: Tensor = (
            self.denormalise(self.sr(self.normalise(crops))) if self.normalise_first else self.sr(crops)
        )
        return output.clamp(0.0, 1.0) if self.clamp and not self.training else output

    def enhance(self, crops: Tensor) -> Tensor:
        """LR crops (N, 3, 64, 32) in [0, 1] to frames (N, 3, 256, 128), about [0, 1]."""
        frames: Tensor = self.up(self.super_resolve(crops))
        return frames

    def features(self, frames: Tensor, platform: Tensor | None, *, adapters: bool = True) -> Features:
        """Frames (B, T, 3, 256, 128) in [0, 1] and platform ids (B,) to T-averaged features."""
        features: Features = self.visual(self._patch_tokens(frames), platform, adapters=adapters)
        return features

    def token_features(self, frames: Tensor, platform: Tensor | None) -> TokenFeatures:
        """As `features`, but every token of every frame."""
        return self.visual.token_features(self._patch_tokens(frames), platform)

    def _patch_tokens(self, frames: Tensor) -> Tensor:
        tokens = self.visual.patch_tokens(self.normalise(frames.flatten(0, 1)))
        return tokens.reshape(*frames.shape[:2], *tokens.shape[1:])

    def forward(self, frames: Tensor, platform: Tensor) -> Tensor:
        """Frames (B, T, 3, 256, 128) in [0, 1] to unit embeddings (B, width + out_dim) (method.md 2)."""
        return embedding(self.features(frames, platform))


def embedding(features: Features) -> Tensor:
    """The test embedding: `final` and `proj` before the necks, L2-normalised as one vector."""
    vector = torch.cat((features.final, features.proj), dim=1)
    # F.normalize expands the norm, which brings the batch size into an exported graph.
    norm: Tensor = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    return vector / norm.clamp_min(1e-12)


def build_model(config: TrainConfig) -> S3Clip:
    """The network of a configuration with random weights; the encoder's do not depend on `sr`."""
    settings = config.visual
    visual = VisualEncoder(
        VisualConfig(
            width=settings.width,
            layers=settings.layers,
            heads=settings.heads,
            out_dim=settings.out_dim,
            patch=settings.patch,
            adapter_width=settings.adapter_width,
            adapter_heads=settings.adapter_heads,
            platform_prompt_depth=settings.platform_prompt_depth,
            platforms=len(PLATFORMS),
            zero_init_up=settings.zero_init_up,
        )
    )
    kernel: Kernel = "bilinear" if config.sr.kind == "bilinear" else "bicubic"
    sr: nn.Module = nn.Identity() if config.sr.kind == "none" else Resize(LR_SIZE, SR_SIZE, kernel)
    if config.sr.kind == "swinir":
        sr = SwinIR(
            embed_dim=config.sr.embed_dim,
            depths=config.sr.depths,
            num_heads=config.sr.num_heads,
            drop_path=config.sr.drop_path,
        )
    return S3Clip(
        sr,
        visual,
        normalise_first=config.reid.variant == "joint",
        clamp=config.sr.clamp,
        kernel=kernel,
        direct=config.sr.kind == "none",
    )
