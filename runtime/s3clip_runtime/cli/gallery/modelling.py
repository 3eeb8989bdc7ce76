"""Commands about a gallery's models: calibration, model change, and the index of a server."""

from __future__ import annotations

from pathlib import Path

import click

from s3clip_runtime.cli.errors import needs_extra
from s3clip_runtime.cli.gallery.place import (
    PATH,
    Place,
    bundle_option,
    confirm,
    device_option,
    on_gallery,
    yes_option,
)
from s3clip_runtime.errors import GalleryError


@click.command()
@on_gallery
@click.argument("data", type=PATH)
@bundle_option
@click.option(
    "--fpir",
    required=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of strangers who may match anybody, such as 0.01.",
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Of random splits.")
@click.option("--identities", type=click.IntRange(min=1), help="People enrolled in one trial.")
@click.option("--plots", type=PATH, help="Folder for a picture of each pair of platforms.")
@device_option
def calibrate(
    place: Place,
    data: Path,
    bundle: Path,
    fpir: float,
    seed: int,
    identities: int | None,
    plots: Path | None,
    device: str,
) -> None:
    """Set the thresholds of GALLERY by the labelled tracklets in DATA: PLATFORM/PERSON/CAMERA_NAME/*.jpg."""
    from s3clip_runtime.cli.gallery.calibration import measure, table
    from s3clip_runtime.cli.gallery.embedding import space_of
    from s3clip_runtime.inference.bundle import Bundle

    verified = Bundle.open(bundle)
    with place.open(space_of(verified), new=True) as gallery:
        open_set = measure(
            verified, data, fpir=fpir, seed=seed, identities=identities, device=device, plots=plots
        )
        gallery.calibrate(open_set)
        warning = open_set.warns(gallery.identities)
    click.echo(table(open_set))
    if warning:
        click.echo(f"warning: {warning}", err=True)


@click.command("add-model")
@on_gallery
@bundle_option
@device_option
def add_model(place: Place, bundle: Path, device: str) -> None:
    """Make room for the model of a new bundle in GALLERY, and embed all kept crops by it.

    The old model goes on beside it until retire-model. A stopped call goes on where it was.
    """
    from tqdm import tqdm

    from s3clip_runtime.cli.gallery.embedding import Model
    from s3clip_runtime.inference.bundle import Bundle

    with (
        place.open() as gallery,
        Model(Bundle.open(bundle), device) as model,
        tqdm(desc="embed", unit="clip", disable=None, leave=False) as bar,
    ):

        def tick(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        carried = gallery.add_model(model.space, model.embed, tick)
    click.echo(f"space {model.space.hash}: {carried.prototypes} prototypes embedded again")
    for name in carried.left_behind:
        click.echo(f"left behind, no crops were kept: {name}")


@click.command("retire-model")
@on_gallery
@click.argument("space")
@yes_option
def retire_model(place: Place, space: str, yes: bool) -> None:
    """Erase the vectors of an old model: SPACE is the beginning of its hash, as `info` lists it."""
    with place.open() as gallery:
        counts = [count for one, count in gallery.info().spaces if one.hash.startswith(space)]
        confirm(f"{sum(counts)} prototypes of space {space} are erased?", yes=yes)
        erased = gallery.retire_model(space)
    click.echo(f"erased {erased} prototypes of space {space}")


@click.command()
@on_gallery
@bundle_option
@click.option("--drop", is_flag=True, help="Remove the index; search is exact again.")
def index(place: Place, bundle: Path, drop: bool) -> None:
    """Build the HNSW index of a bundle's vectors in a gallery on PostgreSQL: the server then searches."""
    from s3clip_runtime.cli.gallery.embedding import space_of
    from s3clip_runtime.gallery.storage.places import is_server
    from s3clip_runtime.inference.bundle import Bundle

    if not is_server(place.address):
        raise GalleryError(
            f"gallery {place.address}: an index is for galleries on PostgreSQL; a file is searched "
            "exactly in memory and needs none"
        )
    with needs_extra("postgres"):
        from s3clip_runtime.gallery.search.server import ServerSearch
        from s3clip_runtime.gallery.storage.postgres import PostgresDatabase
    space = space_of(Bundle.open(bundle))
    with place.open() as gallery:
        database = gallery.database
        assert isinstance(database, PostgresDatabase)  # by its address
        if space not in [one for one, _ in gallery.info().spaces]:
            raise GalleryError(f"{database.name} holds no embeddings of space {space.hash}; see `info`")
        search = ServerSearch(database)
        if drop:
            search.drop_index(space.hash)
        else:
            search.make_index(space.hash, space.dim)
    click.echo(f"{'dropped' if drop else 'built'} the index of space {space.hash}")
