"""The metrics, read by Prometheus' own parser and compared with the status they tell."""

from __future__ import annotations

import re
import time
from dataclasses import fields, replace

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from test_page import get, live_status, plausible_status, serving

from s3clip_runtime.streams.page.metrics import exposition
from s3clip_runtime.streams.status import (
    CameraStatus,
    GalleryStatus,
    OutputStatus,
    Quantiles,
    RunStatus,
    SourceStatus,
    State,
)


def families(status: RunStatus) -> dict[str, Metric]:
    return {one.name: one for one in text_string_to_metric_families(exposition(status).decode())}


def values(status: RunStatus) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels; a scraper refuses two with the same."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in families(status).values():
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


class Samples:
    """The samples of a status, by name and labels."""

    def __init__(self, status: RunStatus) -> None:
        self._found = values(status)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._found.get((f"s3clip_{name}", frozenset(labels.items())))


def test_every_number_of_a_camera_is_there() -> None:
    status = plausible_status()
    read = Samples(status)
    for camera in status.cameras:
        name, source = camera.name, camera.source
        for state in State:
            assert read("camera_state", camera=name, state=state.value) == float(source.state is state)
        for cause in ("overrun", "corrupt", "undecodable", "restart"):
            assert read("camera_dropped_frames_total", camera=name, cause=cause) == source.drops.get(cause, 0)
        for kind in ("frozen", "black", "grey"):
            assert read("camera_picture_fault", camera=name, kind=kind) == float(kind in source.faults)
        assert read("camera_fps", camera=name) == camera.fps
        assert read("camera_received_fps", camera=name) == source.fps
        assert read("camera_open_seconds", camera=name) == camera.seconds
        assert read("camera_lag_seconds", camera=name) == source.lag_s
        assert read("camera_clock_skew_seconds", camera=name) == source.clock_skew_s
        assert read("camera_state_change_time_seconds", camera=name) == pytest.approx(source.since_unix_s)
        assert read("camera_received_frames_total", camera=name) == source.received
        assert read("camera_reconnects_total", camera=name) == source.reconnects
        assert read("camera_restarts_total", camera=name) == source.restarts
        assert read("camera_frames_total", camera=name) == camera.frames
        assert read("camera_open_tracks", camera=name) == camera.tracks_open
        assert read("camera_tracklets_total", camera=name) == camera.tracklets
        assert read("camera_short_tracklets_total", camera=name) == camera.too_short
        assert read("camera_sightings_total", camera=name) == camera.events
        assert read("camera_shed_looks_total", camera=name) == camera.shed
        assert read("camera_failed", camera=name) == float(camera.error is not None)


def test_every_number_of_the_run_is_there() -> None:
    status = plausible_status()
    read = Samples(status)
    assert read("run_info", run_id=status.run_id, bundle=status.bundle, device=status.device) == 1
    assert read("start_time_seconds") == pytest.approx(status.started_unix_s)
    assert (read("queue_looks"), read("queue_limit_looks")) == (3, 64)
    assert read("enhancing") == 0
    assert (read("identities"), read("gallery_calibrated"), read("gallery_trouble")) == (1204, 1, 1)
    assert status.gallery is not None
    assert read("gallery_calibration_time_seconds") == pytest.approx(status.gallery.calibrated_unix_s)
    assert read("gallery_threshold") is None
    counters = ("unknown_people_met", "views_grown", "matches_vetoed", "looks_unwritten")
    assert [read(f"{name}_total") for name in counters] == [31, 17, 5, 2]
    assert [read("shed_looks_total", look=look) for look in ("first", "refined", "final")] == [0, 11, 1]
    for step, one in status.latency_ms.items():
        found = [
            read("latency_seconds", step=step, quantile=quantile) for quantile in ("0.5", "0.95", "0.99")
        ]
        assert found == pytest.approx([one.p50 / 1e3, one.p95 / 1e3, one.p99 / 1e3])
        assert read("latency_looks", step=step) == one.count
    for output in status.outputs:
        assert read("output_delivered_events_total", output=output.name) == output.delivered
        assert read("output_waiting_events", output=output.name) == output.waiting
        assert read("output_lost_events_total", output=output.name) == output.lost
        assert read("output_error", output=output.name) == float(bool(output.error))


