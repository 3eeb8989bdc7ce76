"""Capture times against a simulated camera whose true capture times are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from s3clip_runtime.streams.frames import Clock
from s3clip_runtime.streams.reading.clock import MAX_SKEW_S, STEP_S, CameraClock

NOON = 1_800_000_000.0
FPS = 10


@dataclass
class Seen:
    """What a clock said about frames, one entry a frame."""

    captured: list[float]
    times: list[float]
    clocks: list[Clock]
    lags: list[float | None]

    @property
    def errors(self) -> list[float]:
        return [time - truth for time, truth in zip(self.times, self.captured, strict=True)]


def film(
    clock: CameraClock,
    frames: int,
    *,
    begin_s: float = NOON,
    delay_s: Callable[[int], float] = lambda index: 0.2,
    pts_s: Callable[[int], float | None] = lambda index: index / FPS,
    report_from: int | None = None,
    camera_ahead_s: float = 0.0,
    our_step_s: Callable[[int], float] = lambda index: 0.0,
) -> Seen:
    """One connection, from its first frame: the camera films at 10 fps and its stream begins at time stamp 0.

    Args:
        delay_s: seconds that each frame is on its way; none overtakes another.
        pts_s: time stamp of each frame.
        report_from: first frame that comes after an RTCP report.
        camera_ahead_s: error of the camera's clock.
        our_step_s: error of our clock when each frame comes.
    """
    clock.connected()
    seen = Seen([], [], [], [])
    arrived = begin_s
    for index in range(frames):
        captured = begin_s + index / FPS
        arrived = max(arrived, captured + delay_s(index))
        reported = report_from is not None and index >= report_from
        time_s, kind = clock.stamp(
            pts_s=pts_s(index),
            start_realtime_s=begin_s + camera_ahead_s if reported else None,
            arrived_unix_s=arrived + our_step_s(index),
        )
        seen.captured.append(captured)
        seen.times.append(time_s)
        seen.clocks.append(kind)
        seen.lags.append(clock.lag_s)
    assert all(np.diff(seen.times) > STEP_S * 0.99)
    assert all(lag is None or lag >= 0 for lag in seen.lags)
    return seen


def test_camera_clock_gives_the_time_of_capture_and_the_lag() -> None:
    seen = film(CameraClock(), 50, report_from=0, delay_s=lambda index: 0.2 + 0.1 * (index % 3))
    assert set(seen.clocks) == {"camera"}
    np.testing.assert_allclose(seen.times, seen.captured, atol=1e-6)
    assert 0.2 <= float(seen.lags[-1] or 0) <= 0.4


def test_without_reports_times_are_those_of_arrival() -> None:
    clock = CameraClock()
    seen = film(clock, 50)
    assert set(seen.clocks) == {"arrival"}
    np.testing.assert_allclose(seen.errors, 0.2, atol=1e-6)
    assert clock.lag_s == pytest.approx(0, abs=0.01)
    assert clock.skew_s is None


def test_times_go_on_rising_when_reports_begin() -> None:
    """Arrival is 1.5 s after capture: the switch at frame 20 would go back by that."""
    seen = film(CameraClock(), 100, report_from=20, delay_s=lambda index: 1.5)
    assert seen.clocks == ["arrival"] * 20 + ["camera"] * 80
    steps = np.diff(seen.times)
    assert steps.min() > 0.04  # half speed, not a heap of frames with one time
    assert seen.errors[-1] == pytest.approx(0, abs=1e-6)


def test_reconnecting_keeps_the_scale_until_the_next_report() -> None:
    clock = CameraClock()
    film(clock, 50, report_from=0, camera_ahead_s=-7)
    seen = film(clock, 50, report_from=20, camera_ahead_s=-7, begin_s=NOON + 60)
    assert set(seen.clocks) == {"camera"}
    np.testing.assert_allclose(seen.errors, -7, atol=0.05)


def test_first_frame_has_no_time_stamp() -> None:
    seen = film(CameraClock(), 30, report_from=0, pts_s=lambda i: None if i == 0 else i / FPS)
    assert seen.clocks[0] == "arrival"
    assert seen.errors[-1] == pytest.approx(0, abs=1e-6)


def test_never_a_time_stamp() -> None:
    clock = CameraClock()
    seen = film(clock, 30, pts_s=lambda index: None)
    np.testing.assert_allclose(seen.errors, 0.2, atol=1e-6)
    assert clock.lag_s is None


@pytest.mark.parametrize("report_from", [None, 0])
@pytest.mark.parametrize(
    "pts_s",
    [
        lambda i: i / FPS + (5 if i >= 30 else 0),
        lambda i: i / FPS - (5 if i >= 60 else 0),
        lambda i: (i / FPS + 2**32 / 90_000 - 3) % (2**32 / 90_000) - (2**32 / 90_000 - 3),
        lambda i: (i / FPS + 2**33 / 90_000 - 3) % (2**33 / 90_000) - (2**33 / 90_000 - 3),
        lambda i: min(i, 30) / FPS,
        lambda i: -i / FPS,
        lambda i: (i // 7) / FPS + 1e6 * (i % 11 == 10),
    ],
    ids=["forward", "back", "wrap32", "wrap33", "standing", "backwards", "wild"],
)
def test_wrong_time_stamps(pts_s: Callable[[int], float], report_from: int | None) -> None:
    """Wild: five of seven repeat, and every eleventh is far off; then 1 s of error is what can be had."""
    clock = CameraClock()
    seen = film(clock, 100, pts_s=pts_s, report_from=report_from)
    expected = 0.2 if report_from is None else 0.0
    np.testing.assert_allclose(seen.errors[10:], expected, atol=1.0)
    assert float(clock.lag_s or 0) < 1
    assert clock.skew_s is None


@pytest.mark.parametrize("wrong_s", [90.0, -90.0, -NOON])
def test_camera_clock_that_is_wrong_is_refused(wrong_s: float) -> None:
    clock = CameraClock()
    seen = film(clock, 50, report_from=10, camera_ahead_s=wrong_s)
    assert set(seen.clocks) == {"arrival"}
    np.testing.assert_allclose(seen.errors, 0.2, atol=1e-6)
    assert clock.skew_s == pytest.approx(wrong_s, abs=0.5)
    film(clock, 50, report_from=0, begin_s=NOON + 60)  # somebody has set it
    assert clock.skew_s is None


def test_clock_at_the_limit_does_not_flap() -> None:
    clock = CameraClock()
    jitter = np.random.default_rng(0).uniform(0, 1, 300)
    seen = film(clock, 300, report_from=0, camera_ahead_s=MAX_SKEW_S + 0.5, delay_s=lambda i: jitter[i])
    assert sum(a != b for a, b in zip(seen.clocks, seen.clocks[1:], strict=False)) <= 1


@pytest.mark.parametrize("report_from", [None, 0])
def test_slow_link_shows_as_lag(report_from: int | None) -> None:
    """The link carries half of the stream: frame i comes i/fps too late. A lag of 40 s is no wrong clock."""
    clock = CameraClock()
    seen = film(clock, 400, report_from=report_from, delay_s=lambda index: 0.2 + index / FPS)
    assert clock.lag_s == pytest.approx(40, rel=0.02)
    assert all(np.diff([float(lag or 0) for lag in seen.lags[5:]]) > 0)
    assert set(seen.clocks) == {"arrival" if report_from is None else "camera"}
    if report_from == 0:
        np.testing.assert_allclose(seen.times, seen.captured, atol=1e-6)


def test_lag_goes_back_when_the_link_recovers() -> None:
    clock = CameraClock()
    film(clock, 200, delay_s=lambda index: 0.2 + max(0.0, min(index - 50, 130 - index) / FPS))
    assert clock.lag_s == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("parts_per_million", [-150, 150])
def test_a_day_of_quartz_drift_is_no_lag(parts_per_million: float) -> None:
    rate = 1 + parts_per_million * 1e-6
    clock = CameraClock()
    for minute in range(24 * 60):
        clock.stamp(pts_s=60 * minute * rate, start_realtime_s=None, arrived_unix_s=NOON + 60 * minute)
    assert clock.lag_s == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("step_s", [-3600.0, -2.0, 2.0, 3600.0])
@pytest.mark.parametrize("report_from", [None, 0])
def test_our_clock_is_set(step_s: float, report_from: int | None) -> None:
    clock = CameraClock()
    seen = film(clock, 200, report_from=report_from, our_step_s=lambda i: step_s if i >= 100 else 0.0)
    steps = np.diff(seen.times)
    assert np.median(steps[110:130]) > 0.04  # times go on at half speed at least
    assert seen.times[-1] >= seen.captured[-1] + min(step_s, 0)
    assert float(clock.lag_s or 0) < 2.5


def test_times_go_on_after_those_of_an_earlier_process() -> None:
    seen = film(CameraClock(NOON + 5), 100)
    assert seen.times[0] > NOON + 5
    assert seen.errors[-1] < 2
