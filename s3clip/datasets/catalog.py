"""From the settings of a run to its tracklets: the reader, and the synthetic world where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from s3clip.config import DataSettings
from s3clip.datasets import Protocol, Tracklet
from s3clip.datasets.sizes import SizeCache, default_cache_path

Reader = tuple[
    Callable[[Path, SizeCache], list[Tracklet]],
    Callable[[Path, SizeCache], list[Protocol]],
]
"""The functions `read_train` and `read_protocols` of one data set's module."""


def read_train(settings: DataSettings) -> list[Tracklet]:
    """The training split.

    Raises:
        DataError: the files break the data set's layout; every problem is named.
        ConfigError: `root` holds another synthetic world than the settings describe, the size cache
            cannot be used, or the data set has no split `ilids_split`.
    """
    _write_synthetic(settings)
    with _open_sizes(settings) as sizes:
        return _reader(settings)[0](settings.root, sizes)


def read_protocols(settings: DataSettings) -> list[Protocol]:
    """The evaluation protocols of the test split. Raises as `read_train`."""
    _write_synthetic(settings)
    with _open_sizes(settings) as sizes:
        return _reader(settings)[1](settings.root, sizes)


def protocol_tracklets(protocols: Iterable[Protocol]) -> list[Tracklet]:
    """Every tracklet of the protocols once, in the order of first use."""
    return list({t.name: t for protocol in protocols for t in (*protocol.query, *protocol.gallery)}.values())


def is_synthetic(settings: DataSettings) -> bool:
    """Whether s3clip drew the data: its marker tells that of a folder that was made earlier."""
    from s3clip.synthetic.world import MARKER

    return settings.synthetic is not None or (settings.root / MARKER).is_file()


def _open_sizes(settings: DataSettings) -> SizeCache:
    return SizeCache(settings.size_cache or default_cache_path(settings.root))


def _reader(settings: DataSettings) -> Reader:
    """The module is imported here, so that a run needs only what its own data set needs."""
    match settings.kind:
        case "folder":
            from s3clip.datasets import folder

            return folder.read_train, folder.read_protocols
        case "csv":
            from s3clip.datasets import csv_file

            return csv_file.read_train, csv_file.read_protocols
        case "detreidx":
            from s3clip.datasets import detreidx

            return detreidx.read_train, detreidx.read_protocols
        case "g2a_vreid":
            from s3clip.datasets import g2a_vreid

            return g2a_vreid.read_train, g2a_vreid.read_protocols
        case "mars":
            from s3clip.datasets import mars

            return mars.read_train, mars.read_protocols
        case "ag_vpreid":
            from s3clip.datasets import ag_vpreid

            return ag_vpreid.read_train, ag_vpreid.read_protocols
        case "ilids_vid":
            from s3clip.datasets import ilids_vid

            split = settings.ilids_split
            return partial(ilids_vid.read_train, split=split), partial(ilids_vid.read_protocols, split=split)


def _write_synthetic(settings: DataSettings) -> None:
    """Make the synthetic world where it is configured; nothing happens when it is there already."""
    if settings.synthetic is None:
        return
    from s3clip.synthetic import write_dataset

    world = settings.synthetic
    write_dataset(
        settings.root,
        seed=world.seed,
        train_identities=world.train_identities,
        test_identities=world.test_identities,
        tracklets_per_view=world.tracklets_per_view,
        frames=world.frames,
    )
