"""The pipeline on real files: who is seen when, failures that stay apart, and an end in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from street import FPS, Street
from test_events import tracklet
from tiny_bundle import DIM, SPACE, write_tiny_bundle

from s3clip_runtime.errors import BackendError, SinkError, SourceError
from s3clip_runtime.gallery.store import Gallery
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.streams.camera import Camera, CameraReport
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.events import EndedTracklet, EventMaker, Sighting
from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.outputs.annotate import FileAnnotator
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.pipeline import FrameWatcher, Outputs, Pipeline
from s3clip_runtime.streams.reading.sources import SourceSpec
from s3clip_runtime.streams.recognition.batcher import USUAL_BATCH, Batcher, ClipEmbedder


@pytest.fixture(scope="module")
def embedder(bundle_folder: Path) -> Iterator[Embedder]:
    with Embedder(Bundle.open(bundle_folder), device="cpu", threads=1) as opened:
        yield opened


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []

    def sighting(self, sighting: Sighting) -> None:
        self.sightings.append(sighting)


class Broken:
    """An output whose disk is full."""

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        raise SinkError("no room for frames")

    def sighting(self, sighting: Sighting) -> None:
        raise SinkError("no room for sightings")


class StopAt:
    """Ends the run when frame `index` has been processed."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.stop = threading.Event()

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        if frame.index >= self.index:
            self.stop.set()


def camera(street: Street, name: str = "gate", video: Path | None = None) -> Camera:
    return Camera(SourceSpec(name, str(video or street.video), "ground"), MotDetector(street.boxes))


def run(
    cameras: Sequence[Camera],
    embedder: ClipEmbedder,
    *,
    gallery: Gallery | None = None,
    threshold: float = 0.6,
    sinks: Sequence[SightingSink] = (),
    watchers: Sequence[FrameWatcher] = (),
    stop: threading.Event | None = None,
) -> tuple[list[Sighting], list[CameraReport], list[SinkError]]:
    kept = Kept()
    outputs = Outputs([*sinks, kept], watchers)
    maker = EventMaker("run", "tiny", SPACE, threshold, with_embedding=False)
    batcher = Batcher(embedder, gallery, threshold, maker, outputs.sighting)
    reports = Pipeline(cameras, batcher, outputs, stop or threading.Event()).run(lambda reports: None)
    return kept.sightings, reports, outputs.errors


def check_against_formula(sightings: Sequence[Sighting], street: Street, frames: int) -> None:
    """Each walker who was seen long enough has one event with the right times."""
    expected = [seen for walker in range(street.walkers) if len(seen := street.seen(walker, frames)) >= 6]
    events = sorted((one.event for one in sightings), key=lambda event: event.first_s)
    assert len(events) == len(expected)
    for event, seen in zip(events, expected, strict=True):
        assert event.last_s == pytest.approx(seen[-1] / FPS, abs=1e-3)
        assert seen[0] / FPS <= event.first_s + 1e-3 <= seen[3] / FPS  # a track starts after a few detections
        assert event.frames == round((event.last_s - event.first_s) * FPS) + 1
        assert event.height_px == 60


def test_every_walker_is_one_event_with_the_embedding_of_its_clip(street: Street, embedder: Embedder) -> None:
    sightings, (report,), errors = run([camera(street)], embedder)
    check_against_formula(sightings, street, street.frames)
    assert errors == []
    assert (report.frames, report.tracklets, report.events) == (120, 5, 5)
    assert (report.error, report.dropped, report.live) == (None, 0, False)
    for sighting in sightings:
        np.testing.assert_allclose(sighting.embedding, embedder.embed([sighting.clip])[0], atol=1e-6)
    assert [one.event.event_id for one in sightings] == [f"run-{i:06d}" for i in range(1, 6)]


def test_gallery_names_those_it_knows(street: Street, embedder: Embedder) -> None:
    first, _, _ = run([camera(street)], embedder)
    anna = first[1].embedding
    others = max(float(one.embedding @ anna) for one in first if one is not first[1])
    threshold = (1 + others) / 2
    with Gallery.open(None, embedding_space=SPACE, dim=DIM) as gallery:
        gallery.enrol("anna", anna[None], platform="ground", source="test")
        second, _, _ = run([camera(street)], embedder, gallery=gallery, threshold=threshold)
    found = [(one.event.decision, one.event.identity) for one in second]
    assert found == [("match" if i == 1 else "unknown", "anna" if i == 1 else None) for i in range(5)]
    for one in second:
        assert one.event.score == pytest.approx(float(one.embedding @ anna), abs=1e-4)
        assert one.event.threshold == threshold


def test_cameras_do_not_mix(street: Street, embedder: Embedder) -> None:
    alone, _, _ = run([camera(street)], embedder)
    both, reports, _ = run([camera(street, "a"), camera(street, "b")], embedder)
    assert [report.events for report in reports] == [5, 5]
    for name in "ab":
        of_one = [one for one in both if one.event.camera == name]
        check_against_formula(of_one, street, street.frames)
        for one, truth in zip(of_one, alone, strict=True):
            assert one.event.track == truth.event.track
            np.testing.assert_allclose(one.embedding, truth.embedding, atol=1e-6)


