"""From triplets to tensors: what each clip is, against a slow reading of the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import begin_run, tiny_config

from s3clip.batching import TripletSampler
from s3clip.datasets import Tracklet
from s3clip.triplets import MicroBatch, TripletDataset
from s3clip_runtime.inference.preprocess import resize_bicubic

FRAMES = 4


def dataset(
    tracklets: list[Tracklet],
    *,
    flip: float = 0.0,
    antialias: bool = True,
    direct: bool = False,
    seed: int = 0,
) -> TripletDataset:
    labels = {identity: i for i, identity in enumerate(sorted({t.identity for t in tracklets}))}
    return TripletDataset(
        TripletSampler(tracklets, 2, 2, seed),
        2,
        labels,
        clip_length=FRAMES,
        flip=flip,
        antialias=antialias,
        direct=direct,
        seed=seed,
    )


@pytest.fixture
def tracklets(tiny_world: Path, tmp_path: Path) -> list[Tracklet]:
    return begin_run(tiny_config(tiny_world), tmp_path).tracklets


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


def resized_frames(tracklet: Tracklet, size: tuple[int, int]) -> list[np.ndarray]:
    return [
        resize_bicubic(np.asarray(Image.open(tracklet.frame(i)).convert("RGB")), size)
        for i in range(len(tracklet))
    ]


def frame_numbers(clip: np.ndarray, frames: list[np.ndarray]) -> list[int]:
    return [next(i for i, frame in enumerate(frames) if np.array_equal(frame, shown)) for shown in clip]


def test_each_clip_shows_its_tracklet_in_temporal_order(tracklets: list[Tracklet]) -> None:
    data = dataset(tracklets)
    batch, triplets = data[0], data.triplets(0)
    assert batch.hr.shape == (4, FRAMES, 3, 256, 128)
    assert batch.h2l.shape == batch.lr.shape == (4, FRAMES, 3, 64, 32)
    assert batch.paired.all()
    for row, triplet in enumerate(triplets):
        assert triplet.hr is not None
        sharp = frame_numbers(pixels(batch.hr[row]), resized_frames(triplet.hr, (256, 128)))
        degraded = frame_numbers(pixels(batch.h2l[row]), resized_frames(triplet.hr, (64, 32)))
        natural = frame_numbers(pixels(batch.lr[row]), resized_frames(triplet.low[0], (64, 32)))
        assert sharp == degraded == sorted(sharp)  # the same frames, in order (A7, A23)
        assert natural == sorted(natural)
        assert batch.platform_hr[row] == batch.platform_h2l[row] == triplet.hr.platform
        assert batch.platform_lr[row] == triplet.low[0].platform
        people = sorted({t.identity for t in tracklets})
        assert people[int(batch.labels[row])] == triplet.identity


def test_a_flip_is_shared_inside_a_pair_and_by_all_frames(tracklets: list[Tracklet]) -> None:
    plain, mirrored = dataset(tracklets)[0], dataset(tracklets, flip=1.0)[0]
    for name in ("hr", "h2l", "lr"):
        ours, theirs = getattr(mirrored, name).int(), getattr(plain, name).flip(-1).int()
        # Mirrored before the resize and after it: equal but for rounding.
        assert (ours - theirs).abs().max() <= 1, name
    half = dataset(tracklets, flip=0.5)
    flips = []
    for index in range(len(half)):
        batch = half[index]
        for row in range(4):
            hr, h2l = (
                _is_mirrored(one[row], other[row]) for one, other in _pairs(batch, tracklets, half, index)
            )
            assert hr == h2l
            flips.append(hr)
    assert 0.1 < np.mean(flips) < 0.9


def _pairs(
    batch: MicroBatch, tracklets: list[Tracklet], half: TripletDataset, index: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    plain = dataset(tracklets)[index]  # draws the same frames
    return [(batch.hr, plain.hr), (batch.h2l, plain.h2l)]


def _is_mirrored(ours: torch.Tensor, plain: torch.Tensor) -> bool:
    same = (ours.int() - plain.int()).abs().max() <= 1
    mirrored = (ours.int() - plain.flip(-1).int()).abs().max() <= 1
    assert same != mirrored
    return bool(mirrored)


def test_an_identity_without_hr_fills_the_pair_with_natural_lr(tracklets: list[Tracklet]) -> None:
    low_only = [t for t in tracklets if not t.hr]
    data = dataset(low_only)
    batch, triplets = data[0], data.triplets(0)
    assert not batch.paired.any()
    for row, triplet in enumerate(triplets):
        _, second, third = triplet.low
        assert frame_numbers(pixels(batch.h2l[row]), resized_frames(second, (64, 32)))
        assert frame_numbers(pixels(batch.hr[row]), resized_frames(third, (256, 128)))


def test_aliased_degradation_is_torchs_plain_bicubic(tracklets: list[Tracklet]) -> None:
    data = dataset(tracklets, antialias=False)
    batch, triplet = data[0], data.triplets(0)[0]
    assert triplet.hr is not None
    sharp = frame_numbers(pixels(batch.hr[0]), resized_frames(triplet.hr, (256, 128)))
    picture = np.asarray(Image.open(triplet.hr.frame(sharp[0])).convert("RGB"))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].double(), size=(64, 32), mode="bicubic"
    )[0]
    difference = (batch.h2l[0, 0].double() - expected.clamp(0, 255)).abs()
    assert difference.max() <= 0.51
    assert (batch.h2l[0, 0] != dataset(tracklets)[0].h2l[0, 0]).any()


def test_without_a_super_resolver_natural_lr_comes_at_full_size_and_alone(tracklets: list[Tracklet]) -> None:
    data = dataset(tracklets, direct=True)
    batch, triplets = data[0], data.triplets(0)
    assert batch.h2l.shape[1] == 0
    for row, triplet in enumerate(triplets):
        assert frame_numbers(pixels(batch.lr[row]), resized_frames(triplet.low[0], (256, 128)))


def test_micro_batches_depend_on_seed_and_number_only(tracklets: list[Tracklet]) -> None:
    data, again = dataset(tracklets, flip=0.5), dataset(tracklets, flip=0.5)
    last = len(data) - 1
    data[0]
    assert all(torch.equal(a, b) for a, b in zip(data[last], again[last], strict=True))
    other = dataset(tracklets, flip=0.5, seed=1)
    assert not torch.equal(other[last].hr, data[last].hr)
