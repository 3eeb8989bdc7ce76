"""What takes sightings."""

from __future__ import annotations

from typing import Protocol

from s3clip_runtime.streams.events import Sighting
from s3clip_runtime.streams.status import OutputStatus


class SightingSink(Protocol):
    """Takes sightings. `sighting` is called by one thread at a time, `status` by any thread."""

    def sighting(self, sighting: Sighting) -> None:
        """Take one sighting, without waiting for a network. Raises SinkError when broken for good."""

    def status(self) -> OutputStatus:
        """How it is doing."""

    def close(self) -> None:
        """Hand over what waits, for at most a few seconds. Raises SinkError for what could not be kept."""
