"""The antialiased bicubic: against Pillow's and torch's golden outputs and torch's own function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from s3clip.models.resize import Resize, resize_matrix
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch, resize_bicubic
from s3clip_runtime.inference.resampling import Scratch, resize_exact

GOLDEN = np.load(Path(__file__).parent / "golden" / "resize.npz")
PICTURES = ("small40x20", "big150x70")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", [(64, 32), (256, 128)])
def test_preprocessing_is_pillows_bicubic(name: str, size: tuple[int, int]) -> None:
    expected = GOLDEN[f"{name}/pil_bicubic_{size[0]}x{size[1]}"]
    np.testing.assert_array_equal(resize_bicubic(GOLDEN[name], size), expected)


def pillows(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["noise", "black and white", "smooth"])
def test_products_are_pillows_bicubic_bit_for_bit(kind: str) -> None:
    """300 sizes, wider and narrower; black and white overshoots both ends, smooth rounds many halves."""
    rng = np.random.default_rng(len(kind))
    scratch = Scratch()  # one for all: what an earlier picture left must not show
    for number in range(300):
        free = (int(rng.integers(1, 300)), int(rng.integers(1, 200)))
        size = ((64, 32), (256, 128), free)[number % 3]
        height, width = int(rng.integers(1, size[0] + 1)), int(rng.integers(1, 400))
        picture = rng.integers(0, 256, (height + 2, width + 2, 3)).astype(np.uint8)
        if kind == "black and white":
            picture = (picture > 127).astype(np.uint8) * np.uint8(255)
        elif kind == "smooth":
            picture = np.add.outer(np.arange(height + 2), np.arange(width + 2))[..., None].repeat(3, axis=2)
            picture = (picture * [1, 2, 3] // 2 % 256).astype(np.uint8)
        crop = picture[1:-1, 1:-1]
        out = np.empty((*size, 3), np.uint8)
        resize_exact(crop, out, scratch)
        np.testing.assert_array_equal(out, pillows(crop, size), err_msg=f"{crop.shape} to {size}")


def test_batches_are_pillows_bicubic_for_any_crop() -> None:
    """Large ones too, parts of a frame, mirrored ones, and those that fit already."""
    frame = np.random.default_rng(1).integers(0, 256, (700, 400, 3)).astype(np.uint8)
    crops = [
        frame[:h, :w] for h, w in ((1, 1), (40, 18), (64, 32), (65, 20), (256, 128), (257, 300), (700, 90))
    ]
    crops += [crop[:, ::-1] for crop in crops]
    for batch, size in ((lr_batch, (64, 32)), (hr_batch, (256, 128))):
        truth = np.stack([pillows(crop, size) for crop in crops])
        np.testing.assert_array_equal(batch(crops), truth)
        spread = np.zeros((len(crops), *size, 5), np.uint8)  # rows that are not in one piece
        assert batch(crops, out=spread[..., 1:4]).base is spread
        np.testing.assert_array_equal(spread[..., 1:4], truth)
        assert not spread[..., 0].any()


@pytest.mark.parametrize("name", PICTURES)
def test_matrices_give_torchs_golden_antialiased_bicubic(name: str) -> None:
    picture = torch.from_numpy(GOLDEN[name]).permute(2, 0, 1).float() / 255
    expected = GOLDEN[f"{name}/torch_bicubic_aa1_64x32"]
    resize = Resize((picture.shape[1], picture.shape[2]), (64, 32))
    # The file is fp16: values from 1 to 2 (overshoot) are rounded to 2^-10, so half of that is its error.
    np.testing.assert_allclose(resize(picture).numpy(), expected.astype(np.float32), atol=5e-4, rtol=0)


@pytest.mark.parametrize("out_size", [(256, 128), (64, 32), (31, 97), (128, 64), (1, 1)])
def test_matrices_equal_torch_up_and_down(out_size: tuple[int, int]) -> None:
    picture = torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(picture, out_size, mode="bicubic", antialias=True)
    torch.testing.assert_close(Resize((128, 64), out_size)(picture), expected, atol=1e-5, rtol=0)


def test_leading_dimensions_are_kept_and_nothing_is_saved() -> None:
    resize = Resize((8, 4), (16, 8))
    assert resize(torch.zeros(2, 5, 3, 8, 4)).shape == (2, 5, 3, 16, 8)
    assert resize.state_dict() == {}


def test_empty_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 -> 4"):
        resize_matrix(0, 4)
