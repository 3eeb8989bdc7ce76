"""What the page answers to a request, before it becomes bytes on a connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"
JPEG = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer.

    Attributes:
        status: HTTP status code.
        content_type: of the body.
        body: all of it; empty when there is a stream.
        headers: beside content type, length and the security headers, which every answer has.
        stream: pieces that are sent until it ends or the client leaves.
    """

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    stream: Iterator[bytes] | None = None


def text(status: int, words: str, *headers: tuple[str, str]) -> Answer:
    """A plain sentence."""
    return Answer(status, TEXT, f"{words}\n".encode(), headers)
