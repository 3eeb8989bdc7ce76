"""Where a gallery lies, as all commands take it, and what they share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from s3clip_runtime.errors import ConfigError

if TYPE_CHECKING:
    from s3clip_runtime.gallery.gallery import Gallery
    from s3clip_runtime.gallery.records import Space

P = ParamSpec("P")

PATH = click.Path(path_type=Path)

_ENV = "env:"

bundle_option = click.option("--bundle", required=True, type=PATH, help="Folder that s3clip-export wrote.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", "cpu", "cuda")),
    help="Where to embed; auto says what it chose.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@dataclass(frozen=True, slots=True)
class Place:
    """Of a gallery: a path or a postgresql:// address, and the key file of an encrypted one."""

    address: str | Path
    key_file: Path | None

    def open(self, space: Space | None = None, *, new: bool = False) -> Gallery:
        """Open it.

        Args:
            space: as of `Gallery.open`.
            new: make it if there is none.

        Raises:
            GalleryError: as `Gallery.open`, or there is none and none is to be made.
        """
        from s3clip_runtime.gallery.gallery import Gallery
        from s3clip_runtime.gallery.storage.places import must_exist

        if not new:
            must_exist(self.address)
        return Gallery.open(self.address, space, key_file=self.key_file)


def on_gallery(command: Callable[Concatenate[Place, P], None]) -> Callable[..., None]:
    """Give a command the argument GALLERY and the option `--key-file`, as its first parameter."""

    @click.argument("gallery")
    @click.option(
        "--key-file",
        type=PATH,
        envvar="S3CLIP_GALLERY_KEY_FILE",
        show_envvar=True,
        help="Key of an encrypted gallery.",
    )
    @wraps(command)
    def placed(gallery: str, key_file: Path | None, *args: P.args, **kwargs: P.kwargs) -> None:
        command(place_of(gallery, key_file), *args, **kwargs)

    return placed


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal before something goes for good; a No ends the program.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("this cannot be undone, and there is no terminal to ask on; add --yes")
    click.confirm(question, abort=True, err=True)


def day(unix_s: float | None) -> str:
    """A time for people, in UTC; `-` for none."""
    return "-" if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def place_of(text: str, key_file: Path | None) -> Place:
    """What the words for a gallery on the command line mean.

    Raises:
        ConfigError: the variable of env:NAME is not set.
    """
    return Place(_address(text), key_file)


def _address(text: str) -> str | Path:
    from s3clip_runtime.gallery.storage.places import is_server

    if text.startswith(_ENV):
        name = text.removeprefix(_ENV)
        found = os.environ.get(name)
        if not found:
            raise ConfigError(f"gallery {text}: the environment variable {name} is not set; set it")
        return found if is_server(found) else Path(found)
    if not is_server(text):
        return Path(text)
    if re.match(r"[^/]+//[^/@]*:[^/]*@", text):
        click.echo("warning: ps shows the password of the gallery's address; use env:NAME", err=True)
    return text
