"""Sightings for the tests of sinks, with ids as real runs have them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from s3clip_runtime.gallery.open_set.decision import Decision
from s3clip_runtime.gallery.recognition.deciding import Recognised
from s3clip_runtime.gallery.records import Identity, Kind, Match
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.streams.events import STEPS, EventMaker, Sighting, Unasked
from s3clip_runtime.streams.looks import Chosen, CropQuality, Look, Stage, Tracklet

RUN = "20261123T032600Z-1a2b3c"
EMBEDDING = np.array([0.6, 0.8], np.float32)


def recognised(
    score: float, *, name: str | None = None, kind: Kind = "known", runner_up: Match | None = None
) -> Recognised:
    """A look whose best match is `name`, believed at 0.6 and above; without one it is nobody's."""
    identity = None if name is None else Identity("00ff", name, kind, "", 0.0, None)
    decision = Decision(
        "unknown" if name is None else "match", name, name or "bert", score, 0.6, 0.87654, runner_up
    )
    return Recognised(decision, identity, ())


MATCH = recognised(0.91, name="anna", runner_up=Match("bert", 0.5))
UNKNOWN = recognised(0.3)

_QUALITY = CropQuality(1, 1, 1, 1, 0, False)


def sightings(
    count: int, *, decision: Recognised | Unasked = "no_gallery", stage: Stage = "final", seed: int = 0
) -> list[Sighting]:
    """Different lengths, so that the place where the disk is full differs from line to line."""
    rng = np.random.default_rng(seed)
    maker = EventMaker(RUN, "tiny", "ab" * 32, with_embedding=False)
    made = []
    for number in range(count):
        crops = tuple(rng.integers(0, 256, (40 + 9 * i, 20 + i, 3)).astype(np.uint8) for i in range(3))
        clip = Clip(crops, 0, hr=False)
        camera = "c" * (number % 7 + 1)
        boxes = np.array([[0, 0, 10, 30], [5, 0, 15, 40], [10, 0, 20, 32]], np.float32)
        times = np.array([1.0, 1.5, 2.25])
        tracklet = Tracklet(
            camera, 0, "stream", 0, number, 0, 1.0, 2.25, 7, crops, (_QUALITY,) * 3, times, boxes
        )
        chosen = (Chosen(0, 0.5), Chosen(1, 0.5))
        look = Look(tracklet, stage, "gone", clip, chosen, live=False)
        event = maker.make(look, "used", EMBEDDING, decision, dict.fromkeys(STEPS, 1.0), now_unix_s=0)
        made.append(Sighting(event, clip, EMBEDDING, ()))
    return made


def with_pictures(sighting: Sighting, seed: int = 1) -> Sighting:
    pictures = np.random.default_rng(seed).integers(0, 256, (3, 128, 64, 3)).astype(np.uint8)
    return replace(sighting, pictures=pictures)


def text(many: list[Sighting]) -> str:
    """The lines of an events file."""
    return "".join(one.event.line() + "\n" for one in many)


def ids(many: list[Sighting]) -> list[str]:
    return [one.event.event_id for one in many]


def wait_for(condition: Callable[[], object], timeout_s: float = 15) -> None:
    """Until it holds; an AssertionError when it does not in time."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.02)
