"""The clips that are measured: real ones where the bundle brings them, else the demo's, else noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np

from s3clip_runtime.bench.records import Crops
from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.bundle import MANIFEST_FILE, Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.manifest import SCHEMA_VERSIONS, Manifest
from s3clip_runtime.inference.records import read_record
from s3clip_runtime.inference.reference import Reference, read_reference
from s3clip_runtime.inference.spec import CLIP_LENGTH

_NOISE_SIZES: Final[Mapping[Crops, tuple[int, int]]] = {"lr": (48, 20), "hr": (160, 72)}
"""Height and width of made-up crops: a person far away, and one that is near enough to be HR."""


@dataclass(frozen=True, slots=True)
class BenchClips:
    """What is measured on.

    Attributes:
        clips: by their kind, at least one each; the crops of one clip differ from each other.
        reference: PyTorch's answers for this bundle, None where it was exported without.
        data: what the clips are, a clause.
        synthetic: whether they are known to be drawn or made up.
    """

    clips: Mapping[Crops, tuple[Clip, ...]]
    reference: Reference | None
    data: str
    synthetic: bool

    def take(self, crops: Crops, count: int) -> list[Clip]:
        """So many clips of a kind. No crop comes twice: a repeated one may be computed only once."""
        have = self.clips[crops]
        return [_shifted(have[place % len(have)], place // len(have)) for place in range(count)]


def gather(bundle: Bundle) -> BenchClips:
    """The clips for a bundle: its own reference's, else the bundled demo's, else noise.

    Raises:
        BundleError: the reference is damaged.
    """
    with as_file(files("s3clip_runtime.demo")) as demo:
        own = _reference_of(bundle.folder, bundle.manifest)
        drawn = _demo_manifest(demo / "bundle")
        if own is not None:
            synthetic = drawn is not None and drawn.embedding_space == bundle.manifest.embedding_space
            return _clips(own, own, "the bundle's own reference", synthetic)
        other = None if drawn is None else _reference_of(demo / "bundle", drawn)
    name = "the bundled demo, drawn people" if other is not None else "seeded noise"
    return _clips(other, None, name, True)


def noise_clip(crops: Crops, seed: int = 0) -> Clip:
    """A clip of seeded noise; what is in a crop does not change how long a network takes for it."""
    rng = np.random.default_rng(seed)
    size = _NOISE_SIZES[crops]
    pictures = rng.integers(0, 256, (CLIP_LENGTH, *size, 3), dtype=np.uint8)
    return Clip(tuple(pictures), platform=0, hr=crops == "hr")


def _clips(source: Reference | None, reference: Reference | None, name: str, synthetic: bool) -> BenchClips:
    found: dict[Crops, tuple[Clip, ...]] = {"lr": (), "hr": ()}
    for clip in () if source is None else source.clips:
        if len({crop.tobytes() for crop in clip.crops}) == CLIP_LENGTH:
            found["hr" if clip.hr else "lr"] += (clip,)
    words = []
    for kind, clips in found.items():
        words.append(f"{len(clips)} {kind.upper()} clips" if clips else f"{kind.upper()} clips of noise")
        found[kind] = clips or (noise_clip(kind),)
    return BenchClips(found, reference, f"{name}: {', '.join(words)}", synthetic)


def _shifted(clip: Clip, columns: int) -> Clip:
    """The same pictures rolled sideways, by other bytes for each number of columns."""
    if columns == 0:
        return clip
    return Clip(tuple(np.roll(crop, columns, axis=1) for crop in clip.crops), clip.platform, clip.hr)


def _reference_of(folder: Path, manifest: Manifest) -> Reference | None:
    attachment = manifest.attachments.get("reference")
    return None if attachment is None else read_reference(folder / attachment.file)


def _demo_manifest(folder: Path) -> Manifest | None:
    """That of the bundle which the runtime ships, None where it was left out or is older."""
    try:
        return read_record(folder / MANIFEST_FILE, Manifest, *SCHEMA_VERSIONS)
    except BundleError:
        return None
