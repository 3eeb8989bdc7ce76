"""The status as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from s3clip_runtime.streams.status import RunStatus

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]


def status_json(status: RunStatus) -> bytes:
    """The fields of `RunStatus` under their names, as ASCII. Numbers that are not finite become null."""
    return json.dumps(_plain(status), allow_nan=False, ensure_ascii=True).encode()


def _plain(value: object) -> Plain:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a {type(value).__name__} in the status; it holds plain values only")
