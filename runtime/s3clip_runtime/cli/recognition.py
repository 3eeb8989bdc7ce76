"""From the settings of a site to its gallery and the rules of deciding, and what to warn of at the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from s3clip_runtime.cli.gallery.embedding import space_of
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.recognition.travel import Travel, Way
from s3clip_runtime.gallery.storage.places import must_exist
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.site.model import Site
from s3clip_runtime.streams.recognition.housekeeping import Limits

_DAY_S = 86_400.0


def open_recogniser(stack: ExitStack, site: Site, bundle: Bundle) -> Recogniser | None:
    """The site's gallery, closed by `stack`, with the rules of deciding; None: the site has none.

    Raises:
        GalleryError: the file is missing, foreign or damaged, or holds no embeddings of this bundle.
        GalleryUnavailable: the server is away.
    """
    address = site.gallery_address
    if address is None:
        return None
    must_exist(address)
    gallery = stack.enter_context(
        Gallery.open(address, space_of(bundle), key_file=site.gallery_key_file, actor="s3clip-run")
    )
    return Recogniser(gallery, rules_of(site))


def rules_of(site: Site) -> Rules:
    """What the run may do with people."""
    wanted = site.identities
    if wanted is None:
        return Rules(threshold=site.threshold)
    return Rules(
        threshold=site.threshold,
        unknowns=wanted.unknowns,
        grow=wanted.grow,
        promote_after=wanted.promote_after,
        min_quality=wanted.min_quality,
        keep_crops=wanted.keep_crops,
        travel=Travel({(way.from_, way.to): Way(way.min_s, way.max_s) for way in wanted.travel}),
    )


def limits_of(site: Site) -> Limits | None:
    """How long people are kept; None: the site says nothing, and nothing is erased."""
    wanted = site.identities
    if wanted is None:
        return None
    return Limits(
        candidates_s=_DAY_S * wanted.candidate_days,
        unknowns_s=_DAY_S * wanted.unknown_days,
        keep_s=_DAY_S * wanted.keep_days,
    )


def cautions(recogniser: Recogniser) -> Iterator[str]:
    """What will not do as an operator may think, one sentence each, with its cure."""
    rules, open_set = recogniser.rules, recogniser.open_set
    name = recogniser.gallery.database.name
    if open_set is None:
        cure = "measure its thresholds with s3clip-gallery calibrate"
        if rules.threshold is None:
            yield f"{name} is uncalibrated, so nobody is named; {cure}, or set your own with --threshold"
            if rules.unknowns:
                yield f"identities.unknowns waits until {name} is calibrated: nobody gets an id; {cure}"
        if rules.grow:
            yield f"identities.grow waits until {name} is calibrated: no view is added; {cure}"
    elif rules.threshold is None and (warning := open_set.warns(recogniser.identities)) is not None:
        yield warning
