"""The contact sheet: all tracklets of a run in one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import SinkError
from s3clip_runtime.streams.events import Enhancement, Sighting
from s3clip_runtime.streams.outputs.drawing import SheetMatch, SheetRow, contact_sheet
from s3clip_runtime.streams.status import OutputStatus

_NOT_ENHANCED: Mapping[Enhancement, str] = {
    "used": "not kept",
    "hr": "high resolution: not needed",
    "switch": "tall enough: not needed",
    "budget": "left out: too slow today",
    "off": "turned off",
}


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a uint8 (h, w, 3) RGB picture, overwriting.

    Raises:
        SinkError: the file cannot be written.
    """
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise SinkError(
            f"the picture {path} cannot be written: {error.strerror}; name a writable file"
        ) from error


class ContactSheet:
    """Collects final sightings and draws them as one PNG at `write`.

    Args:
        path: the PNG.
        title: first line of the picture.
        known_crops: identity to a crop of it, for those that have one.
    """

    MAX_ROWS = 40
    """Later sightings are counted but not drawn."""

    def __init__(
        self,
        path: Path,
        title: str,
        known_crops: Mapping[str, NDArray[np.uint8]],
    ) -> None:
        self._path = path
        self._title = title
        self._known_crops = known_crops
        self._kept: list[Sighting] = []
        self._seen = 0

    def sighting(self, sighting: Sighting) -> None:
        """Keep the sighting if it is a final one, up to `MAX_ROWS`."""
        if sighting.event.look != "final":
            return
        self._seen += 1
        if len(self._kept) < self.MAX_ROWS:
            self._kept.append(sighting)

    def status(self) -> OutputStatus:
        """How many sightings it counted."""
        return OutputStatus(self._path.name, self._seen)

    def close(self) -> None:
        """Nothing is open; `write` draws."""

    def write(self, verdict: Callable[[Sighting], tuple[str, bool | None]]) -> None:
        """Draw and write.

        Args:
            verdict: text under a row's facts, and whether it is good, bad or neither.

        Raises:
            SinkError: the file cannot be written.
        """
        rows = [self._row(sighting, *verdict(sighting)) for sighting in self._kept]
        title = f"{self._title} - {self._seen} tracklets"
        if self._seen > len(rows):
            title += f", the first {len(rows)} shown"
        write_png(self._path, contact_sheet(rows, title))

    def _row(self, sighting: Sighting, text: str, good: bool | None) -> SheetRow:
        event, clip = sighting.event, sighting.clip
        return SheetRow(
            lines=(
                f"{event.camera} #{event.track}",
                f"{event.first_s:.1f} to {event.last_s:.1f} s, {event.frames} frames"
                if event.clock == "stream"
                else f"{event.first_time}, {event.frames} frames",
                f"{event.height_px:.0f} px high, {event.resolution.upper()}",
                event.decision.replace("_", " ") if event.identity is None else f"is {event.identity}",
            ),
            crops=clip.crops,
            enhanced=sighting.pictures,
            matches=tuple(
                SheetMatch(match.identity, match.score, self._known_crops.get(match.identity))
                for match in sighting.matches
            ),
            verdict=text,
            good=good,
            not_enhanced=_NOT_ENHANCED[event.enhancement],
        )
