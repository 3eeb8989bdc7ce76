"""The two VSLA adapters that sit at the side of every CLIP block (method.md chapter 3).

No activation, residual, LayerNorm, position code or scale beyond what is written here, and the plain PyTorch
initialisation: nothing starts at zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def self_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Unmasked self-attention with the module's weights: (N, L, D) to (N, L, D).

    Written out because the module's own forward computes shapes that an exporter must then carry along.
    """
    _, length, width = x.shape
    heads = attention.num_heads
    head_dim = width // heads
    parts = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.reshape(-1, length, heads, head_dim).transpose(1, 2) for part in parts)
    y = _attend(q, k, v).transpose(1, 2)
    return F.linear(y.reshape(-1, length, width), attention.out_proj.weight, attention.out_proj.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of (N, heads, L, D)."""
    if torch.compiler.is_exporting():
        # The ONNX translation of the fused call computes shapes at run time; these four steps need none.
        return torch.matmul(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3)).softmax(dim=-1), v)
    return F.scaled_dot_product_attention(q, k, v)


class IntraFrameAdapter(nn.Module):
    """IFA: a bottleneck MLP on every token."""

    def __init__(self, width: int, hidden: int) -> None:
        from open_clip.transformer import QuickGELU

        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.act = QuickGELU()
        self.up = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) to the same."""
        out: Tensor = self.up(self.act(self.down(x)))
        return out


class TemporalBlock(nn.Module):
    """Attention along time, for each token position by itself. No position code: frames have no order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.temporal_attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B * frames, L, width), a clip's frames contiguous, to the same."""
        _, length, width = x.shape
        x = x.reshape(-1, frames, length, width).transpose(1, 2).reshape(-1, frames, width)
        x = self_attention(self.temporal_attn, x)
        return x.reshape(-1, length, frames, width).transpose(1, 2).reshape(-1, length, width)


class CrossFrameAdapter(nn.Module):
    """CFAA: a linear bottleneck with attention along time inside it."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.temporal_block = TemporalBlock(hidden, heads)
        self.up = nn.Linear(hidden, width)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B * frames, L, width) to the same."""
        out: Tensor = self.up(self.temporal_block(self.down(x), frames))
        return out
