"""Random erasing, shifts and colours."""

from __future__ import annotations

import numpy as np
import torch

from s3clip.transforms import (
    ERASED_AREA,
    ERASED_ASPECT,
    erase_tracklets,
    erased_rectangle,
    jitter_colours,
    shift_pictures,
)


def test_one_rectangle_per_tracklet_is_the_same_in_all_frames_and_holds_the_fill() -> None:
    videos = torch.rand(6, 4, 3, 64, 32)
    fill = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1)
    erased = erase_tracklets(videos, 1.0, fill, np.random.default_rng(0))
    changed = (erased != videos).any(dim=2)
    assert torch.equal(changed, changed[:, :1].expand_as(changed))
    for tracklet, mask in zip(erased, changed[:, 0], strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask.sum() == len(rows) * len(columns)  # one full rectangle
        assert torch.equal(tracklet[0, :, rows[0], columns[0]], fill.flatten())
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in changed[:, 0]}) > 1  # drawn anew per tracklet


def test_erasing_has_its_probability() -> None:
    videos = torch.ones(400, 1, 3, 16, 8)
    erased = erase_tracklets(videos, 0.25, torch.zeros(3, 1, 1), np.random.default_rng(1))
    share = (erased != videos).flatten(1).any(1).float().mean().item()
    assert 0.18 < share < 0.32


def test_rectangles_keep_area_and_aspect() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        top, left, h, w = erased_rectangle(256, 128, rng)
        assert top + h <= 256
        assert left + w <= 128
        assert ERASED_AREA[0] * 0.9 < h * w / (256 * 128) < ERASED_AREA[1] * 1.1
        assert ERASED_ASPECT[0] * 0.9 < h / w < ERASED_ASPECT[1] * 1.1


def test_shifts_move_each_picture_by_its_own_whole_pixels_and_repeat_the_border() -> None:
    rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(50.0), indexing="ij")
    pictures = torch.stack((rows, columns, rows))[None].repeat(12, 1, 1, 1)
    moved = shift_pictures(pictures, np.random.default_rng(0))
    down = moved[:, 0, 50, 25] - 50
    right = moved[:, 1, 50, 25] - 25
    assert len(set(down.tolist())) > 3
    assert down.abs().max() <= 6
    assert right.abs().max() <= 3
    for picture, dy, dx in zip(moved, down, right, strict=True):
        assert torch.equal(picture[0], (rows + dy).clamp(0, 99))
        assert torch.equal(picture[1], (columns + dx).clamp(0, 49))


def test_colour_jitter_is_one_gain_a_channel() -> None:
    pictures = torch.rand(5, 3, 8, 4) + 0.1
    gain = jitter_colours(pictures, np.random.default_rng(0)) / pictures
    assert (gain.amax((2, 3)) - gain.amin((2, 3))).max() < 1e-5
    assert gain.min() >= 0.8 * 0.9 - 1e-5
    assert gain.max() <= 1.25 * 1.1 + 1e-5
    assert gain[:, 0, 0, 0].std() > 0.01
