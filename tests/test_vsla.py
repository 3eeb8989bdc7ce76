"""The VSLA-CLIP visual encoder: golden numbers of the official code, open_clip's ViT, the ONNX export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from s3clip.models.vit import (
    Features,
    VisualConfig,
    VisualEncoder,
    is_adapter_parameter,
    resize_position_embedding,
)
from s3clip_runtime.errors import ConfigError, WeightsError

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5
TINY = VisualConfig(
    width=32,
    layers=3,
    heads=2,
    out_dim=16,
    image_size=(64, 32),
    adapter_width=16,
    adapter_heads=2,
    platform_prompt_depth=2,
)


class Official:
    """One golden file and the encoder that has its weights."""

    def __init__(self, name: str) -> None:
        self.numbers = np.load(GOLDEN / f"{name}.npz")
        meta = json.loads(str(self.numbers["meta/config_json"]))
        self.frames = int(meta["T"])
        self.encoder = VisualEncoder(
            VisualConfig(
                width=meta["width"],
                layers=meta["layers"],
                heads=meta["heads"],
                out_dim=meta["out_dim"],
                image_size=(64, 32),
                adapter_width=meta["alph"],
                adapter_heads=meta["adapter_heads"],
                platform_prompt_depth=meta["pbp_deep"],
                platform_prompts=meta["pbp_len"],
                platforms=meta["ncam"],
            )
        ).eval()
        keys = (key for key in self.numbers if key.startswith("sd/"))
        state = {key.removeprefix("sd/"): self.tensor(key) for key in keys}
        self.encoder.load_state_dict(state | {"cv_embed": self.tensor("in/cv_embed")}, strict=True)

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.numbers[key])

    def tokens(self) -> Tensor:
        """(B, T, patches, width); the official input is (B, C, T, H, W)."""
        video = self.tensor("in/x").transpose(1, 2)
        tokens = self.encoder.patch_tokens(video.flatten(0, 1))
        return tokens.reshape(*video.shape[:2], *tokens.shape[1:])

    def close(self, found: Tensor, key: str) -> None:
        np.testing.assert_allclose(found.numpy(), self.numbers[key], atol=TOLERANCE, rtol=0)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("vsla_visual_tiny3", "no_adapter"),
        ("vsla_visual_tiny3", "adapter"),
        ("vsla_visual_tiny3", "adapter_pbp"),
        ("vsla_visual_tiny12", "no_adapter"),
        ("vsla_visual_tiny12", "adapter"),
        ("vsla_visual_tiny12", "adapter_pbp"),
    ],
)
def test_every_token_is_the_official_one(name: str, mode: str) -> None:
    official = Official(name)
    platform = official.tensor("in/cam_label") if mode == "adapter_pbp" else None
    found = official.encoder.token_features(official.tokens(), platform, adapters=mode != "no_adapter")
    for part, key in zip(found, ("x11", "x12", "xproj"), strict=True):
        official.close(part, f"out/{mode}/{key}")


@pytest.mark.parametrize("name", ["vsla_visual_tiny3", "vsla_visual_tiny12"])
def test_features_are_class_tokens_averaged_over_the_clip(name: str) -> None:
    official = Official(name)
    found = official.encoder(official.tokens(), official.tensor("in/cam_label"))
    for part, key in zip(found, ("x11", "x12", "xproj"), strict=True):
        expected = official.numbers[f"out/adapter_pbp/{key}"][:, 0].reshape(2, official.frames, -1).mean(1)
        np.testing.assert_allclose(part.numpy(), expected, atol=TOLERANCE, rtol=0)


def test_first_block_and_its_adapters_are_the_official_ones() -> None:
    official = Official("vsla_visual_tiny3")
    block = official.encoder.transformer.resblocks[0]
    x = official.tensor("block0/in_LND").transpose(0, 1)
    found = {
        "ifa": block.get_submodule("dat")(x),
        "cfaa": block.get_submodule("dat_cross")(x, official.frames),
        "out_adapter": block(x, official.frames, None, True),
        "out_plain": block(x, official.frames, None, False),
    }
    for key, value in found.items():
        official.close(value.transpose(0, 1), f"block0/{key}")


def test_adapters_off_is_open_clips_vision_transformer() -> None:
    from open_clip.transformer import QuickGELU, VisionTransformer

    torch.manual_seed(0)
    clip = VisionTransformer((64, 32), 16, 32, 3, 2, 4.0, output_dim=16, act_layer=QuickGELU).eval()
    encoder = VisualEncoder(TINY).eval()
    report = encoder.load_state_dict(clip.state_dict(), strict=False)
    assert report.unexpected_keys == []
    assert all(is_adapter_parameter(key) for key in report.missing_keys)

    frames = torch.randn(6, 3, 64, 32)
    tokens = encoder.patch_tokens(frames).reshape(2, 3, 8, 32)
    found: Features = encoder(tokens, torch.tensor([0, 1]), adapters=False)
    torch.testing.assert_close(found.proj, clip(frames).reshape(2, 3, 16).mean(1), atol=1e-5, rtol=0)


def test_order_of_frames_does_not_matter_but_company_does() -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder(TINY).eval()
    tokens, platform = torch.randn(2, 4, 8, 32), torch.tensor([0, 1])
    there = encoder(tokens, platform)
    for a, b in zip(there, encoder(tokens[:, [2, 0, 3, 1]], platform), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    alone = encoder(tokens.flatten(0, 1)[:, None], platform.repeat_interleave(4)).proj
    assert (alone.reshape(2, 4, 16).mean(1) - there.proj).abs().max() > 1e-3


def test_platform_changes_the_features_only_with_prompts() -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder(TINY).eval()
    assert encoder.cv_embed is not None
    encoder.cv_embed.mul_(50)
    tokens = torch.randn(1, 2, 8, 32)
    ground, aerial, none = (encoder(tokens, p).final for p in (torch.tensor([0]), torch.tensor([1]), None))
    assert (ground - aerial).abs().max() > 1e-3
    assert (ground - none).abs().max() > 1e-3
    bare = VisualEncoder(VisualConfig(**{**vars(TINY), "platform_prompt_depth": 0})).eval()
    assert torch.equal(bare(tokens, torch.tensor([1])).final, bare(tokens, None).final)


def test_zero_init_up_starts_as_plain_clip() -> None:
    encoder = VisualEncoder(VisualConfig(**{**vars(TINY), "zero_init_up": True})).eval()
    tokens = torch.randn(1, 2, 8, 32)
    for a, b in zip(encoder(tokens, None), encoder(tokens, None, adapters=False), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_parameter_counts_of_vit_b16() -> None:
    with torch.device("meta"):
        encoder = VisualEncoder(VisualConfig())
    sizes = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    prompts = sizes.pop("cv_embed")
    adapters = {name: size for name, size in sizes.items() if is_adapter_parameter(name)}
    assert prompts == 9 * 2 * 768
    assert sum(sizes.values()) == 98_760_192
    assert sum(adapters.values()) == 12_619_776
    assert sum(size for name, size in adapters.items() if ".dat." in name) == 4_730_880
    assert not is_adapter_parameter("transformer.resblocks.0.update.data_norm.weight")


def test_position_table_is_resized_as_the_official_code_does() -> None:
    golden = np.load(GOLDEN / "posembed_resize.npz")
    found = resize_position_embedding(torch.from_numpy(golden["in/posemb"]), (16, 8))
    np.testing.assert_allclose(found.numpy(), golden["out/posemb_16x8"], atol=1e-6, rtol=0)
    with pytest.raises(WeightsError, match="129 rows"):
        resize_position_embedding(found, (8, 8))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="heads 5 must divide width 32"):
        VisualConfig(width=32, heads=5)
    bare = VisualEncoder(VisualConfig(**{**vars(TINY), "platform_prompt_depth": 0}))
    assert "cv_embed" not in bare.state_dict()
    with pytest.raises(ConfigError, match="9 x 32"):
        bare(torch.zeros(1, 2, 9, 32), None)
    with pytest.raises(ConfigError, match="32x64"):
        bare.patch_tokens(torch.zeros(1, 3, 32, 64))


@pytest.mark.slow
def test_onnx_has_a_free_batch_and_no_shape_arithmetic(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    encoder = VisualEncoder(TINY).eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        encoder,
        (torch.randn(2, 4, 8, 32), torch.tensor([0, 1])),
        path,
        dynamo=True,
        opset_version=18,
        input_names=["tokens", "platform"],
        dynamic_shapes=({0: batch}, {0: batch}),
        verbose=False,
    )
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators.isdisjoint({"Loop", "If", "Shape", "ScatterND"})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        tokens, platform = torch.randn(count, 4, 8, 32), torch.arange(count) % 2
        found = session.run(None, {"tokens": tokens.numpy(), "platform": platform.numpy()})
        for a, b in zip(found, encoder(tokens, platform), strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-5, rtol=0)
