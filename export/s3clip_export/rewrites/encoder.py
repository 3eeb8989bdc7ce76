"""The visual encoder for export: what `embedding(VisualEncoder(...))` gives, with 9 % fewer operations.

Weights are merged in float64. Every module here is built from one of s3clip.models and keeps its place in the
tree (`transformer.resblocks.N`), so that a failing graph can be searched block by block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3clip.models.adapters import CrossFrameAdapter
from s3clip.models.vit import AdaptedBlock, VisualEncoder

QUICK_GELU = 1.702
"""QuickGELU is x * sigmoid(1.702 x) = silu(1.702 x) / 1.702: both factors go into the layers around it."""


class LeanEncoder(nn.Module):
    """Tokens (B, T, patches, width) and platform ids int64 (B,) to unit embeddings (B, width + out_dim).

    Only the class tokens leave the last block. The frames are averaged before the projection.
    """

    positions: Tensor
    proj: Tensor

    def __init__(self, encoder: VisualEncoder) -> None:
        super().__init__()
        positions = encoder.positional_embedding.detach().double()
        positions[0] += encoder.class_embedding.detach().double()
        self.register_buffer("positions", positions.float())
        self.ln_pre = encoder.ln_pre
        self.transformer = LeanBlocks(encoder)
        self.ln_post = encoder.ln_post
        self.register_buffer("proj", encoder.proj.detach())

    def forward(self, tokens: Tensor, platform: Tensor) -> Tensor:
        """See the class."""
        _, frames, patches, width = tokens.shape
        x = self.ln_pre(F.pad(tokens.reshape(-1, patches, width), (0, 0, 1, 0)) + self.positions)
        owners = platform[:, None].expand(-1, frames).reshape(-1)
        for block in self.transformer.resblocks:
            x = block(x, frames, owners)
        final = self.ln_post(x[:, 0]).reshape(-1, frames, width).mean(dim=1)
        vector = torch.cat((final, final @ self.proj), dim=1)
        norm: Tensor = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        return vector / norm.clamp_min(1e-12)


class LeanBlocks(nn.Module):
    """Holds the blocks under the key of `VisualEncoder`; `LeanEncoder` runs them."""

    def __init__(self, encoder: VisualEncoder) -> None:
        super().__init__()
        *others, (last, prompts) = prompted_blocks(encoder)
        lean = [LeanBlock(JointAttention(block, own), JointFeedForward(block)) for block, own in others]
        lean.append(LeanBlock(ClassAttention(last, prompts), JointFeedForward(last)))
        self.resblocks = nn.ModuleList(lean)


def prompted_blocks(encoder: VisualEncoder) -> list[tuple[AdaptedBlock, Tensor | None]]:
    """The encoder's blocks, each with its platform prompts (platforms, P, width) or None."""
    blocks = [block for block in encoder.transformer.resblocks if isinstance(block, AdaptedBlock)]
    prompts = [] if encoder.cv_embed is None else list(encoder.cv_embed.detach().transpose(1, 2))
    return list(zip(blocks, [*prompts, *[None] * (len(blocks) - len(prompts))], strict=True))


class LeanBlock(nn.Module):
    """The two halves of an `AdaptedBlock`, one after the other."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, frames: int, owners: Tensor) -> Tensor:
        """One block.

        Args:
            x: (B * frames, L, width), a clip's frames contiguous.
            frames: frames of a clip, T.
            owners: int64 (B * frames,) platform of each frame.

        Returns:
            (B * frames, L, width), or (B * frames, 1, width) where the attention is a `ClassAttention`.
        """
        out: Tensor = self.feed_forward(self.attention(x, frames, owners))
        return out


class JointAttention(nn.Module):
    """x + MSA(LN x) + CFAA(x): the heads of both go through one output layer.

    Platform prompts take part as keys and values alone, and there are only as many of them as platforms: they
    are projected here and not in the graph.

    Args:
        block: whose first half this is.
        prompts: (platforms, P, width), or None.
    """

    prompts: Tensor | None

    def __init__(self, block: AdaptedBlock, prompts: Tensor | None) -> None:
        super().__init__()
        self.heads = block.attn.num_heads
        self.ln_1 = block.ln_1
        self.qkv = _scaled_queries(block.attn)
        self.temporal = TemporalHeads(block.dat_cross)
        self.out = _sum_of_layers([_layer(block.attn.out_proj), _cross_frame_output(block.dat_cross)])
        table = None
        if prompts is not None:
            width = prompts.shape[-1]
            weight, bias = _layer(self.qkv)
            table = F.linear(prompts.double(), weight[width:], bias[width:]).float()
        self.register_buffer("prompts", table)

    def forward(self, x: Tensor, frames: int, owners: Tensor) -> Tensor:
        """As `LeanBlock`."""
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        if self.prompts is not None:
            more_k, more_v = self.prompts.index_select(0, owners).chunk(2, dim=-1)
            k, v = torch.cat((k, more_k), dim=1), torch.cat((v, more_v), dim=1)
        q, k, v = (self._split(part) for part in (q, k, v))
        spatial = (torch.matmul(q, k.transpose(2, 3)).softmax(dim=-1) @ v).transpose(1, 2)
        heads = torch.cat((spatial.reshape(-1, *x.shape[1:]), self.temporal(x, frames)), dim=-1)
        out: Tensor = x + self.out(heads)
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(N, L, width) to (N, heads, L, width / heads)."""
        return x.reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class ClassAttention(nn.Module):
    """`JointAttention` for the class tokens alone: (B * frames, L, width) to (B * frames, 1, width).

    With one query a head, keys and values of all tokens are not needed: the key layer is applied to the query
    and the value layer to the weighted mean of the tokens. The keys' bias adds the same to all scores.

    Args:
        block: whose first half this is.
        prompts: (platforms, P, width), or None.
    """

    prompts: Tensor | None
    keys: Tensor
    values: Tensor

    def __init__(self, block: AdaptedBlock, prompts: Tensor | None) -> None:
        super().__init__()
        weight, bias = _layer(_scaled_queries(block.attn))
        width = block.attn.embed_dim
        heads = (block.attn.num_heads, -1, width)
        self.ln_1 = block.ln_1
        self.query = _linear(weight[:width], bias[:width])
        self.register_buffer("keys", weight[width : 2 * width].reshape(heads).float())
        values = weight[2 * width :].reshape(heads).transpose(1, 2)
        self.register_buffer("values", values.float().contiguous())
        self.temporal = TemporalHeads(block.dat_cross)
        spread, shift = _layer(block.attn.out_proj)
        spatial = (spread, shift + spread @ bias[2 * width :])
        self.out = _sum_of_layers([spatial, _cross_frame_output(block.dat_cross)])
        self.register_buffer("prompts", prompts)

    def forward(self, x: Tensor, frames: int, owners: Tensor) -> Tensor:
        """As `LeanBlock`."""
        heads, head_dim, width = self.keys.shape
        y = self.ln_1(x)
        q = self.query(y[:, 0]).reshape(-1, heads, head_dim).transpose(0, 1)
        if self.prompts is not None:
            y = torch.cat((y, self.prompts.index_select(0, owners)), dim=1)
        scores = torch.matmul((q @ self.keys).transpose(0, 1), y.transpose(1, 2))
        seen = (scores.softmax(dim=-1) @ y).transpose(0, 1)
        spatial = (seen @ self.values).transpose(0, 1).reshape(-1, 1, width)
        first = x[:, :1]
        out: Tensor = first + self.out(torch.cat((spatial, self.temporal(first, frames)), dim=-1))
        return out


