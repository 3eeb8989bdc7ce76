"""What a run tells its user while it works and when it ends. All of it goes to standard error."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
from tqdm import tqdm

from s3clip_runtime.streams.status import CameraStatus, RunStatus

STATUS_EVERY_S = 10.0
_BAR_EVERY_S = 0.5


class Progress:
    """A bar that counts the frames of files, on a terminal; a line every ten seconds for live streams.

    Args:
        status: of the run.
    """

    def __init__(self, status: Callable[[], RunStatus]) -> None:
        self._status = status
        self._bar = tqdm(unit=" frames", disable=None, leave=False)
        self._next_bar_s = 0.0
        self._next_status_s = time.monotonic() + STATUS_EVERY_S

    def tick(self) -> None:
        """Show how far the cameras are; cheap when it is not time yet."""
        now_s = time.monotonic()
        if now_s < min(self._next_bar_s, self._next_status_s):
            return
        self._next_bar_s = now_s + _BAR_EVERY_S
        cameras = self._status().cameras
        self._bar.update(sum(camera.frames for camera in cameras if not camera.live) - self._bar.n)
        if now_s >= self._next_status_s:
            self._next_status_s = now_s + STATUS_EVERY_S
            for camera in cameras:
                if camera.live:
                    click.echo(f"{camera.name}: {camera.source.state}, {_counts(camera)}", err=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def print_summary(status: RunStatus) -> None:
    """One line a camera, one of the latency of live looks, and a sentence when nobody was seen."""
    for camera in status.cameras:
        state = "" if camera.error is None else " - FAILED"
        click.echo(f"{camera.name}: {_counts(camera)}, {camera.events} events{state}", err=True)
    total = status.latency_ms.get("total")
    if total is not None and any(camera.live for camera in status.cameras):
        click.echo(f"latency: p50 {total.p50:g}, p95 {total.p95:g}, p99 {total.p99:g} ms", err=True)
    if not any(camera.tracklets for camera in status.cameras):
        click.echo("No person was seen, so there are no events.", err=True)


def _counts(camera: CameraStatus) -> str:
    fps = camera.frames / camera.seconds if camera.seconds > 0 else 0.0
    text = f"{camera.frames} frames ({fps:.1f} fps), {camera.tracklets} tracklets"
    if camera.too_short:
        text += f" (and {camera.too_short} too short, left out)"
    if camera.live:
        drops = ", ".join(f"{count} {cause}" for cause, count in camera.source.drops.items() if count)
        text += f", frames dropped: {drops or 'none'}, {camera.source.reconnects} reconnects"
    if camera.shed:
        text += f", {camera.shed} looks shed"
    return text
