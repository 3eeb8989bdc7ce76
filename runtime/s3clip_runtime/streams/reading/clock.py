"""Capture times of a camera's pictures: by its own clock where RTCP tells it, else by arrival."""

from __future__ import annotations

from s3clip_runtime.streams.frames import Clock

MAX_SKEW_S = 30.0
"""A camera clock that is wrong by more is not used."""


class CameraClock:
    """The clock of one connection. `last_s`: time of the newest frame before it; times go on rising."""

    def __init__(self, last_s: float) -> None:
        self._last_s = last_s
        self.lag_s: float | None = None
        self.skew_s: float | None = None

    def stamp(
        self, *, pts_s: float | None, start_realtime_s: float | None, arrived_unix_s: float
    ) -> tuple[float, Clock]:
        """Capture time in Unix seconds, at least 1 ms after the one before, and what it counts."""
        time_s, clock = arrived_unix_s, "arrival"
        if pts_s is not None and start_realtime_s is not None and self.skew_s is None:
            captured_s = start_realtime_s + pts_s
            if abs(captured_s - arrived_unix_s) > MAX_SKEW_S and self.lag_s is None:
                self.skew_s = captured_s - arrived_unix_s
            else:
                time_s, clock = captured_s, "camera"
                self.lag_s = arrived_unix_s - captured_s
        self._last_s = max(time_s, self._last_s + 1e-3)
        return self._last_s, "camera" if clock == "camera" else "arrival"
