"""How a camera is named on the command line, and how its address is shown without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from s3clip_runtime.errors import ConfigError, SourceError
from s3clip_runtime.inference.spec import PLATFORMS

FORM = f"[name=]URL_OR_PATH@platform, platform one of {', '.join(PLATFORMS)}"


@dataclass(frozen=True)
class SourceSpec:
    """One camera as named on the command line.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; names the camera in events.
        url: file, folder or stream address. May hold a password: print `redact(url)` instead.
        platform: one of `spec.PLATFORMS`.
    """

    name: str
    url: str
    platform: str

    def __repr__(self) -> str:
        """As the generated one, but without the password."""
        return f"SourceSpec(name={self.name!r}, url={redact(self.url)!r}, platform={self.platform!r})"


def redact(url: str) -> str:
    """The address without user, password and query values; a path stays as it is.

    Passwords with an unencoded `@`, `/` or `#` go too: everything up to the last `@` is dropped.
    """
    url = re.sub(r"(?is)^([a-z][a-z0-9+.-]*://).*@", r"\1***@", url)
    return re.sub(r"(?is)^([a-z][a-z0-9+.-]*://[^?]*)\?.*", r"\1?***", url)


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


def _default_name(url: str) -> str:
    scheme, mark, _ = url.partition("://")
    if not mark:
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(url).stem)
    host_and_path = redact(url).partition("://")[2].removeprefix("***@").removesuffix("?***")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", host_and_path).strip("-") or scheme
