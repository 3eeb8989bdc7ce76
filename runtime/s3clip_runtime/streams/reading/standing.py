"""Judges the state of a source from what its child says and when its pictures came."""

from __future__ import annotations

import logging
import time

from s3clip_runtime.streams.reading.addresses import SourceSpec, redact
from s3clip_runtime.streams.reading.link import Phase
from s3clip_runtime.streams.reading.options import STALE_S
from s3clip_runtime.streams.status import State

_log = logging.getLogger(__name__)


class Standing:
    """State, its reason and since when. Each change of state is logged once.

    DOWN and FAILED stay while the next attempts run: what an operator sees ends with the first picture.
    """

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        self._phase: Phase = "connecting"
        self._told_s = time.monotonic()
        self._told_reason = ""
        self.state = State.CONNECTING
        self.reason = "connecting"
        self.since_unix_s = time.time()

    def told(self, phase: Phase, reason: str = "") -> None:
        """News of the connection."""
        self._phase, self._told_reason, self._told_s = phase, reason, time.monotonic()

    def judge(self, newest_s: float, live: bool) -> bool:
        """Look again; whether the state changed.

        Args:
            newest_s: monotonic time of the newest picture, 0 for none.
            live: files may rest: their frames wait for whoever takes them.
        """
        before = self.state
        if self._phase == "connected":
            self._judge_connected(newest_s, live)
        elif self._phase != "connecting":
            self.state, self.reason = State(self._phase), self._told_reason
        if self.state is before:
            return False
        self.since_unix_s = time.time()
        level = logging.INFO if self.state in (State.LIVE, State.ENDED) else logging.WARNING
        shown, because = redact(self._spec.url), f": {self.reason}" if self.reason else ""
        _log.log(level, "camera %s (%s) is %s%s", self._spec.name, shown, self.state.upper(), because)
        return True

    def _judge_connected(self, newest_s: float, live: bool) -> None:
        # A picture from before the news belongs to the connection before, unless it is its first one.
        quiet_s = time.monotonic() - max(newest_s, self._told_s)
        if live and quiet_s > STALE_S:
            self.state, self.reason = State.STALE, f"connected, but no picture for {STALE_S:g} s"
        elif newest_s or not live:
            self.state, self.reason = State.LIVE, ""
