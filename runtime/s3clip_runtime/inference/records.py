"""JSON records that go with files: after a crash there is the old one or the new one; read strictly."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from s3clip_runtime.errors import BundleError

CURE = "export again with s3clip-export"

_R = TypeVar("_R", bound="Record")


class Record(BaseModel):
    """A part of a manifest: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: Path, record: Record, without: Collection[str] = ()) -> None:
    """Write a manifest, but for some keys: after a crash there is the old file or the new one, never half.

    Raises:
        BundleError: the folder is missing or cannot be written.
    """
    text = record.model_dump_json(indent=2, exclude=set(without)) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system refuses even to look for it
            draft.unlink()


def read_record(path: Path, kind: type[_R], *versions: int) -> _R:
    """Read a manifest that `write_record` wrote.

    Args:
        path: of the file.
        kind: what it holds; has a field `schema_version`.
        versions: the schemas that are read here.

    Raises:
        BundleError: it is missing, cannot be read, or has another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: the manifest is missing; {CURE}") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}); {CURE}") from error
    # The version first: a later schema would otherwise fail with a list of unknown keys.
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found not in versions:
        raise BundleError(
            f"{path}: schema_version must be {' or '.join(map(str, versions))}, found {found!r}; "
            f"{CURE} of this version or update this runtime"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise BundleError(f"{path}: {'; '.join(faults)}; {CURE}") from error
