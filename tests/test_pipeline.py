"""The pipeline on real files: who is seen when, failures that stay apart, and an end in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from street import FPS, Street
from tiny_bundle import DIM, SPACE, write_tiny_bundle

from s3clip_runtime.errors import BackendError, SinkError, SourceError
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Space
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.streams.camera import CameraPlan
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.events import EventMaker, Sighting
from s3clip_runtime.streams.frames import Detections, Frame, Observation
from s3clip_runtime.streams.outputs.annotate import FileAnnotator
from s3clip_runtime.streams.outputs.outputs import FrameWatcher, Outputs
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.pipeline import Pipeline
from s3clip_runtime.streams.reading.sources import SourceSpec
from s3clip_runtime.streams.recognition.batcher import Batcher
from s3clip_runtime.streams.status import CameraStatus, OutputStatus


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

    def status(self) -> OutputStatus:
        return OutputStatus("kept", len(self.sightings))

    def close(self) -> None:
        """Nothing is open."""


class Broken(Kept):
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


def plan(street: Street, name: str = "gate", video: Path | None = None) -> CameraPlan:
    return CameraPlan(SourceSpec(name, str(video or street.video), "ground"), MotDetector(street.boxes))


class Run:
    """A pipeline over a tiny bundle, and what came of it."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        recogniser: Recogniser | None = None,
        sinks: Sequence[SightingSink] = (),
        watchers: Sequence[FrameWatcher] = (),
        stop: threading.Event | None = None,
    ) -> None:
        self._kept = Kept()
        sinks = [*sinks, self._kept]
        self.outputs = Outputs({str(number): sink for number, sink in enumerate(sinks)}, watchers)
        maker = EventMaker("run", "tiny", SPACE, with_embedding=False)
        batcher = Batcher(embedder, recogniser, maker, self.outputs.sighting, enhances=lambda height: True)
        self.pipeline = Pipeline(batcher, self.outputs, stop or threading.Event())

    def go(self, *plans: CameraPlan, tick: Callable[[], None] = lambda: None) -> None:
        try:
            for one in plans:
                self.pipeline.add(one)
            self.pipeline.run(tick)
        finally:
            self.pipeline.close()
            self.outputs.close()

    @property
    def sightings(self) -> list[Sighting]:
        return self._kept.sightings

    @property
    def cameras(self) -> tuple[CameraStatus, ...]:
        return self.pipeline.status()


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


def vector(sighting: Sighting) -> NDArray[np.float32]:
    assert sighting.embedding is not None
    return sighting.embedding


def test_every_walker_is_one_event_with_the_embedding_of_its_clip(street: Street, embedder: Embedder) -> None:
    done = Run(embedder)
    done.go(plan(street))
    check_against_formula(done.sightings, street, street.frames)
    (status,) = done.cameras
    assert done.outputs.errors == []
    assert (status.frames, status.tracklets, status.events, status.shed) == (120, 5, 5, 0)
    assert (status.error, sum(status.source.drops.values()), status.live) == (None, 0, False)
    for sighting in done.sightings:
        np.testing.assert_allclose(vector(sighting), embedder.embed([sighting.clip])[0], atol=1e-6)
        assert sighting.event.look == "final"
    assert [one.event.event_id for one in done.sightings] == [f"run-{i:06d}" for i in range(1, 6)]


def test_gallery_names_those_it_knows(street: Street, embedder: Embedder) -> None:
    first = Run(embedder)
    first.go(plan(street))
    anna = vector(first.sightings[1])
    others = max(float(vector(one) @ anna) for one in first.sightings if one is not first.sightings[1])
    threshold = (1 + others) / 2
    with Gallery.open(None, Space(SPACE, DIM)) as gallery:
        gallery.enrol("anna", anna[None], platform="ground", source="test")
        second = Run(embedder, recogniser=Recogniser(gallery, Rules(threshold=threshold)))
        second.go(plan(street))
    found = [(one.event.decision, one.event.identity) for one in second.sightings]
    assert found == [("match" if i == 1 else "unknown", "anna" if i == 1 else None) for i in range(5)]
    stored = anna.astype(np.float16).astype(np.float32)  # as galleries keep vectors
    for one in second.sightings:
        assert one.event.score == pytest.approx(float(vector(one) @ stored), abs=6e-5)
        assert one.event.threshold == round(threshold, 4)


def test_cameras_do_not_mix(street: Street, embedder: Embedder) -> None:
    alone, both = Run(embedder), Run(embedder)
    alone.go(plan(street))
    both.go(plan(street, "a"), plan(street, "b"))
    assert [status.events for status in both.cameras] == [5, 5]
    for name in "ab":
        of_one = [one for one in both.sightings if one.event.camera == name]
        check_against_formula(of_one, street, street.frames)
        for one, truth in zip(of_one, alone.sightings, strict=True):
            assert one.event.track == truth.event.track
            np.testing.assert_allclose(vector(one), vector(truth), atol=1e-6)


def test_camera_that_fails_ends_alone(street: Street, embedder: Embedder, tmp_path: Path) -> None:
    done = Run(embedder)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    done.go(plan(street, "gone", tmp_path / "gone.mp4"), plan(street, "text", text), plan(street, "here"))
    check_against_formula(done.sightings, street, street.frames)
    errors = done.pipeline.errors()
    assert all(isinstance(error, SourceError) for error in errors)
    assert sorted(str(error).partition("(")[0] for error in errors) == ["source gone ", "source text "]
    status = {one.name: one for one in done.cameras}
    assert (status["here"].error, status["here"].events) == (None, 5)
    assert {status[name].source.state for name in ("gone", "text")} == {"failed"}


