"""SwinIR rewritten for export: the same function, in an order of tokens that needs no rolling.

What is exact here: the LayerNorms' scale and shift sit in the linear layers that follow them, the attention's
scale in the queries' weights, the output mean in the last bias. Tokens stay in the order of their windows
through a whole group of blocks, so that a block costs one permutation of rows in the place of two window
transposes and two rolls. Biases and masks of the attention are one constant a block; a shifted one has only
four kinds of windows.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from s3clip.models.model import S3Clip
from s3clip.models.swinir import ResidualLayer, SwinBlock, SwinIR, shift_mask
from s3clip_runtime.inference.spec import LR_SIZE

Size = tuple[int, int]


def with_rewritten_swinir(model: S3Clip) -> S3Clip:
    """The network with its SwinIR rewritten; one with another super-resolver as it is."""
    if not isinstance(model.sr, SwinIR):
        return model
    return model.with_super_resolver(RewrittenSwinIR(model.sr, LR_SIZE))


class RewrittenSwinIR(nn.Module):
    """A `SwinIR` at one picture size.

    Args:
        source: its weights are read, never changed.
        size: (height, width) of the pictures, multiples of the window.
    """

    mean: Tensor

    def __init__(self, source: SwinIR, size: Size) -> None:
        super().__init__()
        self.register_buffer("mean", source.mean.clone(), persistent=False)
        self.conv_first = source.conv_first
        self.patch_embed = source.patch_embed
        layers = cast("list[ResidualLayer]", list(source.layers))
        self.layers = nn.ModuleList(_Layer(layer, size, source.window) for layer in layers)
        self.norm = source.norm
        self.conv_after_body = source.conv_after_body
        last, shuffle = source.upsample[0], source.upsample[1]
        # Blocks are compared with those of the same name: what differs by the mean has another one.
        last = _with_mean(cast("nn.Conv2d", last), source.mean)
        self.finish = nn.Sequential(last, shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Float (N, 3, H, W) in [0, 1] to (N, 3, upscale * H, upscale * W), as `SwinIR.forward`."""
        shallow = self.conv_first(x - self.mean)
        y = self.patch_embed(shallow.permute(0, 2, 3, 1))
        for layer in self.layers:
            y = layer(y)
        y = self.norm(y).permute(0, 3, 1, 2)
        out: Tensor = self.finish(self.conv_after_body(y) + shallow)
        return out


