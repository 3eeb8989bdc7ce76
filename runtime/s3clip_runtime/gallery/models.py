"""When the model changes: people are embedded again from the crops that were kept, and spaces never mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.records import Identity, Prototype, Space
from s3clip_runtime.gallery.storage.book import Book, Views
from s3clip_runtime.gallery.storage.clips import unpack
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.spec import platform_id

BATCH: Final = 8
"""Clips that are embedded, and committed, at once: what a killed run loses."""

Embed = Callable[[Sequence[Clip]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Carried:
    """What a new model knows after the change.

    Attributes:
        prototypes: embedded again, by this call.
        left_behind: names of people of whom no crops were kept: they are unknown to the new model.
    """

    prototypes: int
    left_behind: tuple[str, ...]


def add_model(book: Book, space: Space, embed: Embed, tick: Callable[[int, int], None]) -> Carried:
    """Make room for a model, and embed all kept crops by it. A call after a killed one goes on.

    The other spaces stay as they are: boxes with the old model go on by it until `retire_model`.

    Args:
        book: of an open gallery, in no transaction.
        space: of the new model.
        embed: clips to float32 (n, dim) of length 1, by the new model.
        tick: gets how many clips are done, and of how many.
    """
    if space not in book.spaces():
        with book.database.transaction():
            book.add_space(space)
            book.log.append("add space")
    waiting = _waiting(book, space)
    for first in range(0, len(waiting), BATCH):
        tick(first, len(waiting))
        _carry(book, space, waiting[first : first + BATCH], embed)
    tick(len(waiting), len(waiting))
    known = {one.identity for one in book.prototypes() if one.space == space.hash}
    behind = tuple(one.name for one in book.identities() if one.id not in known)
    return Carried(len(waiting), behind)


def retire_model(book: Book, space: str) -> int:
    """Erase a space with all its vectors; how many there were.

    Raises:
        GalleryError: there is no such space, or it is the only one.
    """
    hashes = [one.hash for one in book.spaces()]
    found = [hash for hash in hashes if hash.startswith(space)]
    if len(found) != 1 or not space:
        raise GalleryError(
            f"{book.database.name} holds {len(found)} spaces that begin with {space!r}; "
            f"name one of {', '.join(hashes)}"
        )
    if len(hashes) == 1:
        raise GalleryError(f"{book.database.name}: space {found[0]} is the only one; add the new model first")
    with book.database.transaction():
        erased = book.remove_space(found[0])
        book.new_generation()
        book.log.append("retire space")
    book.database.scrub()
    return erased


def _waiting(book: Book, space: Space) -> list[Prototype]:
    """One prototype of every kept clip that the new model has not seen."""
    done = {one.clip for one in book.prototypes() if one.space == space.hash}
    by_clip = {one.clip: one for one in book.prototypes() if one.clip is not None and one.clip not in done}
    return list(by_clip.values())


def _carry(book: Book, space: Space, prototypes: Sequence[Prototype], embed: Embed) -> None:
    clips = []
    for one in prototypes:
        assert one.clip is not None  # they were chosen so
        pictures, hr, platform = book.clip(one.clip)
        clips.append(Clip(unpack(pictures), platform_id(platform), hr))
    vectors = embed(clips).astype(np.float16)
    with book.database.transaction():
        for one, vector in zip(prototypes, vectors, strict=True):
            if _gone(book.identity(one.identity), book, one):
                continue  # forgotten or merged while it was embedded; a merge is met again by the next call
            views = Views(
                space.hash, vector[None], one.origin, one.platform, one.camera, one.source, one.quality,
                one.seen_s, clip=one.clip,
            )  # fmt: skip
            book.add_prototypes(one.identity, views)
            book.log.append("embed again", one.identity)


def _gone(identity: Identity | None, book: Book, prototype: Prototype) -> bool:
    return identity is None or prototype.id not in {one.id for one in book.prototypes(identity.id)}
