"""Reads the site file, and tells what a changed one means for a run that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.settings import read_toml, validated
from s3clip_runtime.site.model import Site
from s3clip_runtime.site.secrets import secret_parts, warn_if_exposed
from s3clip_runtime.streams.reading.addresses import redact

AT_START_ONLY = (
    "bundle", "gallery", "gallery_key_file", "device", "target", "threads", "min_frames", "first_look_frames",
)  # fmt: skip
"""Settings that loaded networks, open stores and open tracklets hang on: they change by a restart."""

_OUTPUTS_AT_START_ONLY = ("video",)
"""A video file cannot go on in another one."""

_SECTIONS = ("page", "outputs", "cameras")
_GALLERY = ("gallery", "gallery_url", "gallery_url_env", "gallery_url_file")


def load_site(path: Path) -> Site:
    """Read, check and resolve a site file: paths from its own folder, secrets from variables and files.

    Warns (logging) when the site file or a secret's file is readable by everybody and holds a password.

    Raises:
        ConfigError: no such file, not TOML (with the line), unknown keys (with the nearest known one), bad
            values, missing variables or files; all faults in one message, each with its key path.
    """
    tree = read_toml(path, "site")
    folder = path.absolute().parent
    site = validated(Site, tree, f"site {path}", shown=_shown, context={"folder": folder})
    if any(secret_parts(url) for url in _written_urls(site)):
        warn_if_exposed(path, "site file")
    return site


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two sites. Cameras are told by their names, settings by their keys.

    Attributes:
        added, removed, changed, unchanged: cameras; a changed one is closed and opened again, an unchanged
            one keeps its connection and its tracks.
        applied: settings outside of cameras that take effect at once, such as `threshold` or `outputs.mqtt`.
        refused: settings that need a restart, such as `bundle` or `page.listen`.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """True when the new site does the same as the old one."""
        return not (self.added or self.removed or self.changed or self.applied or self.refused)

    def check(self) -> None:
        """Refuse a reload that would need a restart, before anything of it is applied.

        Raises:
            ConfigError: `refused` is not empty.
        """
        if self.refused:
            raise ConfigError(
                f"the site was not reloaded and runs on as before: {', '.join(self.refused)} can change only "
                "at a restart; restart, or take the change back and reload"
            )

    def __str__(self) -> str:
        """One line for the log, such as `cameras: 1 added (yard), 3 unchanged; applied: threshold`."""
        kinds = {"added": self.added, "removed": self.removed, "changed": self.changed}
        told = [f"{len(names)} {kind} ({', '.join(names)})" for kind, names in kinds.items() if names]
        told.append(f"{len(self.unchanged)} unchanged")
        return f"cameras: {', '.join(told)}; applied: {', '.join(self.applied) or 'no other setting'}"


def changes(old: Site, new: Site) -> Changes:
    """What a reload from `old` to `new` means. Secrets count by their value, not by where they stand."""
    before = {camera.name: camera for camera in old.cameras}
    after = {camera.name: camera for camera in new.cameras}
    kept = [name for name in after if name in before]
    same = [name for name in kept if after[name].does_the_same_as(before[name])]
    plain = [
        key for key in Site.model_fields if key not in (*_SECTIONS, *_GALLERY) and _differs(old, new, key)
    ]
    outputs = [key for key in type(new.outputs).model_fields if _differs(old.outputs, new.outputs, key)]
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in kept if name not in same),
        unchanged=tuple(same),
        applied=tuple(key for key in plain if key not in AT_START_ONLY)
        + tuple(f"outputs.{key}" for key in outputs if key not in _OUTPUTS_AT_START_ONLY),
        refused=tuple(key for key in plain if key in AT_START_ONLY)
        + tuple(f"outputs.{key}" for key in outputs if key in _OUTPUTS_AT_START_ONLY)
        + _gallery(old, new)
        + _page(old, new),
    )


def _differs(old: object, new: object, key: str) -> bool:
    return bool(getattr(old, key) != getattr(new, key))


def _gallery(old: Site, new: Site) -> tuple[str, ...]:
    return () if old.gallery_address == new.gallery_address else ("gallery",)


def _page(old: Site, new: Site) -> tuple[str, ...]:
    before, after = (site.page and site.page.listen for site in (old, new))
    if before != after:
        return ("page.listen",)
    tokens = [site.page and site.page.token for site in (old, new)]
    return ("page.token",) if tokens[0] != tokens[1] else ()


def _written_urls(site: Site) -> list[str]:
    """Addresses that stand in the site file itself."""
    written = [site.gallery_url, *(camera.url for camera in site.cameras)]
    if site.outputs.webhook is not None:
        written.append(site.outputs.webhook.url)
    return [url.get_secret_value() for url in written if url is not None]


def _shown(key: str, value: object) -> str | None:
    """A wrong value in a message: never an address or what stands in place of a variable's name."""
    if (
        key.startswith("url")
        or key.startswith("gallery")
        or key.endswith(("_env", "_file"))
        or not isinstance(value, str | int | float)
    ):
        return None
    return repr(redact(value).partition("?")[0] if isinstance(value, str) else value)
