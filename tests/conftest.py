"""What tests share: a tiny bundle, and a video in which coloured rectangles walk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import dsn, postgres  # noqa: F401  fixtures of several files
from street import Street, write_street
from tiny_bundle import write_tiny_bundle
from worlds import write_block_world

from s3clip.datasets.sizes import SizeCache


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    """Twelve seconds, five walkers."""
    return write_street(tmp_path_factory.mktemp("street"), frames=120, walkers=5)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the folder layout: five training and four test identities on both platforms."""
    return write_block_world(tmp_path_factory.mktemp("world") / "blocks")


@pytest.fixture(autouse=True, scope="session")
def _own_cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Size caches of the tests end with them and not in the home of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def size_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SizeCache]:
    """An empty one, outside of `tmp_path`."""
    with SizeCache(tmp_path_factory.mktemp("sizes") / "sizes.sqlite") as cache:
        yield cache


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a real file system of 400 KB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)
