"""Learning rates and frame choices against golden numbers of the official code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from s3clip.schedules import stage1_lr, stage2_factor, train_frame_indices
from s3clip_runtime.errors import ConfigError, DataError
from s3clip_runtime.inference.clips import spread_indices

LENGTH = 8
COUNTS = [1, 3, 8, 9, 15, 16, 23, 100]


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, NDArray[np.generic]]]:
    with np.load(Path(__file__).parent / "golden" / "schedules_sampling.npz") as file:
        yield {key: file[key] for key in file.files}


def test_stage1_rates(golden: dict[str, NDArray[np.float64]]) -> None:
    rates = [stage1_lr(epoch) for epoch in range(1, 121)]
    np.testing.assert_allclose(rates, golden["stage1/base3.5e-4_cos120_w5_epoch1_120"], rtol=1e-12)


def test_stage2_rates(golden: dict[str, NDArray[np.float64]]) -> None:
    rates = [7.5e-5 * stage2_factor(epoch) for epoch in range(1, 121)]
    np.testing.assert_allclose(rates, golden["stage2/base7.5e-5_w10_f0.1_m60_90_epoch1_120"], rtol=1e-12)


def test_stage2_settings_move_the_schedule() -> None:
    factors = [
        stage2_factor(e, warmup=2, warmup_factor=0.5, milestones=(3, 4), gamma=0.5) for e in range(1, 6)
    ]
    assert factors == [0.75, 1.0, 0.5, 0.25, 0.25]


def test_stage1_settings_move_the_schedule() -> None:
    rates = [stage1_lr(e, base=1.0, warmup=2, warmup_start=0.0, floor=0.0, epochs=4) for e in range(1, 5)]
    np.testing.assert_allclose(rates, [0.5, 0.5, (1 - 0.5**0.5) / 2, 0.0], atol=1e-15)


@pytest.mark.parametrize("epoch", [0, 121])
def test_stage1_refuses_epochs_outside(epoch: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 120"):
        stage1_lr(epoch)


def test_stage2_refuses_epoch_zero() -> None:
    with pytest.raises(ConfigError, match="count from 1"):
        stage2_factor(0)


@pytest.mark.parametrize("count", COUNTS)
def test_training_frames_fill_the_golden_ranges(count: int, golden: dict[str, NDArray[np.int64]]) -> None:
    rng = np.random.default_rng(0)
    draws = np.array([train_frame_indices(count, LENGTH, rng) for _ in range(2000)])
    # 2000 draws of the widest range (16 frames) miss an end with a chance below 1e-50.
    np.testing.assert_array_equal(draws.min(axis=0), golden[f"sample_train/T8_len{count}_min"])
    np.testing.assert_array_equal(draws.max(axis=0), golden[f"sample_train/T8_len{count}_max"])


@pytest.mark.parametrize("count", COUNTS)
def test_evaluation_frames_are_the_golden_ones(count: int, golden: dict[str, NDArray[np.int64]]) -> None:
    assert spread_indices(count, LENGTH) == golden[f"sample_test/T8_len{count}"].tolist()


def test_one_frame_clips_come_from_the_whole_tracklet() -> None:
    rng = np.random.default_rng(1)
    assert {train_frame_indices(4, 1, rng)[0] for _ in range(200)} == {0, 1, 2, 3}


def test_training_frames_of_nothing() -> None:
    with pytest.raises(DataError, match="at least one frame"):
        train_frame_indices(0, LENGTH, np.random.default_rng(0))
