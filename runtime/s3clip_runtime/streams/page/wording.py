"""Numbers and times as the page writes them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "–"
"""Stands for what is not known."""


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Such as `0.42 s`; `NOTHING` for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{digits}f}{' ' if unit else ''}{unit}"


def duration(seconds: float) -> str:
    """Rounded down to two units, such as `3 d 4 h`, `5 min 12 s` or `8 s`; never negative."""
    left = max(0, int(seconds)) if math.isfinite(seconds) else 0
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def moment(unix_s: float) -> str:
    """UTC to the second, such as `2026-11-25 09:12:34`; `NOTHING` for what is no time."""
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return NOTHING
