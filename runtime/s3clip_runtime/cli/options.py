"""From the words of the command line to the settings of a site: there is one way to run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.gallery.storage.places import is_server
from s3clip_runtime.settings import validated
from s3clip_runtime.site.model import Site
from s3clip_runtime.site.secrets import warn_on_command_line
from s3clip_runtime.streams.reading.addresses import parse_source

if TYPE_CHECKING:
    from s3clip_runtime.cli.run import RunOptions

BACKGROUND = "background"


def site_from_options(options: RunOptions) -> Site:
    """The site that a command line means.

    Raises:
        ConfigError: a source or option cannot be understood, is missing, or names no file.
    """
    if not options.sources:
        raise ConfigError(
            "no source is given; name a video as PATH@ground or PATH@aerial, a --site, or try --demo"
        )
    if options.bundle is None:
        raise ConfigError(
            "no bundle is given; make one with s3clip-export and name it with --bundle DIR, or try --demo"
        )
    tree: dict[str, Any] = {
        "bundle": options.bundle,
        **_gallery(options),
        "threshold": options.threshold,
        "device": options.device,
        "target": options.target,
        "threads": options.threads,
        "latency_ms": options.latency_ms,
        "min_frames": options.min_frames,
        "first_look_frames": max(options.min_frames, Site.model_fields["first_look_frames"].default),
        "enhance": options.enhance,
        "embedding": options.embedding,
        "explain": options.explain,
        "outputs": _outputs(options),
        "cameras": _cameras(options),
    }
    if options.page is not None:
        tree["page"] = {"listen": options.page}
    return validated(Site, tree, "command line")


def detector_choices(names: Sequence[str], detectors: Sequence[str]) -> Mapping[str, str]:
    """Source name to detector: `NAME=DETECTOR` goes before `DETECTOR`, which goes before background motion.

    Raises:
        ConfigError: an unknown source, or two choices for one source.
    """
    general: list[str] = []
    special: dict[str, str] = {}
    for text in detectors:
        name, mark, choice = text.partition("=")
        if not mark:
            general.append(text)
        elif name not in names:
            raise ConfigError(f"--detector {text}: no source is named {name!r}; sources: {', '.join(names)}")
        elif name in special:
            raise ConfigError(f"--detector is given twice for source {name!r}; leave one out")
        else:
            special[name] = choice
    if len(general) > 1:
        raise ConfigError(
            f"--detector is given twice for all sources ({', '.join(general)}); write NAME=DETECTOR"
        )
    return {name: special.get(name, general[0] if general else BACKGROUND) for name in names}


def _cameras(options: RunOptions) -> list[dict[str, Any]]:
    specs = [parse_source(text) for text in options.sources]
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        raise ConfigError(f"two sources are named {twice[0]!r}; give each its own name: NAME=URL@platform")
    choices = detector_choices([spec.name for spec in specs], options.detectors)
    if options.tiles is not None and re.fullmatch(r"[1-9]\d?x[1-9]\d?", options.tiles) is None:
        raise ConfigError(f"--tiles {options.tiles!r} is not ROWSxCOLS; write for example 2x2")
    for spec in specs:
        warn_on_command_line(f"camera {spec.name}", spec.url)
    return [
        {
            "name": spec.name,
            "url": spec.url,
            "platform": spec.platform,
            "detector": choices[spec.name],
            "tiles": options.tiles,
            "tracker": options.tracker,
        }
        for spec in specs
    ]


def _gallery(options: RunOptions) -> dict[str, Any]:
    if options.gallery is None or not is_server(options.gallery):
        return {"gallery": options.gallery}
    warn_on_command_line("gallery", options.gallery, "gallery_url")
    return {"gallery_url": options.gallery}


def _outputs(options: RunOptions) -> dict[str, Any]:
    tree: dict[str, Any] = {"events": {"path": options.events or "-", "rotate_mb": 0, "fsync": "never"}}
    if options.annotate is not None:
        tree["video"] = {"folder": options.annotate}
    return tree
