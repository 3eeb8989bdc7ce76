"""What all sections of the site file share: how paths, names of variables and secrets are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, SecretStr, ValidationInfo

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.settings import Section
from s3clip_runtime.site.secrets import read_secret


class SiteSection(Section):
    """A section of the site file. Its defaults are validated too, since paths among them are resolved."""

    model_config = ConfigDict(allow_inf_nan=False, validate_default=True)

    def _secret(self, key: str, *, required: bool = False) -> SecretStr | None:
        """What the fields `key`, `key_env` and `key_file` give; see `read_secret`. For validators."""
        try:
            return read_secret(
                key,
                getattr(self, key) if key in type(self).model_fields else None,
                getattr(self, f"{key}_env"),
                getattr(self, f"{key}_file"),
                required=required,
            )
        except ConfigError as error:
            raise ValueError(str(error)) from None


def resolved(path: Path, info: ValidationInfo) -> Path:
    """The path as seen from the site file's folder: validation context `folder`, a Path; else unchanged.

    Raises:
        ValueError: it is empty.
    """
    if path == Path():
        raise ValueError("an empty path; name a file or folder")
    folder = info.context.get("folder") if info.context else None
    return folder / path if isinstance(folder, Path) else path


def variable_name(name: str) -> str:
    """The name of an environment variable. Capitals only: a password that was written here by mistake is
    refused, and never printed as a name.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) is None:
        raise ValueError(
            "not the name of an environment variable in A-Z, 0-9 and _; write the name, not the value"
        )
    return name


SitePath = Annotated[Path, AfterValidator(resolved)]
"""A path, relative to the site file."""

Variable = Annotated[str, AfterValidator(variable_name)]
"""Name of an environment variable."""