class TemporalHeads(nn.Module):
    """CFAA up to its attention's heads. Its layers see one token each, so they need no token moved."""

    def __init__(self, adapter: CrossFrameAdapter) -> None:
        super().__init__()
        attention = adapter.temporal_block.temporal_attn
        self.heads = attention.num_heads
        self.down = adapter.down
        self.qkv = _scaled_queries(attention)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B * frames, L, width), a clip's frames contiguous, to (B * frames, L, hidden)."""
        parts = self.qkv(self.down(x)).chunk(3, dim=-1)
        length, hidden = parts[0].shape[1:]
        shape = (-1, frames, length, self.heads, hidden // self.heads)
        q, k, v = (part.reshape(shape).permute(0, 2, 3, 1, 4) for part in parts)
        y = torch.matmul(torch.matmul(q, k.transpose(3, 4)).softmax(dim=-1), v)
        return y.permute(0, 3, 1, 2, 4).reshape(-1, length, hidden)


class JointFeedForward(nn.Module):
    """x + MLP(LN x) + IFA(x): the hidden numbers of both go through one output layer."""

    def __init__(self, block: AdaptedBlock) -> None:
        super().__init__()
        self.ln_2 = block.ln_2
        (spread, shift), (down, low) = _layer(block.mlp.c_fc), _layer(block.dat.down)
        self.spread = _linear(QUICK_GELU * spread, QUICK_GELU * shift)
        self.down = _linear(QUICK_GELU * down, QUICK_GELU * low)
        outputs = [_layer(block.mlp.c_proj), _layer(block.dat.up)]
        self.out = _sum_of_layers([(weight / QUICK_GELU, bias) for weight, bias in outputs])

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) to the same."""
        # Each before they are joined, so that it is done as the product's numbers come: 25 ms a clip.
        hidden = (F.silu(self.spread(self.ln_2(x))), F.silu(self.down(x)))
        out: Tensor = x + self.out(torch.cat(hidden, dim=-1))
        return out


def _layer(layer: nn.Module | Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a linear layer in float64."""
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().double(), layer.bias.detach().double()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 layer of these numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


def _sum_of_layers(layers: Iterable[tuple[Tensor, Tensor]]) -> nn.Linear:
    """One layer of the concatenated inputs in place of a sum of layers."""
    weights, biases = zip(*layers, strict=True)
    return _linear(torch.cat(weights, dim=1), torch.stack(biases).sum(dim=0))


def _scaled_queries(attention: nn.MultiheadAttention) -> nn.Linear:
    """Queries, keys and values as one layer, the scores' 1 / sqrt(D) in the queries."""
    assert isinstance(attention.in_proj_weight, Tensor)
    width = attention.embed_dim
    scale = torch.ones(3 * width, dtype=torch.float64)
    scale[:width] = (width // attention.num_heads) ** -0.5
    weight = attention.in_proj_weight.detach().double() * scale[:, None]
    return _linear(weight, attention.in_proj_bias.detach().double() * scale)


def _cross_frame_output(adapter: CrossFrameAdapter) -> tuple[Tensor, Tensor]:
    """The output layer of CFAA's attention and the one behind it as one."""
    inner, shift = _layer(adapter.temporal_block.temporal_attn.out_proj)
    up, bias = _layer(adapter.up)
    return up @ inner, up @ shift + bias
