"""Is the run well: one answer for the page's header and for /healthz."""

from __future__ import annotations

from s3clip_runtime.streams.status import RunStatus, State

_WELL = (State.LIVE, State.ENDED)


def troubles(status: RunStatus) -> list[str]:
    """Why the run is degraded, one sentence a reason; empty when it is well.

    It is well when at least one camera is LIVE or ENDED, the gallery can be used and no output reports an
    error. A single camera that is down does not count: its state is on the page and in the metrics, and
    restarting the run cures it not.
    """
    found = []
    if not any(camera.source.state in _WELL for camera in status.cameras):
        states = ", ".join(f"{camera.name} is {camera.source.state.value}" for camera in status.cameras)
        found.append(f"no camera delivers: {states or 'none is configured'}")
    found += [f"output {output.name}: {output.error}" for output in status.outputs if output.error]
    if status.gallery is not None and status.gallery.trouble:
        found.append(status.gallery.trouble)
    return found
