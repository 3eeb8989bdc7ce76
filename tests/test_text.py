"""Text prompts and the text encoder against the numbers of the official code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s3clip.models.text import PromptLearner, TextEncoder, prompt_token_ids
from s3clip_runtime.errors import ConfigError

GOLDEN = np.load(Path(__file__).parent / "golden" / "vsla_text_tiny.npz")
TOLERANCE = 2e-5


def fake_embedding(ids: list[int], width: int) -> torch.Tensor:
    """The token embedding that the golden prompts were made with: e[id, k] = sin(0.001 id + 0.01 k)."""
    return torch.sin(0.001 * torch.tensor(ids)[:, None] + 0.01 * torch.arange(width)).float()


def test_template_has_the_official_token_ids() -> None:
    np.testing.assert_array_equal(prompt_token_ids(), GOLDEN["in/tokens_learnable"][0])


@pytest.mark.parametrize("template", ["learnable", "base"])
def test_text_features_are_the_official_ones(template: str) -> None:
    encoder = TextEncoder(width=32, layers=2, heads=2, out_dim=16).eval()
    keys = (key for key in GOLDEN if key.startswith("sd/"))
    encoder.load_state_dict({k.removeprefix("sd/"): torch.from_numpy(GOLDEN[k]) for k in keys}, strict=True)
    eos_index = int(GOLDEN[f"in/tokens_{template}"].argmax())
    with torch.no_grad():
        found = encoder(torch.from_numpy(GOLDEN["in/prompts"]), eos_index)
    np.testing.assert_allclose(found.numpy(), GOLDEN[f"out/text_{template}"], atol=TOLERANCE, rtol=0)


def test_prompts_are_the_official_ones() -> None:
    learner = PromptLearner(4, fake_embedding(prompt_token_ids(), 512))
    names = ("cls_ctx", "prefix_prompt", "suffix_prompt")
    learnt = {name: torch.from_numpy(GOLDEN[f"prompt_learnable/{name}"]).float() for name in names}
    assert {name: value.shape for name, value in learnt.items()} == {
        name: parameter.shape for name, parameter in learner.named_parameters()
    }
    report = learner.load_state_dict(learnt, strict=False)
    assert report.unexpected_keys == []
    assert report.missing_keys == ["token_prefix", "token_suffix"]
    assert learner.token_suffix.shape == (1, 56, 512)
    assert learner.eos_index == 22
    with torch.no_grad():
        found = learner(torch.from_numpy(GOLDEN["prompt/labels"]))
    assert found.shape == (3, 77, 512)
    expected = GOLDEN["prompt_learnable/out_first32"]
    np.testing.assert_allclose(found[:, :, :32].numpy(), expected, atol=TOLERANCE, rtol=0)


def test_text_after_eos_is_not_seen() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(width=32, layers=2, heads=2, out_dim=16).eval()
    prompts = torch.randn(2, 77, 32)
    changed = prompts.clone()
    changed[:, 23:] = 0
    with torch.no_grad():
        torch.testing.assert_close(encoder(prompts, 22), encoder(changed, 22), atol=1e-5, rtol=0)
        assert (encoder(prompts, 23) - encoder(changed, 23)).abs().max() > 1e-3


def test_only_the_learnt_prompts_get_gradients() -> None:
    learner = PromptLearner(3, torch.randn(77, 16, requires_grad=True))
    learner(torch.tensor([1, 1])).sum().backward()
    assert {name for name, p in learner.named_parameters() if p.grad is not None} == {
        "cls_ctx",
        "prefix_prompt",
        "suffix_prompt",
    }
    assert learner.cls_ctx.grad is not None
    assert learner.cls_ctx.grad.flatten(1).abs().sum(1).tolist() == [0.0, 2.0 * 4 * 16, 0.0]


def test_misfitting_templates_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(76, 16\)"):
        PromptLearner(3, torch.zeros(76, 16))
    with pytest.raises(ConfigError, match="too many"):
        prompt_token_ids(n_prefix=40, n_id=4, n_suffix=40)
    with pytest.raises(ConfigError, match="heads 3"):
        TextEncoder(width=32, heads=3)
