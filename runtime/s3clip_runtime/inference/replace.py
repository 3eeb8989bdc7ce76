"""A bundle's folder changed as a whole: after a crash there is the old one or the new one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_bundle(folder: Path) -> Iterator[Path]:
    """A copy of the folder to change; it takes the folder's place if the block ends without an error.

    Files of the copy may only be replaced, never written into: they are the old ones until then.
    """
    staging = Path(tempfile.mkdtemp(dir=folder.resolve().parent, prefix=f".{folder.name}-"))
    try:
        shutil.copytree(folder, staging, copy_function=_link, dirs_exist_ok=True)
        yield staging
        _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target


def _swap(staging: Path, folder: Path) -> None:
    staging.chmod(folder.stat().st_mode)
    old = staging.with_name(staging.name + ".old")
    folder.rename(old)
    try:
        staging.rename(folder)
    except OSError:
        old.rename(folder)  # nothing is lost
        raise
    shutil.rmtree(old)
