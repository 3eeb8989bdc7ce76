"""What a run tells about itself while it works: the values behind the page, the metrics and the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from s3clip_runtime.streams.frames import Clock


class State(StrEnum):
    """Where the connection to a source stands.

    CONNECTING: opening. LIVE: frames come. STALE: connected, but no frame for `STALE_S`. DOWN: lost or not
    reachable, tried again by the back-off. FAILED: refused for a reason that needs a person (password, path,
    missing file); a live source is still tried, at the longest back-off. ENDED: a file is at its end.
    """

    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"
    DOWN = "down"
    FAILED = "failed"
    ENDED = "ended"


DropCause = Literal["overrun", "corrupt", "undecodable", "restart"]
"""Why a frame was never handed out: nobody took it in time; its picture is damaged (also grey); the decoder
refused it; it lay in the ring of a child process that was replaced."""

PictureFault = Literal["frozen", "black", "grey"]
"""What is wrong with the pictures of a connected camera: identical for seconds, dark, or partly what a
decoder paints where data is missing: flat grey, flat green, or the last good row drawn down."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How one source is doing.

    Attributes:
        state: of the connection.
        since_unix_s: Unix time of the last change of `state`.
        reason: why it is not LIVE, in words without address or password; empty while LIVE.
        fps: frames a second over the last seconds; None before eight frames.
        lag_s: now minus the capture time of the newest frame by the camera's clock, with that clock's error.
            Without such a clock, how much later frames come than the fastest of the connection did.
        clock: what the times of its frames count.
        clock_skew_s: camera clock minus ours as first seen, when it is too wrong to be used; else None.
        size: (height, width) of the newest frame.
        received: frames decoded.
        drops: frames never handed out, by cause.
        reconnects: connections after the first one.
        restarts: child processes after the first one.
        faults: what is wrong with its pictures now.
    """

    state: State
    since_unix_s: float
    reason: str = ""
    fps: float | None = None
    lag_s: float | None = None
    clock: Clock = "stream"
    clock_skew_s: float | None = None
    size: tuple[int, int] | None = None
    received: int = 0
    drops: Mapping[DropCause, int] = field(default_factory=dict)
    reconnects: int = 0
    restarts: int = 0
    faults: tuple[PictureFault, ...] = ()


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """What became of the lines of boxes that others sent for a camera.

    Attributes:
        lines: taken.
        used: matched to at least one frame.
        unmatched: gone without a frame to them.
        late: not taken, because the frames had passed them.
    """

    lines: int = 0
    used: int = 0
    unmatched: int = 0
    late: int = 0


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """How one camera of a run is doing.

    Attributes:
        name, platform: as configured.
        live: a stream, not a file.
        source: its connection.
        frames: processed.
        fps: processed frames a second over the last ones; None before eight.
        seconds: from its opening to now, or to its end.
        tracks_open: tracklets that grow now.
        tracklets: ended.
        too_short: of these, seen in so few frames that they give no event.
        events: sightings delivered.
        shed: looks that were left out under pressure.
        error: why it ended, if it failed for good.
        boxes: what became of the boxes from outside; None where it has a detector of its own.
    """

    name: str
    platform: str
    live: bool
    source: SourceStatus
    frames: int = 0
    fps: float | None = None
    seconds: float = 0.0
    tracks_open: int = 0
    tracklets: int = 0
    too_short: int = 0
    events: int = 0
    shed: int = 0
    error: str | None = None
    boxes: FeedStatus | None = None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds of one step over the last looks."""

    p50: float
    p95: float
    p99: float
    count: int


@dataclass(frozen=True, slots=True)
class OutputStatus:
    """How one output is doing.

    Attributes:
        name: such as `events.jsonl` or `mqtt broker.example:1883`, without secrets.
        delivered: events that the other side has.
        waiting: events that are kept until it can take them.
        lost: events that could not be kept; 0 unless a spool was full.
        error: what stands in the way now; empty when all is well.
    """

    name: str
    delivered: int = 0
    waiting: int = 0
    lost: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class GalleryStatus:
    """How the gallery of a run is doing.

    Attributes:
        identities: people in it, unknown ones too.
        calibration: name of the data that its thresholds are measured on; empty: it is uncalibrated.
        calibrated_unix_s: Unix time of that measurement.
        threshold: the operator's own, which goes before all calibrated ones.
        met: unknown people who got an id.
        grown: views that were added to known people.
        vetoed: matches that time forbade.
        unwritten: looks that were decided by memory alone and left nothing behind.
        trouble: why its database cannot be used now; empty when all is well.
    """

    identities: int
    calibration: str = ""
    calibrated_unix_s: float | None = None
    threshold: float | None = None
    met: int = 0
    grown: int = 0
    vetoed: int = 0
    unwritten: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run is doing.

    Attributes:
        run_id, bundle, device: as in the events.
        started_unix_s: Unix time of the start.
        cameras: in the order of the configuration.
        queue: looks that wait for the embedder.
        queue_limit: as many may wait.
        shed: looks left out under pressure, by stage ("first", "refined", "final").
        enhancing: super-resolution is on for LR tracklets.
        enhance_reason: why it is on or off.
        latency_ms: step (decode, detect, track, wait, enhance, embed, match, total) to its quantiles.
        outputs: one an output.
        gallery: None without one.
    """

    run_id: str
    bundle: str
    device: str
    started_unix_s: float
    cameras: tuple[CameraStatus, ...] = ()
    queue: int = 0
    queue_limit: int = 0
    shed: Mapping[str, int] = field(default_factory=dict)
    enhancing: bool = True
    enhance_reason: str = ""
    latency_ms: Mapping[str, Quantiles] = field(default_factory=dict)
    outputs: tuple[OutputStatus, ...] = ()
    gallery: GalleryStatus | None = None
