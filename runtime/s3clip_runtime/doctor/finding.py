"""What a rule says of a machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: "problem" is what does not work though it should; "note" is worth knowing.
        what: the fact, with both values where two must fit.
        why: what follows from it.
        cure: the command line that mends it, empty where there is none.
    """

    status: Status
    what: str
    why: str = ""
    cure: str = ""


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "10.13.3.9.post1" is (10, 13, 3, 9)."""
    found: list[int] = []
    for part in version.split("."):
        match = re.match(r"\d+", part)
        if match is None:
            break
        found.append(int(match[0]))
    return tuple(found)
