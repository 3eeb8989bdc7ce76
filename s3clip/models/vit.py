"""CLIP's visual encoder with the VSLA adapters and platform prompts (method.md chapters 2, 3 and 4.3).

The blocks come from open_clip, so `visual.*` keys of open_clip and OpenAI files fit one to one. The frames
of a clip are folded into the batch; only the adapter CFAA looks along time. All lengths but the batch are
Python integers, so an exported graph has a free batch and no shape arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3clip.models.adapters import CrossFrameAdapter, IntraFrameAdapter, self_attention
from s3clip_runtime.errors import ConfigError, WeightsError
from s3clip_runtime.inference.spec import FRAME_SIZE, PATCH_SIZE, PLATFORMS

ADAPTER_PARTS = frozenset({"dat", "dat_cross", "cv_embed"})
"""Parts of a dotted parameter name that mark what stage 2 trains in this encoder."""


SLOWEST_PERIOD = 20.0
"""Of `sine_positions`, in patches over 2 pi: the grids here have at most some 20 rows."""


@dataclass(frozen=True)
class VisualConfig:
    """Shape of the encoder; the defaults are CLIP ViT-B/16 with the paper's adapters.

    Attributes:
        width: channels of a token; `heads` divides it.
        layers: transformer blocks, at least 2.
        heads: attention heads of a block.
        mlp_ratio: hidden width of the MLPs as a multiple of `width`.
        out_dim: width of the projected features.
        image_size: (height, width) of a frame in pixels.
        patch: side and stride of a patch in pixels; what is left below and to the right is not seen.
        adapter_width: bottleneck of IFA and CFAA; `adapter_heads` divides it.
        adapter_heads: heads of CFAA's attention over time.
        platform_prompt_depth: first blocks that get platform prompts; 0 builds an encoder without them.
        platform_prompts: prompt tokens per block.
        platforms: number of platforms.
        zero_init_up: start the adapters as a zero contribution (not the paper's way, method.md 3).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    out_dim: int = 512
    image_size: tuple[int, int] = FRAME_SIZE
    patch: int = PATCH_SIZE
    adapter_width: int = 256
    adapter_heads: int = 4
    platform_prompt_depth: int = 9
    platform_prompts: int = 1
    platforms: int = len(PLATFORMS)
    zero_init_up: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError where the numbers do not fit together."""
        rules = {
            f"heads {self.heads} must divide width {self.width}": self.width % self.heads == 0,
            f"adapter_heads {self.adapter_heads} must divide adapter_width {self.adapter_width}": (
                self.adapter_width % self.adapter_heads == 0
            ),
            f"patch {self.patch} must fit in image_size {self.image_size}": self.patch
            <= min(self.image_size),
            f"layers {self.layers} must be at least 2": self.layers >= 2,
            f"platform_prompt_depth {self.platform_prompt_depth} must be from 0 to layers {self.layers}": (
                0 <= self.platform_prompt_depth <= self.layers
            ),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError(f"visual encoder: {'; '.join(broken)}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of one frame."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def patches(self) -> int:
        """Patch tokens of one frame."""
        return self.grid[0] * self.grid[1]


class Features(NamedTuple):
    """Class tokens averaged over the frames of a clip.

    Attributes:
        last: (B, width), output of the last block but one, no LayerNorm (x11).
        final: (B, width), after the last block and `ln_post` (x12).
        proj: (B, out_dim), `final` of each frame projected (xproj).
    """

    last: Tensor
    final: Tensor
    proj: Tensor


class TokenFeatures(NamedTuple):
    """All tokens of all frames, class token first: `Features` before selection and averaging.

    Attributes:
        last: (B * T, 1 + patches, width).
        final: (B * T, 1 + patches, width).
        proj: (B * T, 1 + patches, out_dim).
    """

    last: Tensor
    final: Tensor
    proj: Tensor


def is_adapter_parameter(name: str) -> bool:
    """Whether stage 2 trains this parameter of the encoder: the adapters and the platform prompts (A17)."""
    return not ADAPTER_PARTS.isdisjoint(name.split("."))


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """2-D sine-cosine positions for a start from random weights: float32 (1 + rows * columns, width).

    With a random table attention cannot tell head from feet for hundreds of steps. The class token has 0.

    Raises:
        ConfigError: `width` is not a multiple of 4 (sine and cosine of row and column).
    """
    if width % 4:
        raise ConfigError(f"visual.width must be a multiple of 4 to start from random weights, got {width}")
    frequencies = SLOWEST_PERIOD ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [position.flatten()[:, None] * frequencies for position in (row, column)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), table])


def resize_position_embedding(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fit CLIP's position table to another patch grid, bilinear, the class token's row kept.

    Args:
        table: (1 + g * g, D), square grid, row-major after the first row.
        grid: target (rows, columns).

    Returns:
        (1 + rows * columns, D).

    Raises:
        WeightsError: the table is not one of a square grid.
    """
    side = round((table.shape[0] - 1) ** 0.5)
    if side < 1 or side * side != table.shape[0] - 1:
        raise WeightsError(
            f"positional_embedding has {table.shape[0]} rows; 1 + g * g are needed to resize it to "
            f"{grid[0]}x{grid[1]}; use the table of a CLIP model with square pictures"
        )
    square = table[1:].T.reshape(1, -1, side, side)
    fitted = F.interpolate(square.float(), size=grid, mode="bilinear", align_corners=False).to(table.dtype)
    return torch.cat([table[:1], fitted.flatten(2).squeeze(0).T])


class AdaptedBlock(nn.Module):
    """A CLIP block with both adapters: x' = x + MSA(LN x) + CFAA(x); x' + MLP(LN x') + IFA(x')."""

    def __init__(self, config: VisualConfig) -> None:
        from open_clip.transformer import QuickGELU, ResidualAttentionBlock

        super().__init__()
        clip = ResidualAttentionBlock(config.width, config.heads, config.mlp_ratio, act_layer=QuickGELU)
        self.attn: nn.MultiheadAttention = clip.attn
        self.ln_1: nn.LayerNorm = clip.ln_1
        self.mlp: nn.Sequential = clip.mlp
        self.ln_2: nn.LayerNorm = clip.ln_2
        self.dat = IntraFrameAdapter(config.width, config.adapter_width)
        self.dat_cross = CrossFrameAdapter(config.width, config.adapter_width, config.adapter_heads)
        if config.zero_init_up:
            for up in (self.dat.up, self.dat_cross.up):
                nn.init.zeros_(up.weight)
                nn.init.zeros_(up.bias)

    def forward(self, x: Tensor, frames: int, prompts: Tensor | None, adapters: bool) -> Tensor:
        """One block.

        Args:
            x: (B * frames, L, width).
            frames: frames of a clip, T.
            prompts: (B * frames, P, width) joined to the attention only, or None.
            adapters: False runs the plain CLIP block.

        Returns:
            (B * frames, L, width).
        """
        y: Tensor = self.ln_1(x)
        if prompts is not None:
            y = torch.cat([y, prompts.to(y.dtype)], dim=1)
        y = x + self_attention(self.attn, y)[:, : x.shape[1]]
        if adapters:
            y = y + self.dat_cross(x, frames)
        out: Tensor = y + self.mlp(self.ln_2(y))
        return out + self.dat(y) if adapters else out


class BlockStack(nn.Module):
    """Holds the blocks under the key that CLIP files use; `VisualEncoder` runs them."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(AdaptedBlock(config) for _ in range(config.layers))


class VisualEncoder(nn.Module):
    """Patch tokens of clips to features. Nothing is frozen here: see `is_adapter_parameter`.

    Keys are those of CLIP's `visual.*` plus `dat`, `dat_cross` in each block and `cv_embed`
    (depth, prompts, platforms, width). The weights start random; real ones are loaded from CLIP.
    """

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.config = config
        width, scale = config.width, config.width**-0.5
        self.conv1 = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + config.patches, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = BlockStack(config)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, config.out_dim))
        self.cv_embed: nn.Parameter | None = None
        if config.platform_prompt_depth:
            shape = (config.platform_prompt_depth, config.platform_prompts, config.platforms, width)
            self.cv_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))

    def patch_tokens(self, frames: Tensor) -> Tensor:
        """Cut frames in patches and embed them, without position or class token.

        Args:
            frames: float (N, 3, height, width) of `config.image_size`, normalised by mean and deviation.

        Returns:
            (N, patches, width), patches in row-major order.

        Raises:
            ConfigError: the frames have another size.
        """
        if tuple(frames.shape[-2:]) != self.config.image_size:
            raise ConfigError(
                f"frames are {frames.shape[-2]}x{frames.shape[-1]}; this encoder takes "
                f"{self.config.image_size[0]}x{self.config.image_size[1]}; resize them first"
            )
        patches: Tensor = self.conv1(frames)
        return patches.reshape(-1, self.config.width, self.config.patches).transpose(1, 2)

    def forward(self, tokens: Tensor, platform: Tensor | None, adapters: bool = True) -> Features:
        """Encode clips.

        Args:
            tokens: (B, T, patches, width) of `patch_tokens`.
            platform: int64 (B,) platform ids, or None to leave out the platform prompts. An encoder without
                them (`platform_prompt_depth` 0) is the same for all platforms.
            adapters: False is plain CLIP, without adapters and platform prompts (stage 1).

        Raises:
            ConfigError: the tokens have another shape.
        """
        frames = tokens.shape[1]
        last, raw = self._run(tokens, platform, adapters)
        final = self.ln_post(raw[:, 0])
        return Features(*(_mean_over_frames(x, frames) for x in (last[:, 0], final, final @ self.proj)))

    def token_features(self, tokens: Tensor, platform: Tensor | None, adapters: bool = True) -> TokenFeatures:
        """As `forward`, but every token of every frame."""
        last, raw = self._run(tokens, platform, adapters)
        final = self.ln_post(raw)
        return TokenFeatures(last, final, final @ self.proj)

    def _run(self, tokens: Tensor, platform: Tensor | None, adapters: bool) -> tuple[Tensor, Tensor]:
        """Outputs of the last two blocks, each (B * T, 1 + patches, width)."""
        _, frames, patches, width = tokens.shape
        if (patches, width) != (self.config.patches, self.config.width):
            raise ConfigError(
                f"tokens are {patches} x {width} a frame; this encoder takes "
                f"{self.config.patches} x {self.config.width}; make them with its own patch_tokens"
            )
        x = self.ln_pre(self._with_class_token(tokens.reshape(-1, patches, width)))
        prompts = self._platform_prompts(platform, frames) if adapters and platform is not None else []
        last = x
        for index, block in enumerate(self.transformer.resblocks):
            last, x = x, block(x, frames, prompts[index] if index < len(prompts) else None, adapters)
        return last, x

    def _with_class_token(self, x: Tensor) -> Tensor:
        """(N, patches, width) to (N, 1 + patches, width) with positions added."""
        # Padding plus a constant instead of expand and concat: the batch size never enters the graph.
        first = F.pad(self.class_embedding[None], (0, 0, 0, self.config.patches))
        return F.pad(x, (0, 0, 1, 0)) + (self.positional_embedding + first)

    def _platform_prompts(self, platform: Tensor, frames: int) -> list[Tensor]:
        """For each of the first blocks: (B * frames, prompts, width); none without platform prompts."""
        if self.cv_embed is None:
            return []
        depth, count, _, width = self.cv_embed.shape
        chosen = self.cv_embed.index_select(2, platform).permute(0, 2, 1, 3)
        repeated = chosen[:, :, None].expand(-1, -1, frames, -1, -1).reshape(depth, -1, count, width)
        return list(repeated.unbind(0))


def _mean_over_frames(x: Tensor, frames: int) -> Tensor:
    """(B * frames, D) to (B, D)."""
    return x.reshape(-1, frames, x.shape[-1]).mean(dim=1)
