"""Losses of both stages as pure functions of tensors.

Sources: method.md 5.1, 5.2 (ReID objective) and 7.2 (super-resolution); decisions A1, A10, A12, A13, A20.
All of them compute in float32 (or in float64, if they are given it) even inside an autocast region:
raw dot products of 512-wide features lose too much in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s3clip_runtime.errors import ConfigError

TRIPLET_MARGIN = 0.3
"""Margin on the cosine distance, which spans [-1, 1]."""

LABEL_SMOOTHING = 0.1
"""Share of the target that is spread evenly over all classes (fixed, decision A20)."""


@dataclass(frozen=True)
class ReidWeights:
    """Factors of the ReID objective's parts; defaults are the paper's (method.md 5.2)."""

    v2s: float = 1.0
    triplet: float = 1.0
    identity: float = 0.25
    image_text: float = 1.0
    text_image: float = 1.0


class ReidLoss(NamedTuple):
    """The weighted total and its unweighted parts, each a scalar tensor."""

    total: Tensor
    v2s: Tensor
    triplet: Tensor
    identity: Tensor
    image_text: Tensor
    text_image: Tensor


def supcon(a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Supervised contrast of rows `a` with columns `b`: raw dot products, temperature 1 (decision A1).

    Args:
        a: float (N, d). b: float (M, d).
        labels_a: int64 (N,). labels_b: int64 (M,). Each row needs a column of its own label;
            a row without one makes the result NaN.

    Returns:
        scalar: - mean_i mean_{j: labels_b[j] = labels_a[i]} log softmax_j(a_i . b_j).
    """
    log_share = _dot(a, b).log_softmax(dim=1)
    positive = labels_a[:, None] == labels_b[None, :]
    per_row = log_share.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)
    return -per_row.mean()


def triplet_loss(features: Tensor, labels: Tensor, margin: float = TRIPLET_MARGIN) -> Tensor:
    """Batch-hard triplet loss on the cosine distance -cos (method.md 5.2).

    A row that has no other row of its label is its own positive. A batch of one identity gives 0.

    Args:
        features: float (N, d), not normalised. labels: int64 (N,). margin: in units of the cosine.
    """
    unit = F.normalize(_full(features), dim=1)
    similarity = _dot(unit, unit)
    same = labels[:, None] == labels[None, :]
    hardest_positive = similarity.masked_fill(~same, float("inf")).amin(dim=1)
    hardest_negative = similarity.masked_fill(same, float("-inf")).amax(dim=1)
    return F.relu(hardest_negative - hardest_positive + margin).mean()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with the fixed target 0.9 onehot + 0.1 / N (decision A20), mean over the batch.

    Args:
        logits: float (B, N). labels: int64 (B,) in [0, N).
    """
    return F.cross_entropy(_full(logits), labels, label_smoothing=LABEL_SMOOTHING)


CrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, N) and labels int64 (B,) to a scalar."""


def reid_loss(
    features: tuple[Tensor, Tensor, Tensor],
    scores: tuple[Tensor, Tensor],
    text_all: Tensor,
    labels: Tensor,
    weights: ReidWeights,
    entropies: Sequence[CrossEntropy] = (smoothed_cross_entropy,) * 3,
) -> ReidLoss:
    """The stage-2 ReID objective of one micro-batch (method.md 5.2).

    Args:
        features: last (B, d), final (B, d), proj (B, o): pooled over time, before batch norm.
        scores: logits (B, N) of the two classifiers, on final and on proj.
        text_all: (N, o), one cached text feature an identity.
        labels: int64 (B,) in [0, N).
        weights: factors of the parts.
        entropies: of the logits against the texts and of the two classifiers (A20).
    """
    proj = features[2]
    text = text_all[labels]
    v2s = entropies[0](_dot(proj, text_all), labels)
    triplet = torch.stack([triplet_loss(feature, labels) for feature in features]).sum()
    identity = torch.stack(
        [entropy(score, labels) for entropy, score in zip(entropies[1:], scores, strict=True)]
    ).sum()
    image_text = supcon(proj, text, labels, labels)
    text_image = supcon(text, proj, labels, labels)
    total = (
        weights.v2s * v2s
        + weights.triplet * triplet
        + weights.identity * identity
        + weights.image_text * image_text
        + weights.text_image * text_image
    )
    return ReidLoss(total, v2s, triplet, identity, image_text, text_image)


def pixel_loss(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the super-resolved and the true video (method.md 7.2, A13).

    Args:
        sr: float (B, T, 3, H, W) in about [0, 1]. hr: the same shape, in [0, 1].
        mask: bool (B,), tracklets that count (A10); none left gives 0, still joined to the graph.
            What is masked out must be finite.
    """
    _check_same_shape(sr, hr)
    return _tracklet_mean(_full(sr) - _full(hr), mask)


def temporal_loss(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the two videos' frame-to-frame changes (method.md 7.2).

    Arguments as of `pixel_loss`.

    Raises:
        ConfigError: the clips have fewer than two frames.
    """
    _check_same_shape(sr, hr)
    if sr.shape[1] < 2:
        raise ConfigError(
            f"the temporal loss compares neighbouring frames, so clips need at least 2, got {sr.shape[1]}; "
            "use longer clips or leave this loss out"
        )
    error = _full(sr) - _full(hr)
    return _tracklet_mean(error[:, 1:] - error[:, :-1], mask)


def tdp_loss(features_sr: Tensor, features_hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """Task-driven perceptual loss: L1 between what the encoder sees in both videos (7.2, A12).

    Args:
        features_sr: float (B, d), class token after `ln_post`, mean over time, of the SR video.
        features_hr: the same of the true video; no gradient flows into it.
        mask: as of `pixel_loss`.
    """
    _check_same_shape(features_sr, features_hr)
    return _tracklet_mean(_full(features_sr) - _full(features_hr.detach()), mask)


def _full(x: Tensor) -> Tensor:
    """At least float32: half precision is widened, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """All dot products (N, M). Autocast would turn this product into half precision, so it is off here."""
    with torch.autocast(a.device.type, enabled=False):
        return _full(a) @ _full(b).T


def _tracklet_mean(difference: Tensor, mask: Tensor | None) -> Tensor:
    """Mean absolute value over the tracklets that count; all have the same number of elements."""
    per_tracklet = difference.abs().flatten(1).mean(dim=1)
    if mask is None:
        return per_tracklet.mean()
    return (per_tracklet * mask).sum() / mask.sum().clamp(min=1)


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    """Unequal shapes would broadcast without a word. A ValueError, for only a bug can cause it."""
    if a.shape != b.shape:
        raise ValueError(f"both sides of a loss need one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
