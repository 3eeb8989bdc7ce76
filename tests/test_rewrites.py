"""What is rewritten for export against s3clip's own network in float64, each rewrite alone and together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.outliers import plant_outliers
from benchmarks.rewrites import (
    CROPS,
    ENCODERS,
    PICTURES,
    PlainAttention,
    PlainFeedForward,
    soft_pictures,
)
from s3clip.models.model import S3Clip, embedding
from s3clip.models.resize import Kernel, resize_matrix
from s3clip.models.swinir import SwinIR, cut_windows
from s3clip.models.vit import VisualConfig, VisualEncoder
from s3clip_export.onnx import GraphSource, export_graph, graph_problems
from s3clip_export.rewrites.encoder import (
    ClassAttention,
    JointAttention,
    JointFeedForward,
    LeanEncoder,
    prompted_blocks,
)
from s3clip_export.rewrites.patches import compress
from s3clip_export.rewrites.swinir import RewrittenSwinIR, window_order
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.spec import FRAME_SIZE, SR_SIZE

TOLERANCE = 1e-5
"""Of a number of a unit embedding."""

TINY = VisualConfig(
    width=64, layers=3, heads=4, out_dim=16, adapter_width=16, adapter_heads=2, platform_prompt_depth=2
)
FRAMES = 3

CONFIGS = {
    "prompts in the first blocks": TINY,
    "prompts in the last block too": dataclasses.replace(TINY, platform_prompt_depth=3),
    "three prompts a block": dataclasses.replace(TINY, platform_prompts=3),
    "no prompts": dataclasses.replace(TINY, platform_prompt_depth=0),
    "adapters that begin at zero": dataclasses.replace(TINY, zero_init_up=True),
    "patches of ViT-L/14": dataclasses.replace(TINY, patch=14),
    "another adapter": dataclasses.replace(TINY, adapter_width=24, adapter_heads=3),
    "two blocks": dataclasses.replace(TINY, layers=2, platform_prompt_depth=1),
    "three platforms": dataclasses.replace(TINY, platforms=3),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tiny(config: VisualConfig = TINY, *, kernel: Kernel = "bicubic") -> S3Clip:
    torch.manual_seed(0)
    encoder = VisualEncoder(config)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias") or name == "cv_embed":  # zero or small at first, so no mistake would show
            nn.init.normal_(parameter, std=0.5)
        elif "attn" in name:  # or every token looks at all others alike
            parameter.data *= 3
    model = S3Clip(nn.Identity(), encoder, normalise_first=False, kernel=kernel)
    return model.eval().requires_grad_(False)


def clips(config: VisualConfig) -> tuple[Tensor, Tensor]:
    """Tokens of as many clips as there are platforms, and one platform each."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(config.platforms, FRAMES, config.patches, config.width, generator=generator)
    return tokens, torch.arange(config.platforms)


def exact(encoder: VisualEncoder, tokens: Tensor, platform: Tensor) -> Tensor:
    return embedding(copy.deepcopy(encoder).double()(tokens.double(), platform))


def largest(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max())


@pytest.mark.parametrize("rewrite", ENCODERS)
def test_every_rewrite_alone_keeps_the_embedding(rewrite: str) -> None:
    model = tiny()
    plant_outliers(model, seed=1)
    tokens, platform = clips(TINY)
    expected = exact(model.visual, tokens, platform)
    assert largest(ENCODERS[rewrite](model.visual).eval()(tokens, platform), expected) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_all_rewrites_keep_the_embedding_of_every_encoder(name: str) -> None:
    encoder = tiny(CONFIGS[name]).visual
    tokens, platform = clips(CONFIGS[name])
    expected = exact(encoder, tokens, platform)
    lean = LeanEncoder(encoder)
    assert largest(lean(tokens, platform), expected) < TOLERANCE
    assert largest(lean(tokens[:1], platform[:1]), expected[:1]) < TOLERANCE
    moved = lean(tokens, platform.roll(1))
    assert (largest(moved, expected) > 1e-3) == (encoder.cv_embed is not None)
    assert largest(lean(tokens.roll(1, dims=2), platform), expected) > 1e-3


@pytest.mark.parametrize("index", [0, 2])
def test_each_half_of_a_block_is_the_plain_half(index: int) -> None:
    """The embedding is a mean of class tokens alone; here every token counts."""
    encoder = tiny(dataclasses.replace(TINY, platform_prompt_depth=3)).visual
    block, prompts = prompted_blocks(encoder)[index]
    x, owners = torch.randn(2 * FRAMES, 9, TINY.width), torch.tensor([0, 0, 0, 1, 1, 1])
    plain = copy.deepcopy(PlainAttention(block, prompts)).double()(x.double(), FRAMES, owners)
    bound = TOLERANCE * float(plain.abs().max())
    assert largest(JointAttention(block, prompts)(x, FRAMES, owners), plain) < bound
    assert largest(ClassAttention(block, prompts)(x, FRAMES, owners), plain[:, :1]) < bound
    plain = copy.deepcopy(PlainFeedForward(block)).double()(x.double())
    assert largest(JointFeedForward(block)(x), plain) < TOLERANCE * float(plain.abs().max())


