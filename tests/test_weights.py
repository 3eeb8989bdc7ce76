"""Public weights into our modules: same outputs as the libraries they come from, or a clear refusal."""

from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP

from s3clip.config import load_config
from s3clip.models.model import IdentityHeads
from s3clip.models.swinir import SwinIR
from s3clip.models.text import PromptLearner, TextEncoder, prompt_token_ids
from s3clip.models.vit import VisualConfig, VisualEncoder, resize_position_embedding, sine_positions
from s3clip.models.weights import (
    clip_file,
    is_vsla,
    load_clip,
    load_swinir,
    load_vsla,
    read_state,
    swinir_file,
)
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
        read_state(tmp_path / "absent.pt")
    file = tmp_path / "text.pth"
    file.write_text("not weights")
    with pytest.raises(WeightsError, match="not a readable PyTorch file"):
        load_swinir(SwinIR(8, (2,), (2,)), file)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_swinir(SwinIR(8, (2,), (2,)), tmp_path / "list.pth")


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


def test_openais_torchscript_files_are_read(clip: CLIP, tmp_path: Path) -> None:
    """OpenAI publishes TorchScript archives in half precision, with three settings among the weights."""

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            settings = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
            for name, number in settings.items():
                self.register_buffer(name, torch.tensor(number))
            for name, value in _square(clip.state_dict()).items():
                *path, last = name.split(".")
                module: torch.nn.Module = self
                for part in path:
                    if not hasattr(module, part):
                        module.add_module(part, torch.nn.Module())
                    module = module.get_submodule(part)
                module.register_buffer(last, value.half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but the files are what they are
        archive = torch.jit.trace(Archive(), torch.zeros(1))  # type: ignore[no-untyped-call]
        archive.save(str(tmp_path / "ViT.pt"))
        state = read_state(clip_file(tmp_path / "ViT.pt", "ViT-B-16-quickgelu"))
    visual, text = encoders()
    load_clip(visual, text, state)
    assert visual.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(visual.conv1.weight, clip.visual.conv1.weight, atol=1e-3, rtol=1e-3)


def test_an_architecture_without_quickgelu_is_refused() -> None:
    with pytest.raises(WeightsError, match="quickgelu"):
        clip_file("openai", "ViT-B-16")
    with pytest.raises(WeightsError, match="quickgelu"):
        clip_file("openai", "ViT-Nonsense")


def test_files_come_from_the_libraries_own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    cached = tmp_path / "hub" / "checkpoints" / "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert swinir_file("official") == cached
    assert swinir_file(tmp_path / "mine.pth") == tmp_path / "mine.pth"


def vsla_modules(identities: int) -> dict[str, torch.nn.Module]:
    visual, text = encoders()
    return {
        "visual": visual,
        "text": text,
        "prompts": PromptLearner(identities, torch.randn(77, 32)),
        "heads": IdentityHeads(64, 16, identities),
    }


def official_vsla_state(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The keys of method.md 3, under DataParallel's prefix; `cv_embed` only with platform prompts."""
    names = {"visual": "image_encoder.", "text": "text_encoder.", "prompts": "prompt_learner.", "heads": ""}
    state = {
        f"module.{names[name]}{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    prompts = state.pop("module.image_encoder.cv_embed", None)
    if prompts is not None:
        state["module.cv_embed"] = prompts
    return state


def test_vsla_files_fill_encoder_text_prompts_and_heads() -> None:
    torch.manual_seed(2)
    source, target = vsla_modules(5), vsla_modules(5)
    state = official_vsla_state(source)
    assert {
        "module.image_encoder.transformer.resblocks.0.dat.down.weight",
        "module.classifier.weight",
        "module.prompt_learner.cls_ctx",
        "module.bottleneck.running_mean",
    } <= state.keys()
    assert is_vsla(state)
    load_vsla(target, state, "file")
    for name, module in source.items():
        ours = target[name].state_dict()
        assert all(torch.equal(value, ours[key]) for key, value in module.state_dict().items())


def test_vsla_files_of_other_identities_or_with_foreign_keys_are_refused() -> None:
    state = official_vsla_state(vsla_modules(5))
    with pytest.raises(WeightsError, match=r"cls_ctx is \(5, 4, 32\), the model needs \(6, 4, 32\)"):
        load_vsla(vsla_modules(6), state, "file")
    with pytest.raises(WeightsError, match=r"unexpected: image_encode\.x"):
        load_vsla(vsla_modules(5), {**state, "image_encode.x": torch.zeros(1)}, "file")
    del state["module.prompt_learner.suffix_prompt"]
    with pytest.raises(WeightsError, match=r"missing: suffix_prompt"):
        load_vsla(vsla_modules(5), state, "file")


@pytest.mark.parametrize("name", ["detreidx", "detreidx-vit-l"])
def test_configurations_have_the_shape_of_their_clip(name: str) -> None:
    """Against open_clip's own table: a wrong number would only show when the weights are loaded."""
    config = load_config(Path(__file__).parents[1] / "configs" / f"{name}.toml")
    clip = open_clip.get_model_config(config.clip.architecture)
    vision, text = clip["vision_cfg"], clip["text_cfg"]
    visual = config.visual
    assert (visual.width, visual.layers, visual.patch, visual.out_dim) == (
        vision["width"],
        vision["layers"],
        vision["patch_size"],
        clip["embed_dim"],
    )
    assert visual.heads == vision["width"] // 64  # open_clip's default head width
    assert (config.text.width, config.text.layers, config.text.heads) == (
        text["width"],
        text["layers"],
        text["heads"],
    )


def test_vit_l_14_has_18_by_9_patches_and_takes_clips_table() -> None:
    config = VisualConfig(
        width=64,
        layers=2,
        heads=2,
        out_dim=16,
        patch=14,
        adapter_width=8,
        adapter_heads=2,
        platform_prompt_depth=1,
    )
    visual = VisualEncoder(config)
    assert config.grid == (18, 9)
    assert resize_position_embedding(torch.randn(1 + 16 * 16, 64), config.grid).shape == (163, 64)
    tokens = visual.patch_tokens(torch.randn(2, 3, *FRAME_SIZE))
    assert tokens.shape == (2, 162, 64)
    assert visual(tokens[None], torch.tensor([1])).proj.shape == (1, 16)