class FailsAt:
    """A detector that breaks at one frame, as a network on a lost GPU does."""

    def __init__(self, boxes: Detector, index: int) -> None:
        self.boxes = boxes
        self.index = index

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        if frames[0].index == self.index:
            raise BackendError("the GPU is lost")
        return self.boxes.detect(frames)

    def close(self) -> None:
        """Nothing is open."""


def test_what_a_failing_camera_saw_before_is_kept(street: Street, embedder: Embedder) -> None:
    done = Run(embedder)
    failing = CameraPlan(
        SourceSpec("gate", str(street.video), "ground"), FailsAt(MotDetector(street.boxes), 60)
    )
    done.go(failing, plan(street, "other"))
    status = {one.name: one for one in done.cameras}
    assert (status["gate"].error, status["gate"].frames) == ("the GPU is lost", 60)
    of_gate = [one for one in done.sightings if one.event.camera == "gate"]
    check_against_formula(of_gate, street, 60)
    assert of_gate[-1].event.reason == "lost"
    assert (status["other"].error, status["other"].events) == (None, 5)


def test_broken_outputs_do_not_stop_the_others(street: Street, embedder: Embedder) -> None:
    broken = Broken()
    done = Run(embedder, sinks=[broken], watchers=[broken])
    done.go(plan(street))
    check_against_formula(done.sightings, street, street.frames)
    # As one and the same output it is left out after its first fault.
    assert [str(error) for error in done.outputs.errors] == ["no room for frames"]


@pytest.mark.parametrize("index", [0, 25, 55, 90])
def test_a_stop_tells_who_is_in_view_and_marks_them(street: Street, embedder: Embedder, index: int) -> None:
    watcher = StopAt(index)
    done = Run(embedder, watchers=[watcher], stop=watcher.stop)
    done.go(plan(street))
    (status,) = done.cameras
    assert (status.frames, status.error) == (index + 1, None)
    check_against_formula(done.sightings, street, status.frames)
    for one in done.sightings:
        in_view = one.event.last_s > (index - 1) / FPS
        assert one.event.partial == in_view
        assert one.event.reason == ("stop" if in_view or index / FPS - one.event.last_s <= 1 else "gone")


def test_an_embedder_that_fails_ends_the_run_but_loses_no_person(street: Street, tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle", encode_weight=float("nan")))
    with Embedder(bundle, device="cpu", threads=1) as broken:
        done = Run(broken)
        with pytest.raises(BackendError, match="not finite"):
            done.go(plan(street))
    (status,) = done.cameras
    assert 0 < status.frames <= street.frames
    check_against_formula(done.sightings, street, status.frames)
    assert {one.event.decision for one in done.sightings} == {"not_embedded"}


class Together:
    """A detector of several cameras, with a record of whose frames came together."""

    def __init__(self, street: Street, names: Sequence[str]) -> None:
        self.boxes = {name: MotDetector(street.boxes) for name in names}
        self.batches: list[tuple[str, ...]] = []

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        self.batches.append(tuple(frame.camera for frame in frames))
        time.sleep(0.02)  # slower than the readers, so that each of them has a frame in the next round
        return [self.boxes[frame.camera].detect([frame])[0] for frame in frames]

    def close(self) -> None:
        """Nothing is open."""


def test_cameras_that_share_a_detector_are_one_batch_a_round(street: Street, embedder: Embedder) -> None:
    names = ("a", "b", "c")
    shared, done = Together(street, names), Run(embedder)
    done.go(*(CameraPlan(SourceSpec(name, str(street.video), "ground"), shared) for name in names))
    assert all(len(set(batch)) == len(batch) for batch in shared.batches)
    assert sum(len(batch) for batch in shared.batches) == 3 * street.frames
    assert len(shared.batches) < 2 * street.frames, "most rounds have more than one camera's frame"
    for name in names:
        of_one = [one for one in done.sightings if one.event.camera == name]
        check_against_formula(of_one, street, street.frames)


def test_cameras_come_and_go_and_the_others_keep_their_tracks(street: Street, embedder: Embedder) -> None:
    """As a reload does: one camera is replaced in the middle, its ids go on; another one stays."""
    # Files are read as fast as they come: on a busy machine one may be over before the other has begun.
    done = next(found for _ in range(5) if (found := _replaced(street, embedder)) is not None)
    check_against_formula(
        [one for one in done.sightings if one.event.camera == "stays"], street, street.frames
    )
    changed = [one.event for one in done.sightings if one.event.camera == "changes"]
    assert len({event.track for event in changed}) == len(changed)
    assert [event.reason for event in changed].count("stop") >= 1
    check_against_formula(
        [one for one in done.sightings if one.event.camera == "changes"][-5:], street, street.frames
    )


def _replaced(street: Street, embedder: Embedder) -> Run | None:
    """A run in which camera "changes" was replaced while "stays" was read; None if that was over."""
    done, state = Run(embedder), {"replaced": False, "in time": False}

    def tick() -> None:
        stays, changes = (
            next(one for one in done.cameras if one.name == name) for name in ("stays", "changes")
        )
        if changes.frames >= 30 and not state["replaced"]:
            state["replaced"] = True
            state["in time"] = stays.source.state != "ended"
            done.pipeline.remove("changes")
            done.pipeline.add(plan(street, "changes"))

    done.go(plan(street, "stays"), plan(street, "changes"), tick=tick)
    assert state["replaced"]
    return done if state["in time"] else None


def test_annotated_file_has_all_frames_and_the_names(
    street: Street, embedder: Embedder, tmp_path: Path
) -> None:
    one = plan(street)
    annotator = FileAnnotator(one.spec, tmp_path / "out.mp4")
    Run(embedder, sinks=[annotator], watchers=[annotator]).go(one)
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
