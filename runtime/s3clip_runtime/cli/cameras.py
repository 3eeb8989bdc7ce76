"""From the words of the command line to the cameras of a pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.streams.camera import Camera
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.detection.yolox import YoloxDetector
from s3clip_runtime.streams.reading.sources import parse_source

BACKGROUND = "background"
_CHOICES = f"'{BACKGROUND}', a YOLOX network (.onnx) or MOT boxes (.txt)"


def build_cameras(
    sources: Sequence[str],
    detectors: Sequence[str],
    tiles: tuple[int, int] | None,
    open_network: Callable[[Path], Session],
    min_frames: int,
) -> list[Camera]:
    """One camera a source, each with its own detector, tracker and tracklets.

    Args:
        sources: `[name=]URL@platform`.
        detectors: `DETECTOR` for all sources or `NAME=DETECTOR` for one; none means background motion.
        tiles: rows and columns that a YOLOX detector cuts frames into; None leaves them whole.
        open_network: path to the open graph of a detector; the caller closes it. Called once a path.
        min_frames: tracklets seen in fewer frames give no event.

    Raises:
        ConfigError: a source or detector cannot be understood, or a name occurs twice.
        BackendError: a network cannot be loaded.
        SourceError: a MOT file cannot be read.
    """
    specs = [parse_source(text) for text in sources]
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        raise ConfigError(f"two sources are named {twice[0]!r}; give each its own name: NAME=URL@platform")
    networks = cache(open_network)  # cameras with the same network share one session
    choices = detector_choices([spec.name for spec in specs], detectors)
    return [Camera(spec, _detector(choices[spec.name], tiles, networks), min_frames) for spec in specs]


def detector_choices(names: Sequence[str], detectors: Sequence[str]) -> Mapping[str, str]:
    """Source name to detector: `NAME=DETECTOR` goes before `DETECTOR`, which goes before background motion.

    Raises:
        ConfigError: an unknown source, or two choices for one source.
    """
    general: list[str] = []
    special: dict[str, str] = {}
    for text in detectors:
        name, mark, choice = text.partition("=")
        if not mark:
            general.append(text)
        elif name not in names:
            raise ConfigError(f"--detector {text}: no source is named {name!r}; sources: {', '.join(names)}")
        elif name in special:
            raise ConfigError(f"--detector is given twice for source {name!r}; leave one out")
        else:
            special[name] = choice
    if len(general) > 1:
        raise ConfigError(
            f"--detector is given twice for all sources ({', '.join(general)}); write NAME=DETECTOR"
        )
    return {name: special.get(name, general[0] if general else BACKGROUND) for name in names}


def _detector(
    choice: str, tiles: tuple[int, int] | None, open_network: Callable[[Path], Session]
) -> Detector:
    suffix = Path(choice).suffix.lower()
    if tiles is not None and suffix != ".onnx":
        raise ConfigError(f"--tiles works with a network (.onnx), not with {choice!r}; leave it out")
    if choice == BACKGROUND:
        return BackgroundDetector()
    if suffix == ".txt":
        return MotDetector(Path(choice))
    if suffix == ".onnx":
        return YoloxDetector(open_network(Path(choice)), tiles=tiles or (1, 1))
    raise ConfigError(f"detector {choice!r} is unknown; give {_CHOICES}")
