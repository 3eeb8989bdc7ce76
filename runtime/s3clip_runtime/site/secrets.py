"""Where passwords, tokens and private addresses come from, and which words of them must never be shown.

A secret stands in an environment variable or in a file of its own. A camera's address may also stand in the
site file, password and all; `load_site` warns when everybody may read that file.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote

from pydantic import SecretStr

from s3clip_runtime.errors import ConfigError

_log = logging.getLogger(__name__)

LONGEST_SECRET = 65_536
"""Bytes of a secret's file. A GStreamer line has hundreds; more is a wrong file."""

_SECRET_WORDS = "pass|passwd|password|pwd|pw|psw|token|secret|key|apikey|auth|sig|signature|credential|code"
_SECRET_VALUE = re.compile(
    rf"""(?i)(?<![a-z0-9])(?:[a-z0-9]+[_-])*(?:{_SECRET_WORDS})\s*=\s*(?:"([^"]*)"|([^\s&;!"]+))"""
)
"""`pwd=...` of an address's query, `user-pw=...` of a GStreamer element."""


def read_secret(
    key: str, value: SecretStr | None, env: str | None, file: Path | None, *, required: bool = False
) -> SecretStr | None:
    """The secret that one of three settings gives.

    Args:
        key: the setting's name in messages; the other two are `key_env` and `key_file`.
        value: the secret itself.
        env: name of an environment variable.
        file: a file that holds it, in one line; its line end does not count.
        required: whether one must be given.

    Returns:
        The secret, or None where none is given and none is required.

    Raises:
        ConfigError: not exactly one (at most one) is given, the variable is not set, the file cannot be
            read, or what they hold is empty or more than a line. The message never holds the secret.
    """
    given = [given for given in (value, env, file) if given is not None]
    if len(given) > 1 or (required and not given):
        count = "exactly one" if required else "at most one"
        raise ConfigError(f"give {count} of {key}, {key}_env and {key}_file, not {len(given)}")
    if env is not None:
        found = os.environ.get(env)
        if found is None:
            raise ConfigError(
                f"{key}_env: the environment variable {env} is not set; set it, or use {key}_file"
            )
        return SecretStr(_one_line(found, f"{key}_env: the environment variable {env}"))
    if file is not None:
        return SecretStr(_one_line(_read(file, key), f"{key}_file: {file}"))
    return None if value is None else SecretStr(_one_line(value.get_secret_value(), key))


def secret_parts(address: str) -> frozenset[str]:
    """The words of an address that must not be shown: password, with its user too, and secret query values.

    Args:
        address: a URL, `gst:` and a GStreamer pipeline, or a path. As in `reading.addresses.redact`, all up
            to the last `@` of a URL is user and password, so that unencoded `@`, `/` and `#` go too.

    Returns:
        Nothing where there is no password. A user's name alone is none.
    """
    parts = {word for match in _SECRET_VALUE.finditer(address) for word in match.groups() if word}
    whole = [] if address.startswith("gst:") else [address]
    for url in (*whole, *re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://\S*", address)):
        match = re.match(r"(?is)[a-z][a-z0-9+.-]*://(.*)@", url)
        user, mark, password = match[1].partition(":") if match else ("", "", "")
        if mark and password:
            both = f"{user}:{password}"
            parts |= {password, both, _basic(both), _basic(unquote(both))}
    return frozenset(parts)


def warn_on_command_line(what: str, address: str, key: str = "url") -> None:
    """Warn when an address that was typed on the command line holds a password.

    Args:
        what: whose address, such as `camera gate`.
        address: as typed.
        key: its setting in the site file.
    """
    if secret_parts(address):
        _log.warning(
            "%s: its password stands on the command line, where every user of this machine sees it "
            "(ps); use --site with %s_env or %s_file",
            what,
            key,
            key,
        )


def warn_if_exposed(file: Path, what: str) -> None:
    """Warn when everybody may read the file, or more than its owner may write it.

    A group that may read is let pass: systemd shows its own credentials so, and sites share by groups.

    Raises:
        ConfigError: the file cannot be looked at.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{what} {file}: {error.strerror}; check its path and rights") from None
    if mode & 0o004:
        _log.warning(
            "%s %s holds a secret and every user may read it (mode %03o); chmod 640", what, file, mode
        )
    elif mode & 0o022:
        _log.warning("%s %s holds a secret and others may write it (mode %03o); chmod 640", what, file, mode)


def _read(file: Path, key: str) -> str:
    what = f"{key}_file: {file}"
    try:
        if not file.is_file():  # a pipe or a folder would block or fail later
            rule = "is not a regular file" if file.exists() else "no such file"
            raise ConfigError(f"{what}: {rule}; give a file that holds the secret in one line")
        if file.stat().st_size > LONGEST_SECRET:
            raise ConfigError(f"{what}: larger than {LONGEST_SECRET} bytes, so no secret; check the path")
        text = file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{what}: cannot be read ({error.strerror}); check who may read it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: not UTF-8 text; write the secret as one line of text") from None
    warn_if_exposed(file, f"{key}_file")
    return text.removesuffix("\n").removesuffix("\r")


def _one_line(text: str, what: str) -> str:
    if not text.strip():
        raise ConfigError(f"{what} is empty; write the secret into it")
    if any(character < " " or character == "\x7f" for character in text):
        raise ConfigError(f"{what} holds line breaks or control characters; write the secret as one line")
    return text


def _basic(user_and_password: str) -> str:
    """As HTTP's and RTSP's basic authorisation sends them."""
    return base64.b64encode(user_and_password.encode()).decode()
