"""The JSON file of a report: written whole or not at all, and read with errors that say what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from s3clip_runtime.bench.records import SCHEMA_VERSION, BenchReport
from s3clip_runtime.errors import DataError, SinkError
from s3clip_runtime.inference.records import write_record

_CURE = "measure again with s3clip-bench run"


def check_writable(path: Path) -> None:
    """Find out before minutes of work whether `write_report` and files beside it will be possible.

    Raises:
        SinkError: the folder is missing or cannot be written, or the path is a folder.
    """
    if path.is_dir():
        raise SinkError(f"{path}: is a folder; name a file, such as {path / 's3clip-bench.json'}")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise SinkError(
            f"{path}: cannot be written ({error.strerror}); make the folder or name another file"
        ) from error


def check_folder(folder: Path) -> None:
    """As `check_writable` for a folder of pictures, which is made if it is not there.

    Raises:
        SinkError: it cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise SinkError(f"{folder}: is a file; name a folder for the pictures")
    check_writable(folder / "picture.svg" if folder.is_dir() else folder)


def write_report(path: Path, report: BenchReport) -> None:
    """Write a report: after a crash there is the old file or the new one. Raises as `write_record`."""
    write_record(path, report)


def read_report(path: Path) -> BenchReport:
    """Read what `write_report` wrote.

    Raises:
        DataError: the file is missing, no report, or of another schema.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_CURE}") from error
    except ValueError as error:
        raise DataError(f"{path}: not a report of s3clip-bench ({error}); {_CURE}") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema_version of a report must be {SCHEMA_VERSION}, found {found!r}; "
            f"{_CURE} of this version"
        )
    try:
        return BenchReport.model_validate_json(json.dumps(data))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {faults}; {_CURE}") from error