def test_no_field_of_the_status_was_forgotten() -> None:
    """A new number of the status must get its metric, or be named here with the reason."""
    told = {
        RunStatus: "run_id bundle device started_unix_s cameras queue queue_limit shed enhancing latency_ms "
        "outputs gallery",
        GalleryStatus: "identities calibrated_unix_s threshold met grown vetoed unwritten",
        CameraStatus: "name source frames fps seconds tracks_open tracklets too_short events shed error "
        "boxes",
        SourceStatus: "state since_unix_s fps lag_s clock_skew_s received drops reconnects restarts faults",
        OutputStatus: "name delivered waiting lost error",
        Quantiles: "p50 p95 p99 count",
    }
    # Text that changes would make a new series each time; platform, kind and size are no measurements.
    words = {
        RunStatus: "enhance_reason",
        GalleryStatus: "calibration trouble",  # whether there is one is told
        CameraStatus: "platform live",
        SourceStatus: "reason clock size",
    }
    for kind, names in told.items():
        assert {field.name for field in fields(kind)} == {*names.split(), *words.get(kind, "").split()}, kind


def test_what_is_not_known_or_not_finite_is_left_out() -> None:
    source = SourceStatus(State.CONNECTING, time.time(), lag_s=float("nan"))
    status = RunStatus(
        "run",
        "tiny",
        "cpu",
        time.time(),
        (CameraStatus("gate", "ground", True, source),),
        latency_ms={"wait": Quantiles(float("inf"), 2.0, 3.0, 1)},
    )
    read = Samples(status)
    assert read("identities") is None
    assert read("gallery_calibrated") is None
    assert read("views_grown_total") is None
    bare = Samples(replace(status, gallery=GalleryStatus(3, threshold=0.7)))
    assert (bare("identities"), bare("gallery_calibrated"), bare("gallery_trouble")) == (3, 0, 0)
    assert (bare("gallery_threshold"), bare("gallery_calibration_time_seconds")) == (0.7, None)
    assert read("camera_fps", camera="gate") is None
    assert read("camera_lag_seconds", camera="gate") is None
    assert read("camera_box_lines_total", camera="gate") is None
    assert read("latency_seconds", step="wait", quantile="0.5") is None
    assert read("latency_seconds", step="wait", quantile="0.95") == pytest.approx(0.002)
    assert read("camera_dropped_frames_total", camera="gate", cause="corrupt") == 0  # counters start at 0


def test_names_follow_the_conventions() -> None:
    for name, family in families(plausible_status()).items():
        assert re.fullmatch(r"(s3clip|process)_[a-z_]+", name)
        assert family.documentation.endswith(".")
        assert not name.endswith(("_ms", "_milliseconds", "_minutes", "_kb", "_mb"))
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")


def test_odd_names_are_escaped_and_doubles_are_numbered() -> None:
    odd = 'a"b\\c\nd{e="f"} ✓'
    status = live_status(
        device=odd, outputs=(OutputStatus(odd, 1), OutputStatus("same", 2), OutputStatus("same", 3))
    )
    read = Samples(status)
    assert read("output_delivered_events_total", output=odd) == 1
    assert read("output_delivered_events_total", output="same") == 2
    assert read("output_delivered_events_total", output="same (2)") == 3
    assert read("run_info", run_id="run", bundle="tiny", device=odd) == 1


def test_reasons_and_errors_never_become_labels() -> None:
    source = replace(live_status().cameras[0].source, reason="secret-reason")
    camera = CameraStatus("gate", "ground", True, source, error="secret-error")
    status = live_status(
        cameras=(camera,),
        enhance_reason="secret-enhance",
        outputs=(OutputStatus("mqtt", error="secret-output"),),
    )
    assert b"secret" not in exposition(status)
    assert Samples(status)("camera_failed", camera="gate") == 1


def test_a_scrape_reads_the_status_of_its_moment_and_tells_about_the_process() -> None:
    with serving(status=plausible_status()) as page:
        answer = get(page, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {one.name: one for one in text_string_to_metric_families(answer.text)}
    assert found["process_resident_memory_bytes"].samples[0].value > 1e6
    assert found["s3clip_camera_fps"].samples[0].labels == {"camera": "gate"}


def test_two_runs_in_one_process_share_nothing() -> None:
    assert "s3clip_identities 1204.0" in exposition(plausible_status()).decode()
    assert "1204" not in exposition(live_status()).decode()
