"""HTML from templates in which every value is escaped unless it is markup that was made here."""

from __future__ import annotations

import html
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from string import Template


class Html(str):
    """Text that is markup already: `fill` leaves it as it is."""

    __slots__ = ()


def fill(template: str, **values: object) -> Html:
    """The template of that name under web/, with every `$value` in its place.

    Values other than `Html` are turned to text and escaped, quotes too. All names of the template must be
    given (KeyError).
    """
    return Html(_template(template).substitute({name: _escaped(value) for name, value in values.items()}))


def join(parts: Iterable[Html]) -> Html:
    """Pieces of markup, one after the other."""
    return Html("".join(parts))


def tag(name: str, content: object, css: str = "") -> Html:
    """An element around `content`, which is escaped unless it is `Html`; `css` is its class."""
    attribute = f' class="{html.escape(css)}"' if css else ""
    return Html(f"<{name}{attribute}>{_escaped(content)}</{name}>")


def web_file(name: str) -> bytes:
    """A file of this package's folder web/."""
    return (files("s3clip_runtime.streams.page") / "web" / name).read_bytes()


def _escaped(value: object) -> str:
    return str(value) if isinstance(value, Html) else html.escape(str(value))


@cache
def _template(name: str) -> Template:
    return Template(web_file(name).decode())
