"""Commands that erase people from a gallery, and prove it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s3clip_runtime.cli.gallery.place import PATH, Place, confirm, on_gallery, yes_option
from s3clip_runtime.errors import ConfigError, GalleryError

if TYPE_CHECKING:
    from s3clip_runtime.gallery.erasure.forget import Selection
    from s3clip_runtime.gallery.erasure.receipts import Receipt
    from s3clip_runtime.gallery.gallery import Gallery

_DAY_S = 86_400.0
_days = click.FloatRange(min=0, min_open=True)


@click.command()
@on_gallery
@click.argument("name", required=False)
@click.option("--camera", help="What this camera saw.")
@click.option("--since", metavar="TIME", help="What was seen from then on: 2026-03-01 or 2026-03-01T18:00.")
@click.option("--until", metavar="TIME", help="What was seen up to then; a day alone is its start.")
@click.option(
    "--older-than-days", type=_days, help="What runs collected and is older; not what was enrolled."
)
@click.option("--receipt", type=PATH, help="New file for the signed receipt; forget-ID.json if not given.")
@click.option("--crops", type=PATH, help="Also delete pictures of outputs.crops in this folder.")
@yes_option
def forget(
    place: Place,
    name: str | None,
    camera: str | None,
    since: str | None,
    until: str | None,
    older_than_days: float | None,
    receipt: Path | None,
    crops: Path | None,
    yes: bool,
) -> None:
    """Erase the person NAME, or what cameras saw, from GALLERY and from all its backups on this box.

    The bytes are overwritten and searched for afterwards. A signed receipt says what was done; exit 2 when
    something was not reached. Times without a zone are local.
    """
    selection, asked = _selection(name, camera, since, until, older_than_days)
    if receipt is not None:
        _check_new(receipt)
    with place.open() as gallery:
        pictures, others = _pictures(gallery, selection, crops)
        _foretell(gallery, selection, asked, len(pictures), others)
        confirm("erase it for good?", yes=yes)
        _delete(pictures)
        done, text = gallery.forget(selection, asked, pictures=len(pictures))
    erased = ", ".join(f"{count} {what}" for what, count in done.erased.items()) or "nothing"
    click.echo(f"forgot {asked}: {erased}")
    _write(receipt or Path(f"forget-{done.receipt_id}.json"), text)
    _check_complete(done)


@click.command("verify-receipt")
@click.argument("file", type=PATH)
@click.option("--public-key", metavar="HEX", help="Of the gallery that must have signed it.")
@click.option("--gallery", help="The gallery that must have signed it: its key is taken.")
@click.option("--key-file", type=PATH, envvar="S3CLIP_GALLERY_KEY_FILE", help="Of an encrypted gallery.")
def verify_receipt(file: Path, public_key: str | None, gallery: str | None, key_file: Path | None) -> None:
    """Check the signature of the receipt in FILE and say what it tells."""
    from s3clip_runtime.cli.gallery.place import place_of
    from s3clip_runtime.gallery.erasure.receipts import verify

    if public_key is not None and gallery is not None:
        raise ConfigError("give --public-key or --gallery, not both")
    if gallery is not None:
        with place_of(gallery, key_file).open() as opened:
            public_key = opened.public_key
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"receipt {file}: cannot be read ({error}); check the path") from error
    receipt = verify(text, public_key)
    erased = ", ".join(f"{count} {what}" for what, count in receipt.erased.items()) or "nothing"
    click.echo(
        f"the signature holds: {receipt.asked}, by {receipt.asked_by} on {receipt.box}, {receipt.time}"
    )
    click.echo(f"erased: {erased}")
    click.echo("complete" if receipt.complete else f"not complete: {_missing(receipt)}")
    if public_key is None:
        click.echo("signed by the key that the file itself names; --public-key checks whose it is", err=True)


@click.command()
@on_gallery
@click.option("--candidate-days", type=_days, help="Of people who were not seen often enough to be unknown.")
@click.option("--unknown-days", type=_days, help="Of unknown people.")
@click.option("--keep-days", type=_days, help="Of all that runs collected, also of known people.")
def expire(
    place: Place, candidate_days: float | None, unknown_days: float | None, keep_days: float | None
) -> None:
    """Erase what runs collected longer ago than these days: unknown people by their last sighting."""
    if candidate_days is None and unknown_days is None and keep_days is None:
        raise ConfigError("expire needs a limit; give --candidate-days, --unknown-days or --keep-days")
    never_s = float("inf")
    with place.open() as gallery:
        gone = gallery.expire(
            candidates_s=never_s if candidate_days is None else candidate_days * _DAY_S,
            unknowns_s=never_s if unknown_days is None else unknown_days * _DAY_S,
            keep_s=None if keep_days is None else keep_days * _DAY_S,
        )
    click.echo(f"expired: {gone} people are gone")


def _selection(
    name: str | None, camera: str | None, since: str | None, until: str | None, days: float | None
) -> tuple[Selection, str]:
    """Who is meant, and that in words."""
    from s3clip_runtime.gallery.erasure.forget import Selection

    seen = {"camera": camera, "since": since, "until": until}
    given = {key: value for key, value in seen.items() if value is not None}
    if [name is not None, bool(given), days is not None].count(True) != 1:
        raise ConfigError(
            "forget needs a NAME, or --camera, --since and --until, or --older-than-days; one of"
        )
    if name is not None:
        return Selection(identity=name), f"identity {name!r}"
    if days is not None:
        until_s = time.time() - days * _DAY_S
        return Selection(until_s=until_s, collected=True), f"collected more than {days:g} days ago"
    since_s = 0.0 if since is None else _unix_s("since", since)
    until_s = float("inf") if until is None else _unix_s("until", until)
    return Selection(camera=camera, since_s=since_s, until_s=until_s), ", ".join(
        f"{key} {value}" for key, value in given.items()
    )


def _unix_s(option: str, text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--{option} must be a time, found {text!r}; write 2026-03-01 or 2026-03-01T18:00"
        ) from None


def _pictures(gallery: Gallery, selection: Selection, folder: Path | None) -> tuple[list[Path], list[str]]:
    """The pictures to delete, and the names of others whose pictures cannot be told from these."""
    from s3clip_runtime.gallery.erasure.former_names import all_names
    from s3clip_runtime.streams.outputs.crops import pictures_of, written_alike

    if folder is None:
        return [], []
    if selection.identity is None:
        found = pictures_of(
            folder, camera=selection.camera, since_s=selection.since_s, until_s=selection.until_s
        )
        return found, []
    person = gallery.show(selection.identity)[0]
    names = all_names(person, gallery.log())
    others = {one.identity for one in gallery.list()} - {person.name}
    return pictures_of(folder, names=names), sorted(written_alike(names, others))


def _foretell(gallery: Gallery, selection: Selection, asked: str, pictures: int, others: list[str]) -> None:
    """Say what will go, on stderr."""
    from s3clip_runtime.gallery.erasure.forget import foreseen

    with gallery.reading() as book:
        counts, people = foreseen(book, selection)
    rows = ", ".join(f"{count} {table} rows" for table, count in counts.items() if count) or "no rows"
    click.echo(f"{asked}: {rows} of {len(people)} people, {pictures} pictures", err=True)
    if selection.identity is None and people:
        click.echo(f"people: {', '.join(people)}", err=True)
    if others and pictures:
        click.echo(f"files name them like {', '.join(others)}: pictures of these may be among them", err=True)


def _delete(pictures: list[Path]) -> None:
    for path in pictures:
        try:
            path.unlink(missing_ok=True)  # the run deletes old ones too
        except OSError as error:
            raise GalleryError(
                f"picture {path}: cannot be deleted ({error.strerror}); the gallery is as it was: mend it "
                "and ask again"
            ) from error


def _check_new(receipt: Path) -> None:
    """Before the erasure, not after: a receipt is written once."""
    if receipt.exists() or not receipt.absolute().parent.is_dir():
        raise ConfigError(f"receipt {receipt}: must be a new file in a folder that is there; name another")


def _write(receipt: Path, text: str) -> None:
    try:
        with receipt.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        click.echo(text, nl=False)
        raise GalleryError(
            f"receipt {receipt}: cannot be written ({error.strerror}); it was printed, save it from there"
        ) from error
    click.echo(f"wrote {receipt}")


def _check_complete(receipt: Receipt) -> None:
    if not receipt.complete:
        raise GalleryError(f"receipt {receipt.receipt_id} is not complete: {_missing(receipt)}")


def _missing(receipt: Receipt) -> str:
    missing = [f"backup {one.path}: {one.not_reached}" for one in receipt.backups if one.not_reached]
    if receipt.found:
        missing.append(
            f"{receipt.found} of {receipt.searched} pieces of erased values are still in the files"
        )
    return "; ".join(missing)
