"""From the settings of a run to its tracklets: the reader, and the synthetic world where it is wanted."""

from __future__ import annotations

from collections.abc import Iterable

from s3clip.config import DataSettings
from s3clip.datasets import Protocol, Tracklet, cross_view_protocols
from s3clip.datasets.folder import read_folder


def read_train(settings: DataSettings) -> list[Tracklet]:
    """The training split.

    Raises:
        DataError: the files break the data set's layout; every problem is named.
        ConfigError: `root` holds another synthetic world than the settings describe.
    """
    _write_synthetic(settings)
    return read_folder(settings.root, "train")


def read_protocols(settings: DataSettings) -> list[Protocol]:
    """The evaluation protocols of the test split. Raises as `read_train`."""
    _write_synthetic(settings)
    return cross_view_protocols(read_folder(settings.root, "test"))


def protocol_tracklets(protocols: Iterable[Protocol]) -> list[Tracklet]:
    """Every tracklet of the protocols once, in the order of first use."""
    return list({t.name: t for protocol in protocols for t in (*protocol.query, *protocol.gallery)}.values())


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
