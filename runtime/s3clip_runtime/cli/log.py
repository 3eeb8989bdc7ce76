"""The log of a program, without its secrets: every line and every traceback goes through one redactor.

FFmpeg's own log stays off, as PyAV leaves it. A child process sets its log up itself.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from types import TracebackType
from urllib.parse import quote, quote_plus, unquote

from s3clip_runtime.streams.reading.addresses import redact

_log = logging.getLogger(__name__)

HIDDEN = "***"

_WORD_LENGTH = 4
"""Shorter secrets are hidden only where they stand alone, or `a` would turn every line into asterisks."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")


class Redactor:
    """Takes secrets out of text: registered ones wherever they stand, and user, password and query values of
    every URL as `reading.addresses.redact` does.

    Args:
        secrets: passwords, tokens and such as they are; their URL, JSON and Python spellings are hidden too.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Register more, as a reload needs it. None is ever forgotten: old lines may still come."""
        for secret in secrets:
            self._forms |= _forms(secret)
        words = sorted(self._forms, key=len, reverse=True)  # the longest first: a part must not break a whole
        self._pattern = re.compile("|".join(map(_word, words))) if words else None

    def __call__(self, text: str) -> str:
        """The text with `***` in place of each secret."""
        if self._pattern is not None:
            text = self._pattern.sub(HIDDEN, text)
        return _URL.sub(lambda match: redact(match[0]), text)

    def __repr__(self) -> str:
        return f"Redactor({len(self._forms)} forms)"


def set_up_logging(level: int, secrets: Iterable[str] = ()) -> Redactor:
    """Send the log to standard error, redacted, and all that Python would print there about errors.

    These are uncaught exceptions of the program and of threads, errors in destructors, warnings, and log
    calls that cannot be formatted.

    Args:
        level: of s3clip's own loggers; other libraries log from WARNING on.
        secrets: see `Redactor`.

    Returns:
        The redactor; `add` to it what becomes known later. Use it for text that is printed past the log.
    """
    redactor = Redactor(secrets)
    handler = _RedactingHandler(redactor)
    handler.setFormatter(_RedactingFormatter(redactor))
    root = logging.getLogger()
    root.handlers[:] = [handler]  # in place of others, which would print what this one hides
    root.setLevel(logging.WARNING)
    logging.getLogger("s3clip_runtime").setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    return redactor


class _RedactingFormatter(logging.Formatter):
    """One line a record, then its traceback if it has one; times are UTC."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._redactor = redactor

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor(super().format(record))


class _RedactingHandler(logging.StreamHandler):  # type: ignore[type-arg]
    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell that a record could not be written. Logging's own way prints its arguments as they are."""
        where = f"log call at {record.pathname}:{record.lineno} failed:\n{traceback.format_exc()}"
        try:
            self.stream.write(self._redactor(where))
        except (OSError, ValueError):  # standard error is gone: nobody is left to be told
            return


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if issubclass(args.exc_type, SystemExit):  # as Python itself does
        return
    name = args.thread.name if args.thread is not None else "unknown"
    error = args.exc_value or args.exc_type()
    _log.critical("uncaught %s in thread %s", args.exc_type.__name__, name, exc_info=error)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    message = args.err_msg or "exception ignored in"
    _log.error("%s %r", message, args.object, exc_info=args.exc_value)


def _forms(secret: str) -> set[str]:
    """A secret as it may be spelled: plain, percent-encoded or decoded, escaped by repr or JSON."""
    encoded = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    lower = {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), text) for text in encoded}
    escaped = {repr(secret)[1:-1], ascii(secret)[1:-1], json.dumps(secret)[1:-1]}
    return {secret, unquote(secret), *encoded, *lower, *escaped} - {""}


def _word(form: str) -> str:
    return re.escape(form) if len(form) >= _WORD_LENGTH else rf"(?<!\w){re.escape(form)}(?!\w)"
