"""SwinIR-S x2, the super-resolver (method.md chapter 1; Liang et al. 2021, "lightweight SR").

Parameter names are those of the official release, so its files load one to one. Height and width are
Python integers throughout and the batch is left to `reshape(-1, ...)`: at a fixed picture size the exported
graph has a free batch and no shape arithmetic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from s3clip_runtime.errors import ConfigError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""RGB mean that the official network subtracts from values in [0, 1]."""

MASKED = -100.0
"""Added to the logits of pairs that the shift brought together. Finite, so safe in bf16 (method.md 1.4)."""

DERIVED_KEYS = ("attn_mask", "relative_position_index")
"""Last part of the official keys that hold constants, not weights."""


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions: int64 (window^2, window^2)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


@lru_cache(maxsize=16)
def shift_mask(height: int, width: int, window: int) -> NDArray[np.float32]:
    """Mask of the shifted windows: (windows, window^2, window^2), 0 within a region, else -100.

    Height and width are multiples of `window`; windows are in row-major order. It is numpy on purpose: a
    tracer records the finished array as one constant, not the steps that make it. The array is shared
    between calls: do not write to it.
    """

    def labels(length: int) -> NDArray[np.int64]:
        position = np.arange(length)
        return (position >= length - window).astype(int) + (position >= length - window // 2)

    regions = 3 * labels(height)[:, None] + labels(width)
    blocks = regions.reshape(height // window, window, width // window, window)
    cells = blocks.swapaxes(1, 2).reshape(-1, window * window)
    return np.where(cells[:, :, None] == cells[:, None, :], 0.0, MASKED).astype(np.float32)


def cut_windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C) to (N, windows, window^2, C), windows in row-major order."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, height // window, window, width // window, window, channels).transpose(2, 3)
    return x.reshape(-1, (height // window) * (width // window), window * window, channels)


def join_windows(x: Tensor, size: tuple[int, int], window: int) -> Tensor:
    """Inverse of `cut_windows`: (N, windows, window^2, C) to (N, H, W, C) with (H, W) = `size`."""
    height, width = size
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, height, width, x.shape[-1])


class DropPath(nn.Module):
    """Leaves out a residual branch for random samples of the batch, in training mode only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, ...); kept samples are scaled so that the expectation stays."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(N, windows, L, C) to the same; `mask` is (windows, L, L) or None for unshifted windows."""
        _, windows, length, dim = x.shape
        head_dim = dim // self.heads
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(-1, windows, length, self.heads, head_dim).transpose(2, 3) for part in parts)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        weights = (torch.matmul(q * head_dim**-0.5, k.transpose(-2, -1)) + bias).softmax(dim=-1)
        x = torch.matmul(weights, v).transpose(2, 3).reshape(-1, windows, length, dim)
        out: Tensor = self.proj(x)
        return out


class SwinBlock(nn.Module):
    """One Swin transformer block, its windows shifted by `shift` pixels (0 = not shifted)."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim))
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W, C) to the same. `mask` is the `shift_mask` of (H, W), unused without a shift."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        if self.shift == 0:
            return join_windows(self.attn(cut_windows(x, self.window), None), size, self.window)
        x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        x = join_windows(self.attn(cut_windows(x, self.window), mask), size, self.window)
        return torch.roll(x, (self.shift, self.shift), dims=(1, 2))


class SwinGroup(nn.Module):
    """The Swin blocks of one residual layer; every second one is shifted by half a window."""

    def __init__(
        self, dim: int, heads: int, window: int, mlp_ratio: float, drop_paths: Sequence[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, window // 2 * (index % 2), mlp_ratio, rate)
            for index, rate in enumerate(drop_paths)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        for block in self.blocks:
            x = block(x, mask)
        return x


class ResidualLayer(nn.Module):
    """A group of Swin blocks and a 3x3 convolution around which the input is added (RSTB)."""

    def __init__(
        self, dim: int, heads: int, window: int, mlp_ratio: float, drop_paths: Sequence[float]
    ) -> None:
        super().__init__()
        self.residual_group = SwinGroup(dim, heads, window, mlp_ratio, drop_paths)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        y = self.residual_group(x, mask).permute(0, 3, 1, 2)
        out: Tensor = x + self.conv(y).permute(0, 2, 3, 1)
        return out


class SwinIR(nn.Module):
    """The super-resolver with "pixelshuffledirect" output; the defaults are SwinIR-S x2, 910,152 parameters.

    Args:
        embed_dim: channels of the body.
        depths: Swin blocks of each residual layer.
        num_heads: attention heads of each residual layer; each divides `embed_dim`.
        window: side of the attention windows, even.
        mlp_ratio: hidden width of the MLPs as a multiple of `embed_dim`.
        upscale: factor between input and output.
        drop_path: rate of the last block; grows linearly from 0 (A14). Active in training mode only.

    Raises:
        ConfigError: the numbers do not fit together.
    """

    mean: Tensor

    def __init__(
        self,
        embed_dim: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        window: int = 8,
        mlp_ratio: float = 2.0,
        upscale: int = 2,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads) or any(embed_dim % heads for heads in num_heads) or window % 2:
            raise ConfigError(
                f"SwinIR: num_heads {tuple(num_heads)} must name a divisor of embed_dim {embed_dim} "
                f"for each of depths {tuple(depths)}, and window {window} must be even"
            )
        self.window = window
        self.upscale = upscale
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, embed_dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(embed_dim)))
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList(
            ResidualLayer(embed_dim, heads, window, mlp_ratio, [next(rates) for _ in range(depth)])
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.upsample = nn.Sequential(
            nn.Conv2d(embed_dim, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve RGB pictures.

        Args:
            x: float (N, 3, H, W) in [0, 1].

        Returns:
            float (N, 3, upscale * H, upscale * W), not clamped (A11).

        Raises:
            ConfigError: the picture is too small to be mirrored up to a multiple of the window.
        """
        height, width = x.shape[-2:]
        below, right = -height % self.window, -width % self.window
        if below >= height or right >= width:
            raise ConfigError(
                f"SwinIR: a picture of {height}x{width} cannot be mirrored to multiples of {self.window}; "
                f"sides must be longer than {self.window // 2} pixels"
            )
        padded = below > 0 or right > 0
        if padded:
            x = F.pad(x, (0, right, 0, below), mode="reflect")
        shallow = self.conv_first(x - self.mean)
        deep = self._body(shallow.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y: Tensor = self.upsample(self.conv_after_body(deep) + shallow) + self.mean
        return y[:, :, : height * self.upscale, : width * self.upscale] if padded else y

    def _body(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        mask = torch.from_numpy(shift_mask(x.shape[1], x.shape[2], self.window)).to(x)
        for layer in self.layers:
            x = layer(x, mask)
        out: Tensor = self.norm(x)
        return out
