"""Views of the persons in a video whose boxes and ids a MOT file tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3clip_runtime.cli.gallery.views import View
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.spec import platform_id
from s3clip_runtime.streams.camera import MAX_GAP_S, MAX_TRACKLET_S, MIN_FRAMES
from s3clip_runtime.streams.detection.mot import MotTracks
from s3clip_runtime.streams.frames import Frame
from s3clip_runtime.streams.looks import Look
from s3clip_runtime.streams.outputs.stored_pictures import stored_pictures
from s3clip_runtime.streams.reading.addresses import SourceSpec, kind_of, parse_source, refusal
from s3clip_runtime.streams.tracking.tracklets import TrackletBuilder


class PersonVideo:
    """A video, or a folder of pictures, with boxes of persons.

    Args:
        address: `[NAME=]PATH@PLATFORM`. The name is the camera's; the file's stem if there is none.
        camera: goes before that name.
        boxes: MOT file with ids.
        names: id to name of those who are wanted.

    Raises:
        ConfigError: the address cannot be understood, or an id is not in the file.
        SourceError: the video is no file or folder, or the MOT file cannot be used.
    """

    def __init__(self, address: str, camera: str | None, boxes: Path, names: Mapping[int, str]) -> None:
        spec = _stored(parse_source(address))
        self._spec = spec if camera is None else replace(spec, name=camera)
        self._tracks = MotTracks(boxes)
        self._names = names
        absent = sorted(set(names) - self._tracks.ids)
        if absent:
            held = ", ".join(map(str, sorted(self._tracks.ids)))
            raise ConfigError(f"--name: {boxes} has no person {absent[0]}; it has {held}")

    def views(self) -> Iterator[View]:
        """A view of each tracklet of the wanted persons: of at most 10 s and at least 4 frames, its clip
        chosen by quality as in a run.

        Raises:
            SourceError: the video cannot be read.
        """
        builder = TrackletBuilder(
            self._spec.name,
            platform_id(self._spec.platform),
            max_gap_s=MAX_GAP_S,
            max_seconds=MAX_TRACKLET_S,
        )
        pictures = tqdm(stored_pictures(self._spec), desc="video", unit="frame", disable=None, leave=False)
        for index, (image, fps) in enumerate(pictures):
            frame = Frame(self._spec.name, index, index / fps, image)
            # All persons of the frame: who stands before another one lowers the quality of that one's crop.
            yield from map(self._view, self._wanted(builder.add(frame, self._tracks.observations(frame), 0)))
        yield from map(self._view, self._wanted(builder.finish("end")))

    def _wanted(self, looks: list[Look]) -> list[Look]:
        return [
            look
            for look in looks
            if look.stage == "final"
            and look.tracklet.track in self._names
            and look.tracklet.seen >= MIN_FRAMES
        ]

    def _view(self, look: Look) -> View:
        tracklet = look.tracklet
        return View(
            name=self._names[tracklet.track],
            source=f"{Path(self._spec.url).name} {tracklet.track} {tracklet.start_s:.2f} s",
            platform=self._spec.platform,
            camera=self._spec.name,
            quality=float(np.mean([tracklet.qualities[one.position].value for one in look.chosen])),
            clip=lambda: look.clip,
        )


def _stored(spec: SourceSpec) -> SourceSpec:
    if kind_of(spec) not in ("file", "folder"):
        raise refusal(spec, "people are enrolled from a video file or a folder of pictures; record it first")
    return spec
