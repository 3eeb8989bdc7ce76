"""Public weights into our modules: same outputs as the libraries they come from, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP

from s3clip.swinir import SwinIR
from s3clip.text import TextEncoder, prompt_token_ids
from s3clip.vit import VisualConfig, VisualEncoder, sine_positions
from s3clip.weights import clip_state, load_clip, load_swinir
from s3clip_runtime.errors import ConfigError, WeightsError
from s3clip_runtime.inference.spec import FRAME_SIZE, PATCH_SIZE


@pytest.fixture(scope="module")
def clip() -> CLIP:
    """A small CLIP of open_clip with our frame size, so that its own forward is the reference."""
    torch.manual_seed(0)
    vision = {"image_size": FRAME_SIZE, "patch_size": PATCH_SIZE, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


def encoders() -> tuple[VisualEncoder, TextEncoder]:
    config = VisualConfig(
        width=64, layers=2, heads=2, out_dim=16, adapter_width=8, adapter_heads=2, platform_prompt_depth=1
    )
    return VisualEncoder(config).eval(), TextEncoder(32, 2, 2, 16).eval()


def test_clip_weights_give_clips_own_features(clip: CLIP) -> None:
    visual, text = encoders()
    template = load_clip(visual, text, _square(clip.state_dict()))
    pictures = torch.randn(2, 3, *FRAME_SIZE)
    ids = torch.tensor([prompt_token_ids()])
    with torch.no_grad():
        own_text = text(template[None], 22)
        visual.positional_embedding.copy_(clip.visual.positional_embedding)
        ours = visual(visual.patch_tokens(pictures)[:, None], None, adapters=False).proj
        torch.testing.assert_close(ours, clip.encode_image(pictures), atol=2e-5, rtol=0)
        torch.testing.assert_close(own_text, clip.encode_text(ids), atol=2e-5, rtol=0)


def _square(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same state with a 14x14 position grid, as CLIP's public files have it."""
    return {**state, "visual.positional_embedding": torch.randn(1 + 14 * 14, 64)}


def test_clip_weights_that_do_not_fit_are_listed_and_change_nothing(clip: CLIP) -> None:
    visual, text = encoders()
    before = visual.conv1.weight.clone()
    state = _square(clip.state_dict())
    del state["visual.ln_post.bias"]
    with pytest.raises(WeightsError, match=r"missing: ln_post\.bias"):
        load_clip(visual, text, state)
    assert torch.equal(visual.conv1.weight, before)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        clip_state(tmp_path / "absent.pt")
    file = tmp_path / "text.pth"
    file.write_text("not weights")
    with pytest.raises(WeightsError, match="not a readable PyTorch file"):
        load_swinir(SwinIR(8, (2,), (2,)), file)
    with pytest.raises(WeightsError, match="not a readable PyTorch file"):
        load_swinir(SwinIR(8, (2,), (2,)), tmp_path / "absent.pth")


@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_swinir_files_load_with_their_derived_buffers(tmp_path: Path, key: str | None) -> None:
    torch.manual_seed(1)
    source, target = SwinIR(8, (2,), (2,)).eval(), SwinIR(8, (2,), (2,)).eval()
    state = {**source.state_dict(), "layers.0.residual_group.blocks.1.attn_mask": torch.zeros(64, 64, 64)}
    torch.save(state if key is None else {key: state}, tmp_path / "swinir.pth")
    load_swinir(target, tmp_path / "swinir.pth")
    crops = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(source(crops), target(crops))


def test_sine_positions_tell_all_patches_apart() -> None:
    table = sine_positions((16, 8), 96)
    assert table.shape == (129, 96)
    distance = torch.cdist(table, table) + 10 * torch.eye(129)
    assert distance.min() > 0.5
    with pytest.raises(ConfigError, match="multiple of 4"):
        sine_positions((16, 8), 90)