def test_camera_that_fails_ends_alone(street: Street, embedder: Embedder, tmp_path: Path) -> None:
    cameras = [camera(street, "gone", tmp_path / "gone.mp4"), camera(street, "here")]
    sightings, (gone, here), _ = run(cameras, embedder)
    check_against_formula(sightings, street, street.frames)
    assert isinstance(gone.error, SourceError)
    assert "gone.mp4" in str(gone.error)
    assert (here.error, here.events) == (None, 5)


class FailsAt:
    """A detector that breaks at one frame, as a network on a lost GPU does."""

    def __init__(self, boxes: MotDetector, index: int) -> None:
        self.boxes = boxes
        self.index = index

    def detect(self, frame: Frame) -> Detections:
        if frame.index == self.index:
            raise BackendError("the GPU is lost")
        return self.boxes.detect(frame)


def test_what_a_failing_camera_saw_before_is_kept(street: Street, embedder: Embedder) -> None:
    spec = SourceSpec("gate", str(street.video), "ground")
    sightings, (report,), _ = run([Camera(spec, FailsAt(MotDetector(street.boxes), 60))], embedder)
    assert str(report.error) == "the GPU is lost"
    assert report.frames == 60
    check_against_formula(sightings, street, 60)


def test_broken_outputs_do_not_stop_the_others(street: Street, embedder: Embedder) -> None:
    broken = Broken()
    sightings, _, errors = run([camera(street)], embedder, sinks=[broken], watchers=[broken])
    check_against_formula(sightings, street, street.frames)
    assert sorted(str(error) for error in errors) == ["no room for frames", "no room for sightings"]


@pytest.mark.parametrize("index", [0, 25, 55, 90])
def test_stop_loses_nothing_that_was_read(street: Street, embedder: Embedder, index: int) -> None:
    watcher = StopAt(index)
    sightings, (report,), _ = run([camera(street)], embedder, watchers=[watcher], stop=watcher.stop)
    assert index + 1 <= report.frames <= index + 6
    assert report.error is None
    check_against_formula(sightings, street, report.frames)


def test_embedder_failure_ends_the_run_with_its_error(street: Street, tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle", encode_weight=float("nan")))
    with (
        Embedder(bundle, device="cpu", threads=1) as broken,
        pytest.raises(BackendError, match="not finite"),
    ):
        run([camera(street)], broken)


class Counting:
    """The embedder, with a record of how many clips came at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.batches: list[int] = []

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        self.batches.append(len(clips))
        return self.embedder.embed(clips)


def test_batches_are_as_large_as_they_can_be_and_in_order(embedder: Embedder) -> None:
    counting, kept = Counting(embedder), Kept()
    maker = EventMaker("run", "tiny", SPACE, None, with_embedding=False)
    batcher = Batcher(counting, None, 0.6, maker, kept.sighting, latency_s=60)
    for number in range(2 * USUAL_BATCH + 1):
        batcher.submit(EndedTracklet(tracklet(), live=False, final=number % 3 == 0))
    batcher.start()
    batcher.finish()
    assert counting.batches == [USUAL_BATCH, USUAL_BATCH, 1]
    assert [one.event.final for one in kept.sightings] == [i % 3 == 0 for i in range(2 * USUAL_BATCH + 1)]


def test_a_lone_tracklet_waits_no_longer_than_the_latency(embedder: Embedder) -> None:
    kept, arrived = Kept(), threading.Event()
    maker = EventMaker("run", "tiny", SPACE, None, with_embedding=False)

    def deliver(sighting: Sighting) -> None:
        kept.sighting(sighting)
        arrived.set()

    batcher = Batcher(embedder, None, 0.6, maker, deliver, latency_s=0.1)
    batcher.start()
    batcher.submit(EndedTracklet(tracklet(), live=True, final=True))
    assert arrived.wait(10)  # without `finish`: nothing but the latency sends it
    batcher.finish()
    assert len(kept.sightings) == 1


def test_annotated_file_has_all_frames_and_the_names(
    street: Street, embedder: Embedder, tmp_path: Path
) -> None:
    one = camera(street)
    annotator = FileAnnotator(one.spec, tmp_path / "out.mp4")
    run([one], embedder, sinks=[annotator], watchers=[annotator])
    annotator.write()
    plain, drawn = _frames(street.video), _frames(tmp_path / "out.mp4")
    assert len(drawn) == len(plain) == street.frames
    differs = [np.abs(a.astype(int) - b).mean() for a, b in zip(plain, drawn, strict=True)]
    empty = [i for i in range(120) if not any(i in street.seen(walker, 120) for walker in range(5))]
    assert empty
    assert max(differs[i] for i in empty) < min(differs[i] for i in range(15, 38))


def _frames(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
