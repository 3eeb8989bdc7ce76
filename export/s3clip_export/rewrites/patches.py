"""Pixels to patch tokens for export: normalisation, and the resize before it, inside the patch embedding.

A resize makes a patch of 16 rows out of fewer numbers than 16: of the bicubic x2 only 12 are free, 10 inside
a picture and one more at either end, where the kernel is cut off and its weights normalised. So the picture
is resized to these 12 numbers a patch and axis, and a patch is embedded from 12x12 and not from 16x16.
Nothing is approximated at the borders; one 12x12 kernel at stride 8 with padding would be off by 7e-3 there.

Patches do not overlap, so their convolution is written as the matrix product that it is: OpenVINO takes 7 ms
for it and 12 ms for the same `Conv` (8 pictures, one core, bfloat16).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from s3clip.models.model import S3Clip
from s3clip.models.resize import resize_matrix

NEGLIGIBLE = 1e-9
"""Of the largest singular value: the free directions of our resizes are above 1e-3, rounding below 1e-15."""


class Compressed(NamedTuple):
    """A resize along one axis, cut in patches: `expand` times each patch of `reduce` x.

    Attributes:
        reduce: float64 (patches * rank, n_in).
        expand: float64 (patch, rank), orthonormal columns: rounding does not grow on its way through.
    """

    reduce: Tensor
    expand: Tensor


def compress(resize: Tensor, patch: int) -> Compressed:
    """Write a resize as few numbers a patch, from which every pixel of the patch follows exactly.

    Args:
        resize: (n_out, n_in); what is left behind the last whole patch is dropped.
        patch: rows of a patch.
    """
    patches, n_in = resize.shape[0] // patch, resize.shape[1]
    pieces = resize[: patches * patch].double().reshape(patches, patch, n_in)
    basis, sizes, _ = torch.linalg.svd(pieces.transpose(0, 1).flatten(1), full_matrices=False)
    basis = basis[:, sizes > NEGLIGIBLE * sizes[0]]
    # Turned so that each number stands for the pixels at its place: values stay in the range of pixels.
    left, _, right = torch.linalg.svd(basis.T @ resize_matrix(basis.shape[1], patch, "bilinear").double())
    expand = basis @ left @ right
    return Compressed((expand.T @ pieces).flatten(0, 1), expand)


class PicturePatches(nn.Module):
    """Super-resolved pictures, float (N, 3, 128, 64), about [0, 1], to tokens (N, patches, width)."""

    mean: Tensor
    rows: Tensor
    columns: Tensor
    embed: Tensor

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        config = model.visual.config
        self.grid = config.grid
        rows = compress(model.up.rows, config.patch)
        columns = compress(model.up.columns.T, config.patch)
        # A resize keeps constants, so the mean goes first: around 0 the rounding of bfloat16 is half of that
        # around 0.45, for 200 thousand subtractions a clip.
        self.register_buffer("mean", model.mean)
        self.register_buffer("rows", rows.reduce.float())
        self.register_buffer("columns", columns.reduce.T.float().contiguous())
        weight = torch.einsum("ochw,ha,wb->cabo", _weight(model), rows.expand, columns.expand)
        self.register_buffer("embed", weight.flatten(0, 2).float())

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        x = torch.matmul(torch.matmul(self.rows, pictures - self.mean), self.columns)
        rows, columns = self.grid
        x = x.reshape(-1, 3, rows, x.shape[2] // rows, columns, x.shape[3] // columns)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, self.embed.shape[0]) @ self.embed


class CropPatches(nn.Module):
    """HR crops uint8 (N, 256, 128, 3) RGB to tokens (N, patches, width).

    Bytes are embedded as they are: floats of 16 bits hold them exactly, but not their normalised values.
    """

    embed: Tensor
    bias: Tensor

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        self.grid = model.visual.config.grid
        self.patch = model.visual.config.patch
        weight = _weight(model)
        self.register_buffer("embed", (weight / 255.0).permute(2, 3, 1, 0).flatten(0, 2).float())
        self.register_buffer("bias", -(model.mean.double().flatten() @ weight.sum(dim=(2, 3)).T).float())

    def forward(self, crops: Tensor) -> Tensor:
        """See the class."""
        rows, columns = self.grid
        seen = crops.float()[:, : rows * self.patch, : columns * self.patch]
        x = seen.reshape(-1, rows, self.patch, columns, self.patch * 3).transpose(2, 3)
        return x.reshape(-1, rows * columns, self.embed.shape[0]) @ self.embed + self.bias


def _weight(model: S3Clip) -> Tensor:
    """The patch convolution divided by the pixels' deviation: float64 (width, 3, patch, patch)."""
    return model.visual.conv1.weight.detach().double() / model.std.double()
