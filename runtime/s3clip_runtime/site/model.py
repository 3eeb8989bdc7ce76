"""The site file as frozen settings. `configs/site.toml` shows every key; a test keeps the two in step."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.gallery.storage.places import is_server
from s3clip_runtime.inference.spec import PLATFORMS
from s3clip_runtime.site.identities import IdentitySettings
from s3clip_runtime.site.outputs import Outputs
from s3clip_runtime.site.page import PageSettings
from s3clip_runtime.site.secrets import read_secret, secret_parts
from s3clip_runtime.site.section import SitePath, SiteSection, Variable, resolved, variable_name
from s3clip_runtime.streams.reading.addresses import SourceSpec

NAME_RULE = "letters, digits, '_', '.' and '-', not dots alone"
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]+")  # not dots alone: names become names of files and folders

Tracker = Literal["bytetrack", "botsort"]


class CameraSettings(SiteSection):
    """One camera."""

    name: str
    """Names it in events, metrics and files."""
    url: SecretStr | None = None
    """A stream's address, `gst:` and a GStreamer pipeline, a device, a video file or a folder of pictures."""
    url_env: Variable | None = None
    url_file: SitePath | None = None
    platform: str
    """One of `spec.PLATFORMS`."""
    detector: str = "background"
    """`background`, a network FILE.onnx or its exported FOLDER, MOT boxes FILE.txt; JSON lines: `-`,
    `unix:PATH`, `tcp:HOST:PORT`, these two with `?token_env=NAME` or `?token_file=PATH` if wanted."""
    tiles: str | None = None
    """ROWSxCOLS that a network also searches, for small persons."""
    tracker: Tracker | None = None
    """None: `bytetrack` on the ground, `botsort`, which follows the camera's own motion, in the air."""
    open_timeout_s: float = Field(default=5.0, ge=0.5, le=60)
    """Seconds in which a connection must stand."""
    read_timeout_s: float = Field(default=3.0, ge=0.5, le=60)
    """Seconds without a picture after which a connection counts as lost."""
    decode: Literal["cpu", "cuda"] = "cpu"
    _address: SecretStr = PrivateAttr()
    _box_token: SecretStr | None = PrivateAttr(None)

    @field_validator("name")
    @classmethod
    def _names(cls, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"may hold only {NAME_RULE}")
        return name

    @field_validator("platform")
    @classmethod
    def _platforms(cls, platform: str) -> str:
        if platform not in PLATFORMS:
            raise ValueError(f"not one of {', '.join(PLATFORMS)}")
        return platform

    @field_validator("detector")
    @classmethod
    def _detectors(cls, detector: str, info: ValidationInfo) -> str:
        if detector in ("background", "-"):
            return detector
        if detector.startswith(("unix:", "tcp:")):
            return _box_address(detector, info)
        path = resolved(Path(detector), info)
        if not os.path.exists(path):  # unlike Path.exists, False where it may not look
            choices = "background, FILE.onnx, FOLDER, FILE.txt, -, unix:PATH or tcp:HOST:PORT"
            raise ValueError(f"no such file or folder; write {choices}")
        return str(path)

    @field_validator("tiles")
    @classmethod
    def _tile_form(cls, tiles: str | None) -> str | None:
        if tiles is not None and re.fullmatch(r"[1-9]\d?x[1-9]\d?", tiles) is None:
            raise ValueError("not ROWSxCOLS with 1 to 99 of each; write for example 2x2")
        return tiles

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        url = self._secret("url", required=True)
        assert url is not None  # required
        self._address = SecretStr(_camera_address(url.get_secret_value(), info))
        self._box_token = _box_token(self.detector)
        if self.tiles is not None and not self._is_network():
            shown = self.detector.partition("?")[0]
            raise ValueError(f"tiles: works with a network, not with detector {shown}; leave it out")
        if self.decode == "cuda" and self._address.get_secret_value().startswith("gst:"):
            raise ValueError("decode: a gst: pipeline brings its own decoder; leave decode out")
        return self

    @property
    def source(self) -> SourceSpec:
        """Name, address and platform; the address as variable or file gave it when the site was loaded."""
        return SourceSpec(self.name, self._address.get_secret_value(), self.platform)

    @property
    def tile_counts(self) -> tuple[int, int]:
        """Rows and columns of the tiles; (1, 1) leaves frames whole."""
        rows, _, columns = (self.tiles or "1x1").partition("x")
        return int(rows), int(columns)

    @property
    def chosen_tracker(self) -> Tracker:
        """The tracker as set, else by the platform."""
        return self.tracker or ("botsort" if self.platform == "aerial" else "bytetrack")

    def secrets(self) -> frozenset[str]:
        """Words of the camera that must never be shown."""
        token = () if self._box_token is None else (self._box_token.get_secret_value(),)
        return secret_parts(self.source.url).union(token)

    def does_the_same_as(self, other: CameraSettings) -> bool:
        """True when a camera with the other settings would give the same events: tracks may go on."""
        return self._effective() == other._effective()

    def _effective(self) -> tuple[object, ...]:
        reading = self.source, self.decode, self.open_timeout_s, self.read_timeout_s
        return *reading, self.detector, self._box_token, self.tile_counts, self.chosen_tracker

    def _is_network(self) -> bool:
        return self.detector.lower().endswith(".onnx") or os.path.isdir(self.detector)


