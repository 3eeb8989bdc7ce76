"""The antialiased resize as two constant matrices (decision A7).

The kernels are those of Pillow and of torch with `antialias=True`: bicubic has a = -0.5; both are stretched
when shrinking, with weights normalised at the borders. As matrices a resize exports to two MatMul nodes and
has a plain gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from s3clip_runtime.errors import ConfigError

Kernel = Literal["bicubic", "bilinear"]

CUBIC_A = -0.5
"""Parameter of the cubic kernel; torch without antialias would use -0.75."""


def resize_matrix(n_in: int, n_out: int, kernel: Kernel = "bicubic") -> Tensor:
    """Weights that resize `n_in` samples to `n_out`: float32 (n_out, n_in), each row sums to 1.

    Raises:
        ConfigError: a length is below 1.
    """
    if min(n_in, n_out) < 1:
        raise ConfigError(f"resize {n_in} -> {n_out}: both lengths must be at least 1")
    scale = n_in / n_out
    centres = (torch.arange(n_out, dtype=torch.float64) + 0.5) * scale
    samples = torch.arange(n_in, dtype=torch.float64) + 0.5
    # Shrinking widens the kernel over all samples that an output pixel covers: this is the antialiasing.
    distance = (samples - centres[:, None]) / max(scale, 1.0)
    weights = _cubic(distance) if kernel == "bicubic" else (1 - distance.abs()).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, zero outside (-2, 2)."""
    x = x.abs()
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


class Resize(nn.Module):
    """Resize pictures of one fixed size to another; equal to torch's antialiased resize to 1e-5.

    Keep it out of autocast: a matmul in 16 bits would round the pixels.

    Args:
        in_size: (height, width) of the input.
        out_size: (height, width) of the output.
        kernel: the filter.

    Raises:
        ConfigError: a length is below 1.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self, in_size: tuple[int, int], out_size: tuple[int, int], kernel: Kernel = "bicubic"
    ) -> None:
        super().__init__()
        self.register_buffer("rows", resize_matrix(in_size[0], out_size[0], kernel), persistent=False)
        columns = resize_matrix(in_size[1], out_size[1], kernel).T.contiguous()
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Float (..., in_height, in_width) to (..., out_height, out_width); may overshoot its range."""
        return torch.matmul(self.rows, torch.matmul(pictures, self.columns))
