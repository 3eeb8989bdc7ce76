"""Where boxes from outside come in: how it is named, and listening there."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

from s3clip_runtime.errors import ConfigError, SourceError

FORM = (
    "'-', unix:PATH or tcp:HOST:PORT, these two with ?token_env=NAME or ?token_file=PATH at the end if wanted"
)
_BACKLOG = 64


@dataclass(frozen=True)
class BoxAddress:
    """Standard input, a path or a port. `str` shows it without the token.

    Attributes:
        text: as it was given.
        path: of a Unix socket.
        host, port: of a TCP socket; port 0 takes any that is free.
        token: that senders must give in their first line; None asks for none.
    """

    text: str
    path: Path | None = None
    host: str | None = None
    port: int = 0
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def stdin(self) -> bool:
        """It is standard input."""
        return self.path is None and self.host is None

    def listen(self) -> socket.socket:
        """A listening socket; `release` gives it back. A Unix socket is open to its user alone.

        Raises:
            SourceError: it cannot be listened on.
        """
        try:
            return self._listen_tcp() if self.host is not None else self._listen_unix()
        except OSError as error:
            raise SourceError(
                f"detector {self}: cannot be listened on ({error.strerror or error}); choose another address "
                "or end the program that uses it"
            ) from error

    def release(self, listener: socket.socket) -> None:
        """Close it and remove its file."""
        listener.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _listen_tcp(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in (self.host or "") else socket.AF_INET
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def _listen_unix(self) -> socket.socket:
        assert self.path is not None  # neither TCP nor standard input
        _remove_stale(self.path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(self.path))
            self.path.chmod(0o600)  # before listening: nobody can have connected yet
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener


def is_box_address(text: str) -> bool:
    """Whether a detector's name is one of these addresses."""
    return text == "-" or text.startswith(("unix:", "tcp:"))


def parse_box_address(text: str) -> BoxAddress:
    """Read `-`, `unix:PATH` or `tcp:HOST:PORT`, with `?token_env=NAME` or `?token_file=PATH`.

    Raises:
        ConfigError: it is none of these, the token cannot be had, or other machines could connect without
            one.
    """
    if text == "-":
        return BoxAddress(text)
    plain, mark, query = text.partition("?")
    token = _token(plain, query) if mark else None
    if plain.startswith("unix:") and len(plain) > len("unix:"):
        return BoxAddress(text, path=Path(plain.removeprefix("unix:")), token=token)
    match = re.fullmatch(r"tcp:(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):(\d{1,5})", plain)
    if match is None or int(match[3]) > 65535:
        raise ConfigError(f"detector {plain!r} is no address of boxes; write {FORM}")
    host = match[1] or match[2]
    if token is None and not _is_loopback(host):
        raise ConfigError(
            f"detector {text}: other machines could send boxes to {host}; listen on 127.0.0.1, or ask for a "
            "token with ?token_env=NAME or ?token_file=PATH at the end"
        )
    return BoxAddress(text, host=host, port=int(match[3]), token=token)


def _token(plain: str, query: str) -> str:
    """The token of an address; what follows the question mark is never shown, it may be a secret."""
    way, _, name = query.partition("=")
    if way == "token_env" and name:
        token = os.environ.get(name, "")
    elif way == "token_file" and name:
        try:
            token = Path(name).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"detector {plain}: {name} cannot be read; check the path") from error
    else:
        raise ConfigError(f"detector {plain!r} has an unknown ending; write {FORM}")
    if not token:
        raise ConfigError(f"detector {plain}: {way} {name} is empty or not set; put the token there")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _remove_stale(path: Path) -> None:
    """Remove the socket of a program that has gone. Raises OSError if somebody still answers there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return  # bind will refuse it
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
