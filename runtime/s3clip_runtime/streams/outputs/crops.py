"""Pictures of who was seen, for people, with a limit in days and in space."""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.events import Sighting, SightingEvent
from s3clip_runtime.streams.status import OutputStatus

_log = logging.getLogger(__name__)

Which = Literal["match", "unknown", "all"]

_OURS = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}-\d{6,}_.*\.jpg(\.part)?")
_QUEUE = 32
_CLOSE_S = 1.5
_IDLE_S = 60.0
_RESCAN_S = 3600.0
_NAME_LENGTH = 60
_PAPER = 96  # grey behind crops of different sizes
_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    unix_s: float
    size: int


class CropFolder:
    """Writes the crops of final sightings as one JPEG each: as seen, and below them super-resolved.

    Files are called EVENT_ID_CAMERA_WHO.jpg and hold the crops at their own size. Those older than
    `keep_days`, and the oldest while there are more than `max_mb`, are deleted; other files in the folder
    are left alone. Pictures are written by a thread of its own; when it cannot keep up, they are dropped and
    counted as lost.

    Pictures of people are personal data: the folder is made for its owner and group alone.

    Args:
        folder: made if missing.
        which: "match": of identities of the gallery; "unknown": of all others, without a gallery too; "all".
        keep_days: age at which a picture is deleted, above 0.
        max_mb: space of all pictures, above 0.

    Raises:
        ConfigError: a limit or `which` is out of range.
        SinkError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, which: Which, keep_days: float, max_mb: float) -> None:
        if which not in ("match", "unknown", "all"):
            raise ConfigError(f"crops: which = {which!r} is unknown; use match, unknown or all")
        if keep_days <= 0 or max_mb <= 0:
            raise ConfigError(f"crops: keep_days {keep_days} and max_mb {max_mb} must be above 0; raise them")
        self._folder = folder
        self._which = which
        self._keep_s = keep_days * 86_400
        self._max_bytes = int(max_mb * 1e6)
        self._written = self._lost = 0
        self._error = ""
        self._queue: queue.Queue[Sighting | None] = queue.Queue(_QUEUE)
        self._closing = threading.Event()
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._scan()
            self._expire()
        except OSError as error:
            rule = f"crops: folder {folder} cannot be used: {error.strerror}"
            raise SinkError(f"{rule}; name a writable folder") from error
        self._thread = threading.Thread(target=self._run, name="crops", daemon=True)
        self._thread.start()

    def sighting(self, sighting: Sighting) -> None:
        """Queue the pictures of a final sighting that is of interest."""
        event = sighting.event
        if event.look != "final" or not self._wanted(event):
            return
        try:
            self._queue.put_nowait(sighting)
        except queue.Full:
            self._lose("pictures come faster than they are written")

    def status(self) -> OutputStatus:
        """How many pictures are written, wait, and are lost."""
        name = f"crops in {self._folder.name}"
        return OutputStatus(name, self._written, self._queue.qsize(), self._lost, self._error)

    def close(self) -> None:
        """Write what waits, for at most 1.5 s. Calling it again does nothing.

        Raises:
            SinkError: pictures are left.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        with suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            raise SinkError(f"crops: {self._queue.qsize()} pictures were not written: the disk is too slow")

    def _wanted(self, event: SightingEvent) -> bool:
        return self._which == "all" or (self._which == "match") == (event.decision == "match")

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                sighting = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                sighting = None
            if sighting is not None:
                self._try_to_write(sighting)
            try:
                if time.monotonic() - self._scanned_s > _RESCAN_S:  # people delete files too
                    self._scan()
                self._expire()
            except OSError as error:
                self._error = f"old pictures cannot be deleted: {error.strerror}"

    def _try_to_write(self, sighting: Sighting) -> None:
        try:
            self._write(sighting)
        except OSError as error:
            self._lose(error.strerror or str(error))
        except Exception as error:  # a bug must not end the output for months
            _log.exception("crops: unexpected")
            self._lose(f"unexpected {type(error).__name__}")

    def _write(self, sighting: Sighting) -> None:
        """Write under another name first, so that nobody reads half a picture."""
        path = self._folder / file_name(sighting.event)
        part = path.with_name(path.name + ".part")
        pictures = () if sighting.pictures is None else tuple(sighting.pictures)
        image = Image.fromarray(strip(sighting.clip.crops, pictures))
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
            with os.fdopen(fd, "wb") as file:
                image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
                size = file.tell()
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._kept.append(_Kept(path, time.time(), size))
        self._bytes += size
        self._written += 1
        self._error = ""

    def _scan(self) -> None:
        """Find our pictures, also those of earlier runs."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    facts = entry.stat(follow_symlinks=False)
                    found.append(_Kept(Path(entry.path), facts.st_mtime, facts.st_size))
        self._kept = deque(sorted(found, key=lambda kept: (kept.unix_s, kept.path.name)))
        self._bytes = sum(kept.size for kept in found)
        self._scanned_s = time.monotonic()

    def _expire(self) -> None:
        """Delete the oldest pictures while they are too old or too many."""
        too_old_s = time.time() - self._keep_s
        while self._kept and (self._kept[0].unix_s < too_old_s or self._bytes > self._max_bytes):
            self._kept[0].path.unlink(missing_ok=True)
            self._bytes -= self._kept.popleft().size

    def _lose(self, reason: str) -> None:
        if reason != self._error:
            _log.warning("crops: a picture is lost: %s", reason)
        self._error = reason
        self._lost += 1


def file_name(event: SightingEvent) -> str:
    """EVENT_ID_CAMERA_WHO.jpg, in letters that no file system takes for a path."""
    parts = (event.event_id, event.camera, event.identity or event.decision)
    return "_".join(map(_part, parts)) + ".jpg"


def pictures_of(
    folder: Path,
    *,
    names: Collection[str] | None = None,
    camera: str | None = None,
    since_s: float = 0.0,
    until_s: float = float("inf"),
) -> list[Path]:
    """The pictures that a `CropFolder` wrote into `folder`, of some people or of what a camera saw.

    Names that differ only in letters that file names do without, or after 60 letters, are one here.

    Args:
        names: of identities; None: everybody, also those whom nobody knew.
        camera: None: every one.
        since_s, until_s: Unix seconds of writing, which is when the person was seen last.

    Raises:
        SinkError: the folder cannot be read.
    """
    who = None if names is None else set(map(_part, names))
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _OURS.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                parts = entry.name.removesuffix(".part").removesuffix(".jpg").split("_", 2)
                place, name = parts[1], parts[-1]
                written_s = entry.stat(follow_symlinks=False).st_mtime
                if (
                    (who is None or name in who)
                    and (camera is None or place == _part(camera))
                    and since_s <= written_s <= until_s
                ):
                    found.append(Path(entry.path))
    except OSError as error:
        raise SinkError(
            f"crops: folder {folder} cannot be read: {error.strerror}; name the folder of outputs.crops"
        ) from error
    return sorted(found)


def written_alike(names: Collection[str], others: Collection[str]) -> set[str]:
    """Of other people's names those that stand in names of files as one of these does."""
    parts = set(map(_part, names))
    return {name for name in others if _part(name) in parts}


def _part(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)[:_NAME_LENGTH]


def strip(crops: Sequence[NDArray[np.uint8]], pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One picture, uint8 (H, W, 3) RGB: the crops side by side at their own size, the pictures below."""
    rows = [row for row in (crops, pictures) if row]
    heights = [max(crop.shape[0] for crop in row) for row in rows]
    width = max(sum(crop.shape[1] for crop in row) for row in rows)
    canvas = np.full((sum(heights), width, 3), _PAPER, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for crop in row:
            canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
            left += crop.shape[1]
        top += height
    return canvas
