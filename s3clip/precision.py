"""Number formats of training: autocast regions, loss scalers and matrix products (method.md 9)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

Format = Literal["fp32", "bf16", "fp16"]

SMALLEST_SCALE = 2.0**-14
"""A loss scaler below this has halved 30 times from its start: the gradients themselves are not finite."""


@dataclass(frozen=True)
class Precision:
    """What runs in 16 bits on one device. Weights, optimizers and losses are always float32."""

    format: Format
    device: str

    @property
    def _kind(self) -> str:
        return self.device.partition(":")[0]

    def encoder(self) -> AbstractContextManager[object]:
        """Region of the visual encoder: the format as it is."""
        kind = torch.float16 if self.format == "fp16" else torch.bfloat16
        return torch.autocast(self._kind, kind, enabled=self.format != "fp32")

    def super_resolver(self) -> AbstractContextManager[object]:
        """Region of S: bf16 or float32, never fp16, in which its features overflow (method.md 9)."""
        return torch.autocast(self._kind, torch.bfloat16, enabled=self.format == "bf16")

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler of its own for one optimizer; it does nothing outside fp16."""
        return torch.amp.GradScaler(self._kind, enabled=self.format == "fp16")