class _Layer(nn.Module):
    """`ResidualLayer`: (N, H, W, C) to the same."""

    leave: Tensor

    def __init__(self, source: ResidualLayer, size: Size, window: int) -> None:
        super().__init__()
        blocks = cast("list[SwinBlock]", list(source.residual_group.blocks))
        orders = [window_order(size, window, block.shift) for block in blocks]
        self.blocks = nn.ModuleList(
            _Block(block, size, before) for block, before in zip(blocks, _steps(orders), strict=True)
        )
        self.register_buffer("leave", torch.from_numpy(np.argsort(orders[-1])), persistent=False)
        self.conv = source.conv

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        _, height, width, channels = x.shape
        y = x.reshape(-1, height * width, channels)
        for block in self.blocks:
            y = block(y)
        y = y.index_select(1, self.leave).reshape(-1, height, width, channels)
        out: Tensor = x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class _Block(nn.Module):
    """`SwinBlock` on tokens (N, H * W, C), which come in the order of the block before it."""

    order: Tensor
    bias: Tensor
    kinds: Tensor

    def __init__(self, source: SwinBlock, size: Size, order: NDArray[np.int64]) -> None:
        super().__init__()
        attention = source.attn
        self.heads, self.length = attention.heads, source.window**2
        dim = attention.proj.in_features
        self.norm1, self.norm2 = (
            nn.LayerNorm(dim, eps=norm.eps, elementwise_affine=False) for norm in (source.norm1, source.norm2)
        )
        self.register_buffer("order", torch.from_numpy(order), persistent=False)
        qkv = folded_norm(source.norm1, attention.qkv)
        parts = zip(qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True)
        scale = (dim // self.heads) ** -0.5
        scales = (scale, 1.0, 1.0)
        self.qkv = nn.ModuleList(_linear(w * s, b * s) for (w, b), s in zip(parts, scales, strict=True))
        self.proj = attention.proj
        self.fc1 = folded_norm(source.norm2, cast("nn.Linear", source.mlp.fc1))
        self.fc2 = cast("nn.Linear", source.mlp.fc2)
        table = attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
        masks, kinds = _mask_kinds(size, source.window, source.shift)
        bias = table.detach() + torch.from_numpy(masks)[:, None]
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("kinds", torch.from_numpy(kinds), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x.index_select(1, self.order)
        x = x + self._attend(self.norm1(x))
        hidden = F.gelu(self.fc1(self.norm2(x)))
        out: Tensor = x + self.fc2(hidden)
        return out

    def _attend(self, x: Tensor) -> Tensor:
        tokens, dim = x.shape[1:]
        cut = (-1, self.length, self.heads, dim // self.heads)
        q, k, v = (part(x).reshape(cut) for part in self.qkv)
        # Four dimensions, since libraries look for no attention in five: heads of windows that share a bias
        # lie in the batch, those that do not beside each other.
        q, k, v = q.transpose(1, 2), k.permute(0, 2, 3, 1), v.transpose(1, 2)
        bias = self.bias.index_select(0, self.kinds).flatten(0, 1)
        if len(self.kinds) > 1:
            q, k, v = (part.reshape(-1, len(bias), *part.shape[2:]) for part in (q, k, v))
        mixed = torch.matmul((torch.matmul(q, k) + bias).softmax(dim=-1), v)
        mixed = mixed.reshape(-1, self.heads, *mixed.shape[2:]).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(-1, tokens, dim))
        return out


def window_order(size: Size, window: int, shift: int) -> NDArray[np.int64]:
    """Row-major positions of a picture in the order of its windows, which are shifted by `shift` pixels."""
    height, width = size
    grid = np.roll(np.arange(height * width).reshape(size), (-shift, -shift), axis=(0, 1))
    cells = grid.reshape(height // window, window, width // window, window).swapaxes(1, 2)
    return np.ascontiguousarray(cells.reshape(-1))


def folded_norm(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """One linear layer that does on normalised input what the norm's scale and shift and `linear` do."""
    weight = linear.weight.double()
    bias = linear.bias.double() + weight @ norm.bias.double()
    return _linear(weight * norm.weight.double(), bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data, made.bias.data = weight.detach().float(), bias.detach().float()
    return made.requires_grad_(False)


def _with_mean(conv: nn.Conv2d, mean: Tensor) -> nn.Conv2d:
    """The last convolution with the mean in its bias: each colour has as many rows as a pixel gets."""
    made = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
    assert conv.bias is not None
    assert made.bias is not None
    colours = mean.flatten().repeat_interleave(conv.out_channels // mean.numel())
    made.weight.data, made.bias.data = conv.weight.detach(), conv.bias.detach() + colours
    return made.requires_grad_(False)


def _steps(orders: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """From the order of each block's predecessor, for the first one row-major, to its own."""
    before = np.arange(len(orders[0]))
    steps = []
    for order in orders:
        steps.append(np.argsort(before)[order])
        before = order
    return steps


def _mask_kinds(size: Size, window: int, shift: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The different masks of the windows, (kinds, L, L), and which of them each window has.

    Without a shift there is one kind and one entry for all windows.
    """
    if shift == 0:
        return np.zeros((1, window**2, window**2), np.float32), np.zeros(1, np.int64)
    masks, kinds = np.unique(shift_mask(*size, window), axis=0, return_inverse=True)
    return masks, kinds.reshape(-1)