def test_building_one_changes_nothing_of_the_network() -> None:
    encoder = tiny().visual
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    LeanEncoder(encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("patch", [16, 14, 5])
def test_a_resize_is_few_numbers_a_patch_to_its_borders(kernel: Kernel, patch: int) -> None:
    resize = resize_matrix(64, 128, kernel)
    made = compress(resize, patch)
    patches = 128 // patch
    rows = np.asarray(made.reduce).reshape(patches, -1, 64)
    whole = np.einsum("pr,krn->kpn", np.asarray(made.expand), rows).reshape(-1, 64)
    np.testing.assert_allclose(whole, resize.double().numpy()[: patches * patch], atol=1e-12, rtol=0)
    assert made.reduce.abs().max() < 1.5
    assert made.expand.abs().max() < 1.0 + 1e-12
    ranks = {("bicubic", 16): 12, ("bilinear", 16): 10, ("bicubic", 14): 10, ("bilinear", 14): 9}
    assert made.expand.shape == (patch, ranks.get((kernel, patch), 5))


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("patch", [16, 14])
def test_tokens_of_pictures_and_crops_are_those_of_the_slow_way(kernel: Kernel, patch: int) -> None:
    """In NumPy and float64: two resize matrices, normalisation, a loop over patches."""
    model = tiny(dataclasses.replace(TINY, patch=patch), kernel=kernel)
    model.mean, model.std = (
        torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
        torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1),
    )
    pictures = soft_pictures(2, SR_SIZE, seed=3)
    rows, columns = (resize_matrix(n, 2 * n, kernel).double().numpy() for n in SR_SIZE)
    slow = slow_tokens(model, rows @ pictures.double().numpy() @ columns.T)
    assert largest(PICTURES["all"](model)(pictures), slow) < TOLERANCE * float(slow.abs().max())
    crops = (soft_pictures(2, FRAME_SIZE, seed=4) * 255).byte().permute(0, 2, 3, 1).contiguous()
    slow = slow_tokens(model, crops.permute(0, 3, 1, 2).double().numpy() / 255)
    assert largest(CROPS["all"](model)(crops), slow) < TOLERANCE * float(slow.abs().max())


def slow_tokens(model: S3Clip, frames: NDArray[np.float64]) -> Tensor:
    normal = (frames - model.mean.double().numpy()) / model.std.double().numpy()
    weight, patch = model.visual.conv1.weight.double().numpy(), model.visual.config.patch
    height, width = model.visual.config.grid
    corners = [(patch * y, patch * x) for y in range(height) for x in range(width)]
    tokens = [
        np.tensordot(normal[:, :, y : y + patch, x : x + patch], weight, ([1, 2, 3], [1, 2, 3]))
        for y, x in corners
    ]
    return torch.from_numpy(np.stack(tokens, axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 3])
def test_the_exported_encoder_keeps_the_contract_and_the_embedding(depth: int, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, platform_prompt_depth=depth)
    encoder = tiny(config).visual
    tokens, platform = clips(config)
    path, names = tmp_path / "encode.onnx", ("tokens", "platform")
    export_graph(GraphSource("encode", LeanEncoder(encoder), (tokens, platform), names, ("embedding",)), path)
    assert graph_problems(onnx.load(path)) == []
    session = OrtSession(path)
    expected = exact(encoder, tokens, platform)
    for count in (1, 2):
        found = session.run({"tokens": tokens[:count].numpy(), "platform": platform[:count].numpy()})
        assert largest(torch.from_numpy(found["embedding"]), expected[:count]) < TOLERANCE


@pytest.mark.parametrize("shift", [0, 4])
def test_tokens_in_window_order_are_the_rolled_and_cut_picture(shift: int) -> None:
    picture = torch.arange(24 * 16).reshape(1, 24, 16, 1)
    rolled = torch.roll(picture, (-shift, -shift), dims=(1, 2))
    expected = cut_windows(rolled, 8).flatten()
    np.testing.assert_array_equal(window_order((24, 16), 8, shift), expected)


@pytest.mark.parametrize(
    ("size", "depths", "heads"),
    [((64, 32), (2, 2), (2, 2)), ((16, 8), (3, 1), (2, 4)), ((8, 8), (2,), (1,)), ((24, 40), (6,), (3,))],
)
def test_a_rewritten_swinir_is_the_plain_one(
    size: tuple[int, int], depths: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    """With weights that are felt: learnt biases, scales and shifts of LayerNorms, sharp attention."""
    torch.manual_seed(5)
    plain = SwinIR(embed_dim=12, depths=depths, num_heads=heads).eval()
    for name, weight in plain.named_parameters():
        if name.endswith("bias_table") or "norm" in name or name.endswith(".bias"):
            weight.add_(0.5 * torch.randn(weight.shape))
        elif "qkv" in name:
            weight.mul_(20)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    rewritten = RewrittenSwinIR(plain, size).eval()
    pictures = soft_pictures(3, size, seed=6)
    expected = copy.deepcopy(plain).double()(pictures.double())
    assert largest(rewritten(pictures), expected) < TOLERANCE * float(expected.abs().max())
    assert largest(plain(pictures), expected) < TOLERANCE * float(expected.abs().max())
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
