"""`s3clip-run --demo`: learn people from a ground camera, find them from the air, compare with the truth.

All of it is synthetic: drawn people, and a tiny model trained on drawn people. It shows that the pieces work
together, and nothing about accuracy on real video.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.cli.gallery.embedding import space_of
from s3clip_runtime.cli.session import LookSettings, Matching, Session, finish_outputs, raise_problems
from s3clip_runtime.cli.site import open_embedder
from s3clip_runtime.errors import ConfigError, S3ClipError, SinkError
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.streams.camera import CameraPlan
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.events import Sighting, SightingEvent
from s3clip_runtime.streams.frames import Frame, Observation
from s3clip_runtime.streams.outputs.annotate import FileAnnotator
from s3clip_runtime.streams.outputs.contact_sheet import ContactSheet
from s3clip_runtime.streams.outputs.json_lines import JsonLines
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.reading.sources import SourceSpec
from s3clip_runtime.streams.status import OutputStatus

MIN_IOU = 0.3
"""A detection is the true person whose box it overlaps most, if by this much. Low: aerial people are tiny."""

BY_HAND = 0.6
"""Cosine from which the demo names somebody. Chosen by hand: everybody in its aerial video was enrolled. To
let in one stranger in twenty its tiny model needs 0.97, and then it finds few of those it knows
(docs/open-set.md)."""

_OWN_FILES = ("events.jsonl", *(f"gallery.sqlite{end}" for end in ("", "-journal", "-wal", "-shm")))
_COLUMNS = "{:>10} {:>7} {:>7} {:>9}  {:<12} {:>6}  {:<12} {}"

Verdict = Literal["ok", "miss", "unknown", "not enrolled", "no truth"]


class Truth:
    """The people who are really there, from a MOT file, and which tracks follow whom.

    Args:
        path: lines `frame (from 1),id,x,y,width,height,...`.
    """

    def __init__(self, path: Path) -> None:
        self._boxes: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
        self._votes: dict[int, list[tuple[float, int | None]]] = defaultdict(list)
        for line in path.read_text(encoding="ascii").splitlines():
            frame, person, x, y, width, height = (float(word) for word in line.split(",")[:6])
            box = np.array([x, y, x + width, y + height], np.float32)
            self._boxes[int(frame) - 1].append((int(person), box))

    def frame(self, frame: Frame, observations: Sequence[Observation]) -> None:
        """Note for each track whom it overlaps most in this frame."""
        people = self._boxes.get(frame.index, [])
        for one in observations:
            overlap, person = max(((iou(one.box, box), person) for person, box in people), default=(0.0, 0))
            self._votes[one.track].append((frame.time_s, person if overlap >= MIN_IOU else None))

    def name(self, event: SightingEvent) -> str | None:
        """The person whom the sighting shows in more than half of its frames, e.g. `person-0007`, or None."""
        votes = [
            person
            for time_s, person in self._votes[event.track]
            if event.first_s - 1e-3 <= time_s <= event.last_s + 1e-3
        ]
        person, count = Counter(votes).most_common(1)[0]
        return f"person-{person:04d}" if person is not None and 2 * count > len(votes) else None


class Kept:
    """Keeps all sightings of a run; the demo's videos are short."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []

    def sighting(self, sighting: Sighting) -> None:
        """Keep one."""
        self.sightings.append(sighting)

    def status(self) -> OutputStatus:
        """How many there are."""
        return OutputStatus("memory", len(self.sightings))

    def close(self) -> None:
        """Nothing is open."""


def run_demo(
    out: Path,
    bundle: Path | None,
    threshold: float | None,
    device: str,
    threads: int | None,
    stop: threading.Event,
) -> None:
    """Run the demo and print its table on standard output.

    Args:
        out: folder of the results; files of an earlier demo are replaced, others are left alone.
        bundle: None takes the bundled one.
        threshold: None takes `BY_HAND`, and says so.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; None takes all.
        stop: set it to end in order.

    Raises:
        S3ClipError: something failed; what could be written was written.
    """
    _clear(out)
    with ExitStack() as stack:
        data = stack.enter_context(as_file(files("s3clip_runtime.demo")))
        if not (data / "ground.mp4").is_file():
            raise ConfigError("this installation holds no demo videos; install s3clip from its wheel")
        opened = Bundle.open(bundle or data / "bundle")
        if threshold is None:
            click.echo(
                f"threshold {BY_HAND}: chosen by hand for this demo, in which everybody was enrolled; sites "
                "measure theirs with s3clip-gallery calibrate",
                err=True,
            )
        embedder = open_embedder(stack, opened, device, threads)
        gallery = stack.enter_context(
            Gallery.open(out / "gallery.sqlite", space_of(opened), actor="s3clip-run --demo")
        )
        problems: list[S3ClipError] = []
        blind = Matching(opened, embedder, None)
        faces = _enrol_ground(data, out, blind, gallery, stop, problems)
        rules = Rules(threshold=BY_HAND if threshold is None else threshold)
        seeing = Matching(opened, embedder, Recogniser(gallery, rules))
        _find_aerial(data, out, seeing, faces, stop, problems)
    if stop.is_set():
        click.echo("Stopped early: the table covers only what was read.")
    raise_problems(problems)


