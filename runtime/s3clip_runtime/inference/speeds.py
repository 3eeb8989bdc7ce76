"""How fast a bundle's targets were on this machine, as far as its manifest tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends.cuda import gpu
from s3clip_runtime.inference.cpus import cpu_model, usable_cpus
from s3clip_runtime.inference.evidence import Speed
from s3clip_runtime.inference.manifest import Manifest


class Place(NamedTuple):
    """Where a speed was measured, with the fields of `Speed`: those of one place may be compared."""

    device: str
    cpu: str
    cores: int
    gpu: str | None

    @classmethod
    def of(cls, speed: Speed) -> Place:
        """Where this one was measured."""
        return cls(speed.device, speed.cpu, speed.cores, speed.gpu)

    @classmethod
    def here(cls, device: str) -> Place:
        """This machine, with what this process may use of it.

        Raises:
            BackendError: the device is "cuda" and no GPU answers.
        """
        return cls(device, cpu_model(), usable_cpus(), gpu().name if device == "cuda" else None)


def speeds_here(manifest: Manifest, device: str) -> dict[str, float]:
    """Milliseconds that one LR and one HR tracklet took together on this machine, by the targets' names.

    Empty if nothing was measured here, or with another number of cores than this process may use now.
    """
    measured = [speed for speed in manifest.speeds if speed.device == device]
    if not measured:  # the common case, in which the GPU need not be asked
        return {}
    try:
        here = Place.here(device)
    except BackendError:
        return {}  # what opens the graphs will say so
    return {speed.target: speed.lr_ms + speed.hr_ms for speed in measured if Place.of(speed) == here}


def with_speeds(manifest: Manifest, measured: Iterable[Speed]) -> Manifest:
    """The manifest with these speeds in the place of those that the same targets had at the same place."""
    renewed = {(speed.target, Place.of(speed)): speed for speed in measured}
    others = (speed for speed in manifest.speeds if (speed.target, Place.of(speed)) not in renewed)
    return manifest.changed(speeds=(*others, *renewed.values()))
