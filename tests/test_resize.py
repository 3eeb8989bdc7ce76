"""The antialiased bicubic: against Pillow's and torch's golden outputs and torch's own function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s3clip.models.resize import Resize, resize_matrix
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.preprocess import resize_bicubic

GOLDEN = np.load(Path(__file__).parent / "golden" / "resize.npz")
PICTURES = ("small40x20", "big150x70")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", [(64, 32), (256, 128)])
def test_preprocessing_is_pillows_bicubic(name: str, size: tuple[int, int]) -> None:
    expected = GOLDEN[f"{name}/pil_bicubic_{size[0]}x{size[1]}"]
    np.testing.assert_array_equal(resize_bicubic(GOLDEN[name], size), expected)


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
