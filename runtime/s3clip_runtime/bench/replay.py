"""A run over several copies of one video, as fast as it goes, in a process of its own.

    python -m s3clip_runtime.bench.replay '{"bundle": "DIR", "video": "FILE", ...}'

The pipeline, its readers, tracker and batcher are those of s3clip-run. Nothing is written.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from s3clip_runtime.bench.galleries import made_gallery
from s3clip_runtime.bench.load import LoadMeter
from s3clip_runtime.bench.stages import MATCH_PROTOTYPES
from s3clip_runtime.errors import S3ClipError
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.streams.camera import CameraPlan
from s3clip_runtime.streams.detection.choose import Choice, open_detectors
from s3clip_runtime.streams.events import EventMaker, new_run_id
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.outputs import Outputs
from s3clip_runtime.streams.pipeline import Pipeline
from s3clip_runtime.streams.reading.addresses import SourceSpec
from s3clip_runtime.streams.recognition.batcher import Batcher


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be run; None leaves the choice to the runtime, as in s3clip-run."""

    bundle: str
    video: str
    platform: str
    detector: str
    cameras: int
    device: str
    target: str | None
    threads: int | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a run gave.

    Attributes:
        contender: name of the target that ran.
        frames: of all cameras, without the very first one.
        seconds: from the first frame of all to the last event.
        cores_used: CPU seconds a second meanwhile, decoders included.
        dropped: frames that a camera dropped and looks that were left out.
        events: sightings.
    """

    contender: str
    frames: int
    seconds: float
    cores_used: float
    dropped: int
    events: int


class _FirstFrame:
    """Starts the meter when the first frame was processed: opening and loading are no part of a rate."""

    def __init__(self) -> None:
        self.meter: LoadMeter | None = None
        self.start_s = 0.0

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Note the first one."""
        if self.meter is None:
            self.meter, self.start_s = LoadMeter(), time.monotonic()


def replay(task: Task) -> Replayed:
    """Run to the end of all copies.

    Raises:
        S3ClipError: the bundle, the video or the detector cannot be used.
    """
    stop = threading.Event()
    bundle = Bundle.open(Path(task.bundle))
    manifest = bundle.manifest
    names = [f"camera-{number + 1}" for number in range(task.cameras)]
    with ExitStack() as stack:
        embedder = stack.enter_context(
            Embedder(
                bundle,
                device=task.device,
                target=None if task.target is None else Target.parse(task.target),
                threads=task.threads,
            )
        )
        gallery = stack.enter_context(made_gallery(MATCH_PROTOTYPES, manifest.contract.embedding_dim))
        detectors = open_detectors(
            {name: Choice(task.detector) for name in names},
            device=task.device,
            threads=task.threads,
            stop=stop,
        )
        stack.callback(detectors.close)
        first = _FirstFrame()
        outputs = Outputs({}, [first])
        stack.callback(outputs.close)
        maker = EventMaker(
            new_run_id(),
            manifest.name,
            manifest.embedding_space,
            with_embedding=False,
        )
        recogniser = Recogniser(gallery, Rules())
        batcher = Batcher(embedder, recogniser, maker, outputs.sighting, enhances=bundle.enhances)
        pipeline = Pipeline(batcher, outputs, stop)
        stack.callback(pipeline.close)
        for name in names:
            spec = SourceSpec(name, task.video, task.platform)
            pipeline.add(CameraPlan(spec, detectors.of_camera(name)))
        pipeline.run(lambda: None)
        seconds = time.monotonic() - first.start_s
        for error in pipeline.errors():
            raise error
        cameras = pipeline.status()
        return Replayed(
            contender=str(embedder.target),
            frames=max(sum(camera.frames for camera in cameras) - 1, 0),
            seconds=seconds,
            cores_used=0.0 if first.meter is None else first.meter.read().cores_used,
            dropped=sum(sum(camera.source.drops.values()) + camera.shed for camera in cameras),
            events=sum(camera.events for camera in cameras),
        )


def main(arguments: list[str]) -> None:
    """Print what was found as JSON, or an expected error."""
    try:
        found = asdict(replay(Task(**json.loads(arguments[0]))))
    except S3ClipError as error:
        found = {"error": " ".join(str(error).split())}
    print(json.dumps(found))


if __name__ == "__main__":  # the readers are processes that import this module again
    main(sys.argv[1:])
