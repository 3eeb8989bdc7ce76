"""The run as Prometheus metrics, read from its status at every scrape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from s3clip_runtime.streams.looks import Stage
from s3clip_runtime.streams.status import (
    CameraStatus,
    DropCause,
    GalleryStatus,
    OutputStatus,
    PictureFault,
    Quantiles,
    RunStatus,
    State,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The text format that every scraper knows."""

Number = Callable[[CameraStatus], float | None]

_COUNTERS: Final[tuple[tuple[str, str, Number], ...]] = (
    ("received_frames", "Frames decoded.", lambda one: one.source.received),
    ("frames", "Frames processed by detector and tracker.", lambda one: one.frames),
    ("reconnects", "Connections after the first one.", lambda one: one.source.reconnects),
    ("restarts", "Reader processes after the first one.", lambda one: one.source.restarts),
    ("tracklets", "Tracklets that ended.", lambda one: one.tracklets),
    ("short_tracklets", "Tracklets that ended too short for a look.", lambda one: one.too_short),
    ("sightings", "Sightings delivered.", lambda one: one.events),
    ("shed_looks", "Looks left out under pressure.", lambda one: one.shed),
    ("box_lines", "Lines of boxes from outside.", lambda one: None if one.boxes is None else one.boxes.lines),
    (
        "box_lines_late",
        "Those that came after their frame.",
        lambda one: None if one.boxes is None else one.boxes.late,
    ),
    (
        "box_lines_unmatched",
        "Those without a frame.",
        lambda one: None if one.boxes is None else one.boxes.unmatched,
    ),
)
_GAUGES: Final[tuple[tuple[str, str, Number], ...]] = (
    ("received_fps", "Frames a second that come in.", lambda one: one.source.fps),
    ("fps", "Frames a second that are processed.", lambda one: one.fps),
    ("open_seconds", "From its opening to now, or to its end.", lambda one: one.seconds),
    (
        "lag_seconds",
        "Now minus the capture time of the newest frame, by the camera's clock.",
        lambda one: one.source.lag_s,
    ),
    (
        "clock_skew_seconds",
        "Camera clock minus ours; only where it is too wrong to be used.",
        lambda one: one.source.clock_skew_s,
    ),
    (
        "state_change_time_seconds",
        "Unix time of the last change of state.",
        lambda one: one.source.since_unix_s,
    ),
    ("open_tracks", "Tracklets that grow now.", lambda one: one.tracks_open),
    ("failed", "1 if the camera ended for good with an error.", lambda one: float(one.error is not None)),
)
_GALLERY_GAUGES: Final[tuple[tuple[str, str, Callable[[GalleryStatus], float | None]], ...]] = (
    ("identities", "People in the gallery, unknown ones too.", lambda one: one.identities),
    ("gallery_calibrated", "1 if its thresholds are calibrated.", lambda one: float(bool(one.calibration))),
    (
        "gallery_calibration_time_seconds",
        "Unix time of the measurement of its thresholds.",
        lambda one: one.calibrated_unix_s,
    ),
    ("gallery_threshold", "The operator's own threshold, if there is one.", lambda one: one.threshold),
    ("gallery_trouble", "1 while it cannot be read or written.", lambda one: float(bool(one.trouble))),
)
_GALLERY_COUNTERS: Final[tuple[tuple[str, str, Callable[[GalleryStatus], int]], ...]] = (
    ("unknown_people_met", "Unknown people who got an id.", lambda one: one.met),
    ("views_grown", "Views that were added to known people.", lambda one: one.grown),
    ("matches_vetoed", "Matches that time forbade.", lambda one: one.vetoed),
    ("looks_unwritten", "Looks that left nothing in the gallery, in trouble.", lambda one: one.unwritten),
)


