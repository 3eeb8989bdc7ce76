"""How a camera is named on the command line, and how its address is shown without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from s3clip_runtime.errors import ConfigError, SourceError
from s3clip_runtime.inference.spec import PLATFORMS

FORM = f"[name=]URL_OR_PATH@platform, platform one of {', '.join(PLATFORMS)}"

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")

Kind = Literal["file", "folder", "stream", "device", "pipeline"]
"""What an address leads to. "device": a V4L2 camera; "pipeline": a GStreamer pipeline after `gst:`."""

_PIPELINE = "gst:"


@dataclass(frozen=True)
class SourceSpec:
    """One camera as named on the command line.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; names the camera in events.
        url: file, folder, stream address, /dev/videoN, or `gst:` and a GStreamer pipeline. May hold a
            password: print `redact(url)` instead.
        platform: one of `spec.PLATFORMS`.
    """

    name: str
    url: str
    platform: str

    def __repr__(self) -> str:
        """As the generated one, but without the password."""
        return f"SourceSpec(name={self.name!r}, url={redact(self.url)!r}, platform={self.platform!r})"


def kind_of(spec: SourceSpec) -> Kind:
    """What the address leads to, as far as it can be known without opening it.

    A device that is not there is no error: USB cameras come and go.

    Raises:
        SourceError: an unknown scheme, an empty pipeline, or no such file.
    """
    if spec.url.startswith(_PIPELINE):
        if not pipeline_of(spec.url):
            raise refusal(spec, "no pipeline after 'gst:'; write the elements that end in raw video")
        return "pipeline"
    scheme, mark, _ = spec.url.partition("://")
    if mark:
        if scheme.lower() not in STREAM_SCHEMES:
            schemes = ", ".join(STREAM_SCHEMES)
            raise refusal(spec, f"scheme {scheme!r} is not supported; use one of {schemes}")
        return "stream"
    path = Path(spec.url)
    if path.is_dir():
        return "folder"
    if path.is_char_device() or re.fullmatch(r"/dev/video\d+", spec.url):
        return "device"
    if not path.is_file():
        raise refusal(spec, "no such file or folder; check the path")
    return "file"


def pipeline_of(url: str) -> str:
    """The GStreamer pipeline of a `gst:` address."""
    return url.removeprefix(_PIPELINE).strip()


def with_encoded_login(url: str) -> str:
    """The address with user and password percent-encoded where they are not, as FFmpeg needs them.

    All up to the last `@` before a query counts as user and password, so `@`, `/` and `#` in them do no harm.
    What looks encoded (`%40`) stays.
    """
    scheme, mark, rest = url.partition("://")
    place, query = rest.partition("?")[::2]
    login, at, host = place.rpartition("@")
    if not mark or not at:
        return url
    user, colon, password = login.partition(":")
    return f"{scheme}://{_encoded(user)}{colon}{_encoded(password)}@{host}{'?' if query else ''}{query}"


def redact(url: str) -> str:
    """The address without user, password and query values; a path stays as it is.

    Passwords with an unencoded `@`, `/` or `#` go too: everything up to the last `@` is dropped. Of a
    GStreamer pipeline only its first element stays: any property may hold a secret.
    """
    if url.startswith(_PIPELINE):
        return f"{_PIPELINE}{(pipeline_of(url).split() or [''])[0]} ***"
    url = re.sub(r"(?is)^([a-z][a-z0-9+.-]*://).*@", r"\1***@", url)
    return re.sub(r"(?is)^([a-z][a-z0-9+.-]*://[^?]*)\?.*", r"\1?***", url)


def scrub(text: str, url: str) -> str:
    """Foreign text (FFmpeg, GStreamer, a traceback) without what is secret in `url`, whole or in parts."""
    text = text.replace(url, redact(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s'\"<>]*@", r"\1***@", text)


def parse_source(text: str) -> SourceSpec:
    """Read `[name=]URL_OR_PATH@platform`, such as `gate=rtsp://user:pw@host/x@ground`.

    Without a name the file's stem or the stream's host and path name the camera.

    Raises:
        ConfigError: no or an unknown platform, an empty address, or a name with other characters.
    """
    match = re.fullmatch(r"(?:([^=:/\\]*)=)?(.*)", text, re.DOTALL)
    assert match is not None  # both parts are optional
    name, rest = match[1], match[2]
    url, _, platform = rest.rpartition("@")
    if platform not in PLATFORMS:
        raise ConfigError(f"source {redact(rest)!r} does not end in its platform; write {FORM}")
    if not url:
        raise ConfigError(f"source {text!r} has no address; write {FORM}")
    if name is None:
        name = _default_name(url)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        rule = "letters, digits, '_', '.' and '-'"
        raise ConfigError(f"source name {name!r} may hold only {rule}; write {FORM}")
    return SourceSpec(name, url, platform)


def refusal(spec: SourceSpec, rule_and_cure: str) -> SourceError:
    """One line that names the camera and its address without secrets."""
    return SourceError(f"source {spec.name} ({redact(spec.url)}): {rule_and_cure}")


def _encoded(text: str) -> str:
    pieces = re.split(r"(%[0-9A-Fa-f]{2})", text)
    return "".join(piece if place % 2 else quote(piece, safe="") for place, piece in enumerate(pieces))


def _secrets(url: str) -> set[str]:
    """Strings of three and more characters that must not be shown: shorter ones would tear words apart."""
    if url.startswith(_PIPELINE):
        found = re.findall(r"=\s*(\"[^\"]*\"|\S+)", pipeline_of(url))
        parts = [value.strip('"') for value in found if "/" in value or "@" in value or len(value) > 5]
        parts += [secret for part in parts for secret in _secrets(part)]
    else:
        match = re.match(r"(?is)^[a-z][a-z0-9+.-]*://(?:(.*)@)?(.*)$", url)
        if match is None:
            return set()
        user, _, password = (match[1] or "").partition(":")
        query = match[2].partition("?")[2]
        parts = [password or user, query, *(value for _, _, value in map(_pair, query.split("&")))]
    return {shown for part in parts for shown in (part, unquote(part)) if len(shown) >= 3}


def _pair(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def _default_name(url: str) -> str:
    if url.startswith(_PIPELINE):
        return "gst"
    scheme, mark, _ = url.partition("://")
    if not mark:
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(url).stem)
    host_and_path = redact(url).partition("://")[2].removeprefix("***@").removesuffix("?***")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", host_and_path).strip("-") or scheme
