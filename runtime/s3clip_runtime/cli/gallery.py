"""`s3clip-gallery`: who is in a gallery, add and find people by pictures, forget them.

The heavy imports sit in the commands: `--help` answers at once and without onnxruntime.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.errors import Group
from s3clip_runtime.inference.spec import PLATFORMS, platform_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from s3clip_runtime.inference.bundle import Bundle
    from s3clip_runtime.inference.clips import Clip

_gallery = click.argument("gallery", type=click.Path(path_type=Path))
_pictures = click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
_bundle = click.option(
    "--bundle", required=True, type=click.Path(path_type=Path), help="Folder that s3clip-export wrote."
)
_platform = click.option(
    "--platform", required=True, type=click.Choice(PLATFORMS), help="Where the camera was."
)
_device = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", "cpu", "cuda")),
    help="Where to embed; auto says what it chose.",
)


@click.group(name="s3clip-gallery", cls=Group)
def main() -> None:
    """Look after a gallery of known people."""


@main.command("list")
@_gallery
def list_identities(gallery: Path) -> None:
    """List the people in GALLERY."""
    from s3clip_runtime.gallery.store import Gallery

    info = Gallery.describe(gallery)
    click.echo(
        f"# {info.identities} identities, {info.prototypes} prototypes, {info.dim} numbers, "
        f"space {info.embedding_space[:12]}"
    )
    with Gallery.open(gallery, embedding_space=info.embedding_space, dim=info.dim) as opened:
        for entry in opened.list():
            day = datetime.fromtimestamp(entry.enrolled_s, UTC).isoformat(timespec="seconds")
            platforms = ",".join(entry.platforms) or "-"
            click.echo(f"{entry.identity}\t{entry.prototypes}\t{platforms}\t{day}\t{','.join(entry.sources)}")


@main.command()
@_gallery
@_bundle
@click.option("--identity", required=True, help="Name of the person.")
@_platform
@_device
@_pictures
def enrol(
    gallery: Path, bundle: Path, identity: str, platform: str, device: str, pictures: tuple[Path, ...]
) -> None:
    """Add a person to GALLERY (made if it is new) by PICTURES of that person: files, or folders of files."""
    from s3clip_runtime.gallery.store import Gallery
    from s3clip_runtime.inference.bundle import Bundle

    verified = Bundle.open(bundle)
    embedding = _embedding(verified, _clip(pictures, platform), device)
    manifest = verified.manifest
    with Gallery.open(
        gallery, embedding_space=manifest.embedding_space, dim=manifest.contract.embedding_dim
    ) as opened:
        opened.enrol(identity, embedding, platform=platform, source=pictures[0].resolve().name)
    click.echo(f"enrolled {identity}")


@main.command()
@_gallery
@_bundle
@_platform
@_device
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="How many to show.")
@_pictures
def search(
    gallery: Path, bundle: Path, platform: str, device: str, top: int, pictures: tuple[Path, ...]
) -> None:
    """Find the person on PICTURES (files, or folders of files, of one person) in GALLERY."""
    from s3clip_runtime.gallery.store import Gallery
    from s3clip_runtime.inference.bundle import Bundle

    Gallery.describe(gallery)  # opening would make a missing file
    verified = Bundle.open(bundle)
    manifest = verified.manifest
    with Gallery.open(
        gallery, embedding_space=manifest.embedding_space, dim=manifest.contract.embedding_dim
    ) as opened:
        matches = opened.search(_embedding(verified, _clip(pictures, platform), device), top)[0]
    for match in matches:
        click.echo(f"{match.score:.4f}\t{match.identity}")


@main.command()
@_gallery
@click.argument("name")
def forget(gallery: Path, name: str) -> None:
    """Erase the person NAME from GALLERY; the bytes are overwritten."""
    from s3clip_runtime.gallery.store import Gallery

    info = Gallery.describe(gallery)
    with Gallery.open(gallery, embedding_space=info.embedding_space, dim=info.dim) as opened:
        erased = opened.forget(name)
    click.echo(f"forgot {name}: {erased} prototypes erased")


def _embedding(bundle: Bundle, clip: Clip, device: str) -> NDArray[np.float32]:
    from s3clip_runtime.inference.embedder import Embedder

    with Embedder(bundle, device=device) as embedder:
        click.echo(f"device {embedder.device}: {embedder.device_reason}", err=True)
        # By the rule of s3clip-run: embeddings with and without super-resolution are not quite alike.
        enhance = not clip.hr and bundle.enhances(clip.height_px)
        return embedder.embed_looks([clip], enhance=[enhance]).vectors


def _clip(paths: tuple[Path, ...], platform: str) -> Clip:
    """All pictures of one person as one clip, in the order of names within a folder."""
    from s3clip_runtime.inference.clips import Clip, is_hr_tracklet, spread_indices
    from s3clip_runtime.inference.pictures import picture_files, read_upright

    files = [file for path in paths for file in (picture_files(path) if path.is_dir() else [path])]
    crops = [read_upright(file) for file in files]
    hr = is_hr_tracklet([(crop.shape[0], crop.shape[1]) for crop in crops])
    return Clip(tuple(crops[i] for i in spread_indices(len(crops))), platform_id(platform), hr)