class StatusCollector(Collector):
    """Metric families of a run.

    Args:
        status: asked once a scrape.
    """

    def __init__(self, status: Callable[[], RunStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All families, in the order of the page. Numbers that are not known or not finite are left out."""
        status = self._status()
        yield from _run(status)
        yield from _gallery(status.gallery)
        yield from _cameras(status.cameras)
        yield from _pictures_and_drops(status.cameras)
        yield from _latency(status.latency_ms.items())
        yield from _outputs(status.outputs)


def exposition(status: RunStatus) -> bytes:
    """The run, and memory, CPU time and open files of this process, in the text format of `CONTENT_TYPE`."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _run(status: RunStatus) -> Iterator[Metric]:
    facts = {"run_id": status.run_id, "bundle": status.bundle, "device": status.device}
    yield InfoMetricFamily("s3clip_run", "The run and what it runs.", value=facts)
    yield _gauge("s3clip_start_time_seconds", "Unix time of the start.", status.started_unix_s)
    yield _gauge("s3clip_queue_looks", "Looks that wait for the embedder.", status.queue)
    yield _gauge("s3clip_queue_limit_looks", "As many looks may wait.", status.queue_limit)
    yield _gauge("s3clip_enhancing", "1 while super-resolution is on.", float(status.enhancing))
    shed = CounterMetricFamily(
        "s3clip_shed_looks", "Looks left out under pressure, by stage.", labels=["look"]
    )
    for stage in get_args(Stage):
        shed.add_metric([stage], status.shed.get(stage, 0))
    yield shed


def _gallery(gallery: GalleryStatus | None) -> Iterator[Metric]:
    """Without a gallery no series; without a calibration, no date of it."""
    for name, meaning, gauge in _GALLERY_GAUGES:
        yield _gauge(f"s3clip_{name}", meaning, None if gallery is None else gauge(gallery))
    for name, meaning, count in _GALLERY_COUNTERS:
        counter = CounterMetricFamily(f"s3clip_{name}", meaning, labels=[])
        _fill(counter, [([], None if gallery is None else count(gallery))])
        yield counter


def _cameras(cameras: Sequence[CameraStatus]) -> Iterator[Metric]:
    for name, meaning, number in _COUNTERS:
        counter = CounterMetricFamily(f"s3clip_camera_{name}", meaning, labels=["camera"])
        _fill(counter, (([one.name], number(one)) for one in cameras))
        yield counter
    for name, meaning, number in _GAUGES:
        gauge = GaugeMetricFamily(f"s3clip_camera_{name}", meaning, labels=["camera"])
        _fill(gauge, (([one.name], number(one)) for one in cameras))
        yield gauge


def _pictures_and_drops(cameras: Sequence[CameraStatus]) -> Iterator[Metric]:
    """Families with a second label. Every value of it is there from the start, so that rates are right."""
    state = GaugeMetricFamily(
        "s3clip_camera_state", "1 for the state that the connection is in.", labels=["camera", "state"]
    )
    drops = CounterMetricFamily(
        "s3clip_camera_dropped_frames", "Frames never handed out, by cause.", labels=["camera", "cause"]
    )
    fault = GaugeMetricFamily(
        "s3clip_camera_picture_fault", "1 while the pictures are so.", labels=["camera", "kind"]
    )
    for one in cameras:
        for value in State:
            state.add_metric([one.name, value.value], float(one.source.state is value))
        for cause in get_args(DropCause):
            drops.add_metric([one.name, cause], one.source.drops.get(cause, 0))
        for kind in get_args(PictureFault):
            fault.add_metric([one.name, kind], float(kind in one.source.faults))
    yield from (state, drops, fault)


def _latency(steps: Iterable[tuple[str, Quantiles]]) -> Iterator[Metric]:
    latency = GaugeMetricFamily(
        "s3clip_latency_seconds", "Time of a step over the last looks.", labels=["step", "quantile"]
    )
    looks = GaugeMetricFamily(
        "s3clip_latency_looks", "Looks that the quantiles are taken over.", labels=["step"]
    )
    for step, values in steps:
        quantiles = (("0.5", values.p50), ("0.95", values.p95), ("0.99", values.p99))
        _fill(latency, (([step, quantile], value / 1000) for quantile, value in quantiles))
        looks.add_metric([step], values.count)
    yield from (latency, looks)


def _outputs(outputs: Sequence[OutputStatus]) -> Iterator[Metric]:
    named = list(zip(_distinct([one.name for one in outputs]), outputs, strict=True))
    delivered = CounterMetricFamily(
        "s3clip_output_delivered_events", "Events that the other side has.", labels=["output"]
    )
    waiting = GaugeMetricFamily(
        "s3clip_output_waiting_events", "Events kept until the other side takes them.", labels=["output"]
    )
    lost = CounterMetricFamily(
        "s3clip_output_lost_events", "Events that could not be kept.", labels=["output"]
    )
    error = GaugeMetricFamily(
        "s3clip_output_error", "1 while something stands in the way.", labels=["output"]
    )
    for name, one in named:
        delivered.add_metric([name], one.delivered)
        waiting.add_metric([name], one.waiting)
        lost.add_metric([name], one.lost)
        error.add_metric([name], float(bool(one.error)))
    yield from (delivered, waiting, lost, error)


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that come again: a scraper refuses the whole answer when one series stands there twice."""
    count: dict[str, int] = {}
    found = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        found.append(name if count[name] == 1 else f"{name} ({count[name]})")
    return found


def _gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=[])
    _fill(family, [([], value)])
    return family


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily, values: Iterable[tuple[list[str], float | None]]
) -> None:
    for labels, value in values:
        if value is not None and math.isfinite(value):
            family.add_metric(labels, value)
