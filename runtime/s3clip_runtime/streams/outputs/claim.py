"""A file that only one run may append to."""

from __future__ import annotations

import fcntl
import logging

from s3clip_runtime.errors import SinkError

_log = logging.getLogger(__name__)


def claim(fd: int, name: str) -> None:
    """Lock an open file for this descriptor; the lock goes when it is closed, also by kill -9.

    Args:
        fd: of the file.
        name: of the file, for people.

    Raises:
        SinkError: another run, or another output of this one, has it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SinkError(f"{name} is in use by another output or run; give each its own file") from error
    except OSError as error:  # some network file systems have no locks
        _log.warning("%s cannot be locked (%s): see to it that only one run uses it", name, error.strerror)
