"""The learnable text prompts and CLIP's text encoder (method.md 4.1 and 4.2, decision A18)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3clip_runtime.errors import ConfigError

CONTEXT_LENGTH = 77
"""Tokens of every CLIP text."""

SOS_ID, EOS_ID = 49406, 49407
PERIOD_ID = 269
SHARED_ID = 335
"""Placeholder of the prompts that all identities share; its embedding is never used."""
IDENTITY_ID = 343
"""Placeholder of an identity's own prompts; its embedding is never used."""


def prompt_token_ids(n_prefix: int = 8, n_id: int = 4, n_suffix: int = 8) -> list[int]:
    """The 77 ids of the template: SOS, shared, own, shared, ".", EOS, padding with 0.

    Raises:
        ConfigError: the prompts leave no room for SOS, ".", and EOS.
    """
    learnt = [SHARED_ID] * n_prefix + [IDENTITY_ID] * n_id + [SHARED_ID] * n_suffix
    ids = [SOS_ID, *learnt, PERIOD_ID, EOS_ID]
    if len(ids) > CONTEXT_LENGTH:
        raise ConfigError(
            f"{n_prefix} + {n_id} + {n_suffix} prompt tokens are too many; a text holds {CONTEXT_LENGTH - 3}"
        )
    return ids + [0] * (CONTEXT_LENGTH - len(ids))


class PromptLearner(nn.Module):
    """Learnt prompts: one shared frame of tokens around a few tokens for each identity.

    Args:
        num_identities: training identities.
        template: (77, width), CLIP's frozen token embedding of `prompt_token_ids` (same three counts). Only
            the rows of SOS, ".", EOS and padding are kept.
        n_prefix: shared tokens in front.
        n_id: tokens of an identity.
        n_suffix: shared tokens behind.

    Attributes:
        eos_index: position of EOS, where `TextEncoder` reads the text feature (22 by default).

    Raises:
        ConfigError: the template is not 77 tokens long, or the prompts do not fit in it.
    """

    token_prefix: Tensor
    token_suffix: Tensor

    def __init__(
        self, num_identities: int, template: Tensor, n_prefix: int = 8, n_id: int = 4, n_suffix: int = 8
    ) -> None:
        super().__init__()
        if template.dim() != 2 or template.shape[0] != CONTEXT_LENGTH:
            raise ConfigError(
                f"prompt template is {tuple(template.shape)}; it must be ({CONTEXT_LENGTH}, width); "
                "embed prompt_token_ids() with CLIP's token embedding"
            )
        self.eos_index = prompt_token_ids(n_prefix, n_id, n_suffix).index(EOS_ID)
        width = template.shape[1]
        self.cls_ctx = nn.Parameter(0.02 * torch.randn(num_identities, n_id, width))
        self.prefix_prompt = nn.Parameter(0.02 * torch.randn(1, n_prefix, width))
        self.suffix_prompt = nn.Parameter(0.02 * torch.randn(1, n_suffix, width))
        self._learnt = n_prefix + n_id + n_suffix
        self.register_buffer("token_prefix", torch.empty(1, 1, width))
        self.register_buffer("token_suffix", torch.empty(1, CONTEXT_LENGTH - 1 - self._learnt, width))
        self.set_template(template)

    def set_template(self, template: Tensor) -> None:
        """Take SOS, ".", EOS and padding from another (77, width) template."""
        frozen = template.detach()[None]
        self.token_prefix.copy_(frozen[:, :1])
        self.token_suffix.copy_(frozen[:, 1 + self._learnt :])

    def forward(self, labels: Tensor) -> Tensor:
        """Prompts of identities: int64 (N,) in [0, num_identities) to float (N, 77, width)."""
        prefix, shared_before, shared_after, rest = (
            part.expand(labels.shape[0], -1, -1)
            for part in (self.token_prefix, self.prefix_prompt, self.suffix_prompt, self.token_suffix)
        )
        return torch.cat([prefix, shared_before, self.cls_ctx[labels], shared_after, rest], dim=1)


class TextEncoder(nn.Module):
    """CLIP's causal text transformer on embedded prompts; the defaults are those of ViT-B/16.

    Keys are those of OpenAI and open_clip files without `token_embedding` and `logit_scale`.

    Raises:
        ConfigError: `heads` does not divide `width`.
    """

    mask: Tensor

    def __init__(
        self,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        out_dim: int = 512,
        context: int = CONTEXT_LENGTH,
    ) -> None:
        from open_clip.transformer import QuickGELU, Transformer

        super().__init__()
        if width % heads:
            raise ConfigError(f"text encoder: heads {heads} must divide width {width}")
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context, width))
        self.transformer: nn.Module = Transformer(width, layers, heads, act_layer=QuickGELU)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, out_dim))
        causal = torch.full((context, context), float("-inf")).triu(1)
        self.register_buffer("mask", causal, persistent=False)

    def forward(self, prompts: Tensor, eos_index: int) -> Tensor:
        """Text features.

        Args:
            prompts: (N, context, width).
            eos_index: position of EOS in the template, the same for all N.

        Returns:
            (N, out_dim), not normalised.
        """
        x = self.transformer(prompts + self.positional_embedding, attn_mask=self.mask)
        # LayerNorm works token by token, so only the token that is read needs it.
        final: Tensor = self.ln_final(x[:, eos_index])
        return final @ self.text_projection
