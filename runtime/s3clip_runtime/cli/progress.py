"""What a run tells its user while it works and when it ends. All of it goes to standard error."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click
from tqdm import tqdm

from s3clip_runtime.streams.camera import CameraReport

STATUS_EVERY_S = 10.0


class Progress:
    """A bar that counts the frames of files, on a terminal; a line every ten seconds for live streams."""

    def __init__(self) -> None:
        self._bar = tqdm(unit=" frames", disable=None, leave=False)
        self._next_status_s = time.monotonic() + STATUS_EVERY_S

    def tick(self, reports: Sequence[CameraReport]) -> None:
        """Show how far the cameras are."""
        self._bar.update(sum(report.frames for report in reports if not report.live) - self._bar.n)
        if time.monotonic() >= self._next_status_s:
            self._next_status_s = time.monotonic() + STATUS_EVERY_S
            for report in reports:
                if report.live:
                    click.echo(f"{report.camera}: {_counts(report)}", err=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def print_summary(reports: Sequence[CameraReport]) -> None:
    """One line a camera, and a sentence when nobody was seen."""
    for report in reports:
        state = "" if report.error is None else " - FAILED"
        click.echo(f"{report.camera}: {_counts(report)}, {report.events} events{state}", err=True)
    if not any(report.tracklets for report in reports):
        click.echo("No person was seen, so there are no events.", err=True)


def _counts(report: CameraReport) -> str:
    text = f"{report.frames} frames ({report.fps:.1f} fps), {report.tracklets} tracklets"
    if report.too_short:
        text += f" (and {report.too_short} under {report.min_frames} frames, left out)"
    if report.live:
        text += f", {report.dropped} frames dropped, {report.reconnects} reconnects"
    return text