def verdict_of(event: SightingEvent, truth: str | None, enrolled: Mapping[str, object]) -> Verdict:
    """How the event compares with the truth. A wrong name is always a miss, whoever it really was."""
    if truth is None:
        return "no truth"
    if event.identity is not None:
        return "ok" if event.identity == truth else "miss"
    return "unknown" if truth in enrolled else "not enrolled"


def iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Overlap over union of two boxes x1, y1, x2, y2, in [0, 1]."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    total = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared
    return shared / total if total > 0 else 0.0


def _clear(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _OWN_FILES:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise SinkError(
            f"folder {out} cannot be used: {error.strerror}; name another one by --out"
        ) from error


def _enrol_ground(
    data: Path,
    out: Path,
    matching: Matching,
    gallery: Gallery,
    stop: threading.Event,
    problems: list[S3ClipError],
) -> dict[str, NDArray[np.uint8]]:
    """Names the tracklets of the ground video by the truth and enrols them; returns a crop of each person."""
    click.echo("ground: learning who is there (names come from the truth file)", err=True)
    spec = SourceSpec("ground", str(data / "ground.mp4"), "ground")
    truth, kept, annotator = Truth(data / "ground.txt"), Kept(), FileAnnotator(spec, out / "ground.mp4")
    session = Session(matching, LookSettings(), {"kept": kept}, [truth, annotator], stop)
    session.pipeline.add(CameraPlan(spec, BackgroundDetector()))
    problems += session.run()
    faces: dict[str, NDArray[np.uint8]] = {}
    for sighting in kept.sightings:
        event = sighting.event
        name = truth.name(event)
        annotator.name(event.track, event.part, event.last_s, f"#{event.track} {name or 'not a person'}")
        if name is not None and sighting.embedding is not None:
            source = f"ground.mp4 track {event.track}"
            gallery.enrol(name, sighting.embedding[None], platform="ground", source=source)
            faces[name] = max((*sighting.clip.crops, *_face(faces, name)), key=lambda crop: crop.size)
    finish_outputs(problems, [annotator.write])
    click.echo(f"enrolled {len(faces)} persons from {len(kept.sightings)} ground tracklets", err=True)
    return faces


def _face(faces: Mapping[str, NDArray[np.uint8]], name: str) -> tuple[NDArray[np.uint8], ...]:
    return (faces[name],) if name in faces else ()


def _find_aerial(
    data: Path,
    out: Path,
    matching: Matching,
    faces: Mapping[str, NDArray[np.uint8]],
    stop: threading.Event,
    problems: list[S3ClipError],
) -> None:
    """Runs the aerial video against the gallery, as s3clip-run would, and prints the table."""
    click.echo("aerial: looking for them from above", err=True)
    spec = SourceSpec("aerial", str(data / "aerial.mp4"), "aerial")
    truth, kept, annotator = Truth(data / "aerial.txt"), Kept(), FileAnnotator(spec, out / "aerial.mp4")
    title = "s3clip demo (synthetic people): found from the air"
    sheet = ContactSheet(out / "contact_sheet.png", title, faces)
    sinks: dict[str, SightingSink] = {
        "events": JsonLines(out / "events.jsonl"),
        "kept": kept,
        "video": annotator,
        "sheet": sheet,
    }
    session = Session(matching, LookSettings(pictures=True), sinks, [truth, annotator], stop)
    session.pipeline.add(CameraPlan(spec, BackgroundDetector()))
    problems += session.run()

    def verdict(sighting: Sighting) -> tuple[str, bool | None]:
        name = truth.name(sighting.event)
        word = verdict_of(sighting.event, name, faces)
        good = {"ok": True, "miss": False, "unknown": False}.get(word)
        return f"truth {name or 'nobody'}: {word}", good

    finish_outputs(problems, [annotator.write, lambda: sheet.write(verdict)])
    _print_table([sighting.event for sighting in kept.sightings], truth, faces)
    click.echo(f"pictures, videos and events: {out}/ (start with {out / 'contact_sheet.png'})")


def _print_table(events: Sequence[SightingEvent], truth: Truth, enrolled: Mapping[str, object]) -> None:
    click.echo(
        _COLUMNS.format("track", "frames", "start s", "height px", "found", "score", "truth", "verdict")
    )
    counts: Counter[Verdict] = Counter()
    for event in events:
        name = truth.name(event)
        verdict = verdict_of(event, name, enrolled)
        counts[verdict] += 1
        click.echo(
            _COLUMNS.format(
                f"{event.camera} {event.track}",
                event.frames,
                f"{event.first_s:.1f}",
                f"{event.height_px:.0f}",
                event.identity or "unknown",
                "-" if event.score is None else f"{event.score:.3f}",
                name or "-",
                verdict,
            )
        )
    click.echo(
        f"{len(events)} tracklets: {counts['ok']} right, {counts['miss']} wrong, "
        f"{counts['unknown']} unknown, {counts['not enrolled']} truth not enrolled, "
        f"{counts['no truth']} without truth"
    )
    click.echo(
        "Synthetic data: this shows that the parts work together, not how accurate they are on real video."
    )
