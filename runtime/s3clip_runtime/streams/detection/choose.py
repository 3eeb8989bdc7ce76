"""From the word that names a detector to the detector, for all cameras of a run at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from s3clip_runtime.errors import BackendError, ConfigError
from s3clip_runtime.streams.detection.background import BackgroundDetector
from s3clip_runtime.streams.detection.box_address import is_box_address, parse_box_address
from s3clip_runtime.streams.detection.detector import Detector
from s3clip_runtime.streams.detection.external import ExternalBoxes
from s3clip_runtime.streams.detection.folder import open_folder, open_graph
from s3clip_runtime.streams.detection.mot import MotDetector
from s3clip_runtime.streams.detection.network import NetworkDetector, Settings
from s3clip_runtime.streams.reading.addresses import redact

BACKGROUND = "background"
CHOICES = (
    f"'{BACKGROUND}', a network (FILE.onnx, or a folder of s3clip-export detector), MOT boxes (FILE.txt), or "
    "JSON lines from '-', unix:PATH or tcp:HOST:PORT"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What one camera's detector shall be.

    Attributes:
        detector: one of `CHOICES`.
        tiles: (rows, columns) that a network cuts the camera's frames into; None leaves them whole.
        layout: of a network in an .onnx file, where it is not recognised.
    """

    detector: str = BACKGROUND
    tiles: tuple[int, int] | None = None
    layout: str | None = None


class Detectors:
    """The detectors of some cameras.

    Cameras that name the same network share one session, and those that name the same address of JSON lines
    one listener; all others have their own. Made by `open_detectors`.
    """

    def __init__(self, of_camera: Mapping[str, Detector]) -> None:
        self._of_camera = dict(of_camera)

    def of_camera(self, camera: str) -> Detector:
        """The detector of one camera, perhaps shared with others."""
        return self._of_camera[camera]

    def close(self) -> None:
        """Close all. A second call does nothing."""
        with ExitStack() as stack:  # all are closed, even if one cannot be
            for detector in dict.fromkeys(self._of_camera.values()):
                stack.callback(detector.close)


def open_detectors(
    choices: Mapping[str, Choice],
    *,
    device: str = "auto",
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> Detectors:
    """Open the detectors of all cameras; the caller closes them.

    Args:
        choices: camera to what it wants.
        device: of the networks: "auto", "cpu" or "cuda".
        threads: CPU threads of a network; None takes all.
        stop: when set, nothing waits for boxes from outside any more.

    Raises:
        ConfigError: a choice cannot be understood.
        BackendError: a network cannot be loaded, or is of no known layout.
        BundleError: a detector's folder is not what its manifest says.
        SourceError: a MOT file cannot be read, or an address cannot be listened on.
    """
    for camera, choice in choices.items():
        _check(camera, choice)
    groups: dict[tuple[str, str | None], list[str]] = {}
    for camera, choice in choices.items():
        groups.setdefault((choice.detector, choice.layout), []).append(camera)
    found: dict[str, Detector] = {}
    with ExitStack() as opened:
        for (name, layout), cameras in groups.items():
            if is_box_address(name):
                shared: Detector = ExternalBoxes(parse_box_address(name), cameras, stop=stop)
            elif is_network(name):
                tiles = {camera: tile for camera in cameras if (tile := choices[camera].tiles) is not None}
                shared = _open_network(Path(name), layout, tiles, device, threads)
            else:
                found |= {camera: _own(name) for camera in cameras}
                continue
            opened.callback(shared.close)
            found |= dict.fromkeys(cameras, shared)
        opened.pop_all()
    return Detectors({camera: found[camera] for camera in choices})


def _check(camera: str, choice: Choice) -> None:
    name = choice.detector
    network = is_network(name)
    shown = redact(name).partition("?")[0]  # an address may hold a token or a password
    if choice.tiles is not None and not network:
        raise ConfigError(
            f"camera {camera}: tiles work with a network, not with detector {shown!r}; leave them out"
        )
    if choice.layout is not None and Path(name).suffix.lower() != ".onnx":
        raise ConfigError(
            f"camera {camera}: a layout is named for an .onnx file, not for detector {shown!r}; leave it out"
        )
    if not (network or name == BACKGROUND or is_box_address(name) or Path(name).suffix.lower() == ".txt"):
        raise ConfigError(f"camera {camera}: detector {shown!r} is unknown; give {CHOICES}")


def is_network(name: str) -> bool:
    """Whether a word for a detector names a network."""
    if name == BACKGROUND or is_box_address(name):
        return False
    return Path(name).suffix.lower() == ".onnx" or Path(name).is_dir()


def _open_network(
    path: Path,
    layout: str | None,
    tiles: Mapping[str, tuple[int, int]],
    device: str,
    threads: int | None,
) -> NetworkDetector:
    if path.is_dir():
        session, settings = open_folder(path, device, threads)
    else:
        session, settings = open_graph(path, device, threads), Settings(layout)
    try:
        return NetworkDetector(session, settings, tiles=tiles)
    except (BackendError, ConfigError) as error:
        session.close()
        raise type(error)(f"{path}: {error}") from error


def _own(name: str) -> Detector:
    return BackgroundDetector() if name == BACKGROUND else MotDetector(Path(name))
