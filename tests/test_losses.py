"""Losses against golden numbers of the official code, the paper's equations, and plain facts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s3clip.losses import (
    ReidLoss,
    ReidWeights,
    pixel_loss,
    reid_loss,
    smoothed_cross_entropy,
    supcon,
    tdp_loss,
    temporal_loss,
    triplet_loss,
)
from s3clip_runtime.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-6

VideoLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.as_tensor(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return golden("losses")


@pytest.fixture(scope="module")
def equations() -> dict[str, Tensor]:
    return golden("s3_losses_from_equations")


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE)


def test_supcon_and_its_gradient(official: dict[str, Tensor]) -> None:
    image = official["supcon/image"].clone().requires_grad_()
    labels = official["supcon/labels"]
    text = official["supcon/text_all"][labels]
    image_text = supcon(image, text, labels, labels)
    text_image = supcon(text, image, labels, labels)
    assert_close(image_text.detach(), official["supcon/i2t"])
    assert_close(text_image.detach(), official["supcon/t2i"])
    (gradient,) = torch.autograd.grad(image_text + text_image, image)
    assert_close(gradient, official["supcon/grad_image_sum"])


def test_supcon_of_unequal_sides_is_the_equation_written_out() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    labels_a, labels_b = [0, 1, 0], [0, 0, 1, 2]
    rows = []
    for i, label in enumerate(labels_a):
        shares = np.exp([float(a[i] @ b[j]) for j in range(4)])
        rows.append(np.mean([np.log(shares[j] / shares.sum()) for j in range(4) if labels_b[j] == label]))
    actual = supcon(a, b, torch.tensor(labels_a), torch.tensor(labels_b))
    assert float(actual) == pytest.approx(-np.mean(rows), rel=1e-12)


def test_triplet_and_its_gradient(official: dict[str, Tensor]) -> None:
    features = official["triplet/feat"].clone().requires_grad_()
    loss = triplet_loss(features, official["triplet/labels"])
    assert_close(loss.detach(), official["triplet/cosine_m0.3"])
    (gradient,) = torch.autograd.grad(loss, features)
    assert_close(gradient, official["triplet/cosine_grad"])


def test_triplet_without_negatives_is_zero_and_finite() -> None:
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = triplet_loss(features, torch.zeros(4, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, features)
    assert float(loss.detach()) == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_triplet_of_single_samples_takes_each_as_its_own_positive() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    # cos to itself 1, to the other 0: 0 - 1 + 0.3 is below 0; with margin 1.5 it is 0.5.
    assert float(triplet_loss(features, torch.tensor([0, 1]))) == 0
    assert float(triplet_loss(features, torch.tensor([0, 1]), margin=1.5)) == pytest.approx(0.5)


def test_smoothed_cross_entropy_and_its_gradient(official: dict[str, Tensor]) -> None:
    logits = official["lsce/logits"].clone().requires_grad_()
    loss = smoothed_cross_entropy(logits, official["lsce/labels"])
    assert_close(loss.detach(), official["lsce/eps0.1"])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, official["lsce/grad"])


def total(official: dict[str, Tensor], weights: ReidWeights) -> ReidLoss:
    features = (official["total/feat_last"], official["total/feat"], official["total/feat_proj"])
    scores = (official["total/score0"], official["total/score1"])
    return reid_loss(features, scores, official["total/text_all"], official["total/labels"], weights)


def test_reid_total(official: dict[str, Tensor]) -> None:
    assert_close(total(official, ReidWeights()).total, official["total/value"])


@pytest.mark.parametrize("part", ["v2s", "triplet", "identity", "image_text", "text_image"])
def test_reid_total_is_the_weighted_sum_of_its_parts(official: dict[str, Tensor], part: str) -> None:
    nothing = {"v2s": 0.0, "triplet": 0.0, "identity": 0.0, "image_text": 0.0, "text_image": 0.0}
    loss = total(official, ReidWeights(**{**nothing, part: 2.5}))
    assert_close(loss.total, 2.5 * loss._asdict()[part])


def test_autocast_does_not_lower_the_precision(official: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(official, ReidWeights()).total
    assert loss.dtype == torch.float32
    assert_close(loss, official["total/value"])


def test_super_resolution_losses_of_the_equations(equations: dict[str, Tensor]) -> None:
    sr, hr = equations["in/sr"], equations["in/hr"]
    assert_close(pixel_loss(sr, hr), equations["out/pixel_mean"])
    assert_close(temporal_loss(sr, hr), equations["out/temporal_mean"])
    pooled = equations["in/feat_sr_frames"].mean(1), equations["in/feat_hr_frames"].mean(1)
    assert_close(tdp_loss(*pooled), equations["out/tdp_video_mean"])


@pytest.mark.parametrize("loss", [pixel_loss, temporal_loss, tdp_loss])
def test_mask_leaves_out_whole_tracklets(equations: dict[str, Tensor], loss: VideoLoss) -> None:
    sr, hr = equations["in/sr"], equations["in/hr"]
    assert_close(loss(sr, hr, torch.tensor([False, True])), loss(sr[1:], hr[1:], None))
    assert_close(loss(sr, hr, torch.tensor([True, True])), loss(sr, hr, None))


@pytest.mark.parametrize("loss", [pixel_loss, temporal_loss, tdp_loss])
def test_empty_mask_gives_zero_with_a_graph(equations: dict[str, Tensor], loss: VideoLoss) -> None:
    sr = equations["in/sr"].clone().requires_grad_()
    value = loss(sr, equations["in/hr"], torch.tensor([False, False]))
    (gradient,) = torch.autograd.grad(value, sr)
    assert float(value.detach()) == 0
    assert torch.equal(gradient, torch.zeros_like(sr))


def test_tdp_sends_no_gradient_to_the_true_video() -> None:
    features_sr = torch.ones(2, 4, requires_grad=True)
    features_hr = torch.zeros(2, 4, requires_grad=True)
    loss = tdp_loss(features_sr, features_hr)
    to_sr, to_hr = torch.autograd.grad(loss, (features_sr, features_hr), allow_unused=True)
    torch.testing.assert_close(to_sr, torch.full((2, 4), 1 / 8))
    assert to_hr is None


def test_temporal_ignores_constant_errors_and_is_bounded(equations: dict[str, Tensor]) -> None:
    sr, hr = equations["in/sr"], equations["in/hr"]
    assert float(temporal_loss(hr + 0.25, hr)) == pytest.approx(0, abs=1e-7)
    frozen = sr[:, :1].expand_as(sr), hr[:, :1].expand_as(hr)
    assert float(temporal_loss(*frozen)) == 0
    # mean|e[t+1] - e[t]| sums each frame's error at most twice: T / (T - 1) of 2 mean|e|.
    frames = sr.shape[1]
    assert float(temporal_loss(sr, hr)) <= 2 * float(pixel_loss(sr, hr)) * frames / (frames - 1)


def test_temporal_needs_two_frames() -> None:
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        temporal_loss(torch.zeros(2, 1, 3, 4, 4), torch.zeros(2, 1, 3, 4, 4))


def test_unequal_shapes_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match="one shape"):
        pixel_loss(torch.zeros(2, 3, 3, 4, 4), torch.zeros(1, 3, 3, 4, 4))
