"""When a picture was taken: by the camera's own clock where its RTCP reports give it, else on arrival."""

from __future__ import annotations

from s3clip_runtime.streams.frames import Clock

MAX_SKEW_S = 30.0
"""A camera clock further from ours is wrong (no NTP, time zone, 1970): its time is refused."""

ACCEPT_SKEW_S = 25.0
"""A refused clock is taken again from here on, so that one at the limit does not flap."""

STEP_S = 1e-3
"""Times rise at least so much from frame to frame."""

JUMP_S = 2.0
"""A frame so much earlier than the fastest one of its connection has a time stamp that jumped."""

OWN_STEP_S = (-0.1, 10.0)
"""A frame that comes so much before the last one of its connection, or so long after it, shows that our own
clock was set: frames come in order, and read time-outs (3 s) end a connection before."""

DRIFT = 200e-6
"""Two quartz clocks part by at most so much (100 ppm each). A lag that grows slower is taken for drift."""

WRAPS_S = (2**32 / 90_000, 2**33 / 90_000)
"""Where time stamps of RTP (13.3 h) and MPEG-TS (26.5 h) start again."""

_SMOOTHING = 0.3
"""Weight of the newest frame in `lag_s`."""


class CameraClock:
    """Capture times of one camera that always rise, and how late its pictures are. Not thread-safe.

    Where the next time would not be later than the last one (the camera's reports come in after the first
    frames, our clock is set back), times go on at half speed until the truth has caught up.

    Args:
        last_s: the last time that was given for this camera, by an earlier process; all times are later.
    """

    def __init__(self, last_s: float = 0.0) -> None:
        self.lag_s: float | None = None
        """Seconds, >= 0, between capture and arrival of the newest frames; None before the first time stamp.

        With a camera clock it includes that clock's error, as far as the clock is behind. Without one it is
        how much later frames come than the fastest one of the connection did: a link that is too slow shows.
        """
        self.skew_s: float | None = None
        """Camera clock minus ours in seconds while it is refused; None while it is used or unknown."""
        self._last_s = last_s
        self._arrived_s: float | None = None
        self._offset_s: float | None = None  # camera clock minus ours, kept over connections
        self._link = _Link()
        self._anchor: tuple[float, float] | None = None

    def connected(self) -> None:
        """A new connection begins: its time stamps have nothing to do with those before."""
        self.lag_s = None
        self._link = _Link()
        self._anchor = None

    def stamp(
        self, *, pts_s: float | None, start_realtime_s: float | None, arrived_unix_s: float
    ) -> tuple[float, Clock]:
        """The capture time of the next frame.

        Args:
            pts_s: its time stamp in seconds of the stream; None if it has none.
            start_realtime_s: Unix time at which the stream's time stamp 0 was taken, from the camera's RTCP
                reports; None before the first report.
            arrived_unix_s: Unix time by our clock at which the frame came.

        Returns:
            Unix time in seconds, at least 1 ms after the time before, and what it counts. It is ahead of our
            clock while that was set back, or where the camera's clock is up to `MAX_SKEW_S` ahead.
        """
        if pts_s is not None:
            late_s = self._link.late_s(pts_s, arrived_unix_s)
            if start_realtime_s is not None:
                captured_s = self._captured_s(start_realtime_s, pts_s)
                self._judge(captured_s - (arrived_unix_s - late_s))
            behind_s = max(0.0, -self._offset_s) if self._offset_s is not None else 0.0
            lag_s = late_s + behind_s
            self.lag_s = lag_s if self.lag_s is None else self.lag_s + _SMOOTHING * (lag_s - self.lag_s)
        if self._offset_s is None:
            return self._rising(arrived_unix_s, arrived_unix_s), "arrival"
        if pts_s is None or start_realtime_s is None:  # until its first report: as the last connection's
            captured_s = arrived_unix_s + self._offset_s
        return self._rising(captured_s, arrived_unix_s), "camera"

    def _captured_s(self, start_realtime_s: float, pts_s: float) -> float:
        """By the camera's clock; a jump of the time stamps after its report is taken out."""
        if self._anchor is None or abs(start_realtime_s - self._anchor[0]) > JUMP_S:
            self._anchor = (start_realtime_s, self._link.shift_s)
        return start_realtime_s + pts_s + self._link.shift_s - self._anchor[1]

    def _judge(self, skew_s: float) -> None:
        limit_s = MAX_SKEW_S if self.skew_s is None else ACCEPT_SKEW_S
        if abs(skew_s) > limit_s:
            self.skew_s = skew_s if self.skew_s is None else self.skew_s
            self._offset_s = None
        else:
            self.skew_s = None
            self._offset_s = skew_s

    def _rising(self, time_s: float, arrived_s: float) -> float:
        passed_s = 0.0 if self._arrived_s is None else arrived_s - self._arrived_s
        self._arrived_s = arrived_s
        if time_s < self._last_s + STEP_S:
            time_s = self._last_s + max(STEP_S, passed_s / 2)
        self._last_s = time_s
        return time_s


class _Link:
    """Progress of time stamps against arrivals on one connection.

    Attributes:
        shift_s: what must be added to time stamps so that they go on without wraps and jumps.
    """

    def __init__(self) -> None:
        self.shift_s = 0.0
        self._last: tuple[float, float] | None = None
        self._fastest_s = 0.0  # arrival minus time stamp of the fastest frame

    def late_s(self, pts_s: float, arrived_s: float) -> float:
        """How much later the frame came than the fastest one did, in seconds, >= 0."""
        if self._last is None:
            self._fastest_s = arrived_s - pts_s
        else:
            self._follow(pts_s - self._last[0], arrived_s - self._last[1])
        self._last = pts_s, arrived_s
        offset_s = arrived_s - (pts_s + self.shift_s)
        self._fastest_s = min(self._fastest_s, offset_s)
        return offset_s - self._fastest_s

    def _follow(self, moved_s: float, passed_s: float) -> None:
        """One step: `moved_s` by the time stamps, `passed_s` by arrivals."""
        assert self._last is not None
        for wrap_s in WRAPS_S:
            if abs(moved_s + wrap_s - max(passed_s, 0.0)) < JUMP_S:
                self.shift_s += wrap_s
                moved_s += wrap_s
        if passed_s < OWN_STEP_S[0] or passed_s - max(moved_s, 0.0) > OWN_STEP_S[1]:
            self._fastest_s += passed_s - moved_s  # our clock was set: the lag is what it was
            return
        self._fastest_s += DRIFT * passed_s
        late_s = self._last[1] - (self._last[0] + self.shift_s) - self._fastest_s
        early_s = moved_s - passed_s - late_s
        if moved_s <= 0 or early_s > JUMP_S:
            self.shift_s += passed_s - moved_s
