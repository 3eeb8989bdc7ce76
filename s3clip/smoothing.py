"""Online label smoothing (Zhang et al. 2021), the option of decision A20 (method.md 5.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3clip.parallel import World

HARD_SHARE = 0.5
"""Weight of the plain cross entropy; the rest goes to the soft targets."""


class OnlineSmoothing(nn.Module):
    """Soft targets per class: the mean prediction for its correctly classified samples of the last epoch.

    Args:
        heads: classifiers, each with targets of its own.
        classes: N; the buffers hold 2 * heads * N^2 numbers.
    """

    targets: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, heads: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("targets", torch.full((heads, classes, classes), 1.0 / classes))
        self.register_buffer("sums", torch.zeros(heads, classes, classes))
        self.register_buffer("counts", torch.zeros(heads, classes))

    def forward(self, head: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of one classifier, mean over the batch; its predictions are noted for the next epoch.

        Args:
            head: which classifier.
            logits: float (B, N). labels: int64 (B,) in [0, N).
        """
        log_share = logits.float().log_softmax(dim=1)
        soft = -(self.targets[head][labels] * log_share).sum(dim=1).mean()
        with torch.no_grad():
            right = log_share.argmax(dim=1) == labels
            self.sums[head].index_add_(0, labels[right], log_share[right].exp())
            self.counts[head].index_add_(0, labels[right], torch.ones_like(log_share[right, 0]))
        return HARD_SHARE * F.nll_loss(log_share, labels) + (1 - HARD_SHARE) * soft

    def end_epoch(self, world: World) -> None:
        """Turn what was noted into the next targets; a class without a right prediction keeps its own."""
        world.sum([self.sums, self.counts])
        seen = self.counts > 0
        self.targets[seen] = self.sums[seen] / self.counts[seen][:, None]
        self.sums.zero_()
        self.counts.zero_()
