"""The errors that users meet. Each message names the thing, the rule, the value and the cure."""

from __future__ import annotations


class S3ClipError(Exception):
    """Base of all expected errors: commands print one line on stderr and exit with 2."""


class ConfigError(S3ClipError):
    """A setting is unknown, of the wrong kind or out of range."""


class WeightsError(S3ClipError):
    """A weights file does not fit the model: missing, unexpected or mis-shaped keys."""


class DataError(S3ClipError):
    """A data set is missing, unreadable or not laid out as its reader demands."""


class BundleError(S3ClipError):
    """A bundle is incomplete, altered, or misses a bound of its proof."""


class BackendError(S3ClipError):
    """An inference backend cannot do what was asked on this machine."""


class SourceError(S3ClipError):
    """A video source cannot be opened or decoded."""


class SinkError(S3ClipError):
    """An output cannot be written."""


class GalleryError(S3ClipError):
    """A gallery file is foreign, damaged, or of another embedding space."""


class GalleryUnavailable(GalleryError):
    """A gallery cannot be read or written now: locked, full, read-only, or its server is away."""