def _cameras_differ(cameras: tuple[CameraSettings, ...]) -> tuple[CameraSettings, ...]:
    if not cameras:
        raise ValueError("none; write one [[cameras]] table for each")
    for name, count in Counter(camera.name for camera in cameras).items():
        if count > 1:
            raise ValueError(f"{count} are named {name}; give each its own name")
    return cameras


class Site(SiteSection):
    """All that `s3clip-run --site` does."""

    bundle: SitePath
    """Folder made by s3clip-export."""
    gallery: SitePath | None = None
    """File of the known persons; without a gallery nobody is named."""
    gallery_url: SecretStr | None = None
    """The same on a PostgreSQL server, for several boxes: postgresql://USER:PASSWORD@HOST/DATABASE."""
    gallery_url_env: Variable | None = None
    gallery_url_file: SitePath | None = None
    gallery_key_file: SitePath | None = None
    """Key of a gallery that is encrypted."""
    threshold: float | None = Field(default=None, ge=-1, le=1)
    """Cosine from which a match counts; None: as the gallery is calibrated."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    target: str | None = None
    """Which graphs of the bundle, such as `onnx-fp32`; None: chosen by the device."""
    threads: PositiveInt | None = None
    """CPU threads of each network; None: all."""
    latency_ms: PositiveInt = 500
    """Milliseconds that a look may take from submission to event."""
    min_frames: PositiveInt = 4
    """Tracklets seen in fewer frames give no event."""
    first_look_frames: PositiveInt = 8
    """Frames after which a growing tracklet gives its first event."""
    enhance: Literal["auto", "off"] = "auto"
    """Super-resolution of LR tracklets where it pays and the budget allows, or never."""
    embedding: bool = False
    """Put the embedding into events. It is biometric data."""
    explain: bool = False
    """Put the chosen frames and their qualities into events."""
    identities: IdentitySettings | None = None
    """What a run may remember; None: nothing."""
    page: PageSettings | None = None
    outputs: Outputs = Outputs()
    cameras: Annotated[tuple[CameraSettings, ...], AfterValidator(_cameras_differ)]
    _gallery_server: SecretStr | None = PrivateAttr(None)

    @field_validator("gallery", mode="before")
    @classmethod
    def _gallery_is_a_file(cls, gallery: object) -> object:
        if isinstance(gallery, str | Path) and "://" in str(gallery):
            raise ValueError(
                "is the path of a file; an address belongs into gallery_url_file or gallery_url_env"
            )
        return gallery

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._gallery_server = self._server()
        for key in ("threshold", "gallery_key_file", "identities"):
            if getattr(self, key) is not None and self.gallery_address is None:
                raise ValueError(
                    f"{key}: needs a gallery, without one nobody is matched; name one or leave it out"
                )
        if self.first_look_frames < self.min_frames:
            raise ValueError(
                f"first_look_frames: {self.first_look_frames} is less than min_frames {self.min_frames}: "
                "there would be events of tracklets that are too short to count; raise it"
            )
        return self

    @property
    def gallery_address(self) -> str | Path | None:
        """Path of the gallery's file, or the address of its server with the password."""
        return self.gallery if self._gallery_server is None else self._gallery_server.get_secret_value()

    def _server(self) -> SecretStr | None:
        url = self._secret("gallery_url")
        if url is None:
            return None
        if self.gallery is not None:
            raise ValueError(
                "gallery: a file and a server are given; there is one gallery, leave one of them out"
            )
        if not is_server(url.get_secret_value()):
            raise ValueError(
                "gallery_url: not the address of a server; write postgresql://USER:PASSWORD@HOST/DATABASE"
            )
        return url

    def secrets(self) -> frozenset[str]:
        """All words of the site that must never be shown; for `cli.log`."""
        words = set(self.outputs.secrets())
        if self._gallery_server is not None:
            words |= secret_parts(self._gallery_server.get_secret_value())
        for camera in self.cameras:
            words |= camera.secrets()
        if self.page is not None and self.page.token is not None:
            words.add(self.page.token.get_secret_value())
        return frozenset(words)


def _camera_address(text: str, info: ValidationInfo) -> str:
    return text if "://" in text or text.startswith("gst:") else str(resolved(Path(text), info))


def _box_address(text: str, info: ValidationInfo) -> str:
    """The address with the paths in it resolved. Its form is checked by who listens there."""
    plain, mark, query = text.partition("?")
    if plain.startswith("unix:"):
        plain = f"unix:{resolved(Path(plain.removeprefix('unix:')), info)}"
    if query.startswith("token_file="):
        query = f"token_file={resolved(Path(query.removeprefix('token_file=')), info)}"
    return plain + mark + query


def _box_token(detector: str) -> SecretStr | None:
    """What senders of boxes must show."""
    way, _, name = detector.partition("?")[2].partition("=")
    try:
        if way == "token_env":
            return read_secret("token", None, variable_name(name), None)
        return read_secret("token", None, None, Path(name)) if way == "token_file" else None
    except ConfigError as error:
        raise ValueError(f"detector: {error}") from None
