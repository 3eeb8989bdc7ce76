"""The size cache: true sizes, nothing read twice, nothing stale, and every fault of its file explained."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s3clip.datasets import sizes as module
from s3clip.datasets.problems import Problems
from s3clip.datasets.sizes import Size, SizeCache, default_cache_path
from s3clip_runtime.errors import ConfigError


def write_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of different sizes and formats; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        name = f"{i:03}." + ("jpg", "png", "bmp")[i % 3]
        Image.new("RGB", (11 + i % 7, 20 + i)).save(folder / name)
        names.append(name)
    return names


def read(cache: SizeCache, folder: Path, names: list[str]) -> dict[str, Size]:
    problems = Problems()
    found = cache.sizes(folder, names, problems)
    problems.raise_if_any(folder, "test")
    return found


def count_opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that Pillow opens from now on."""
    opened: list[str] = []
    real = Image.open

    def spy(path: str) -> Image.Image:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(Image, "open", spy)
    return opened


def test_sizes_are_those_of_the_decoded_pictures(tmp_path: Path, size_cache: SizeCache) -> None:
    names = write_pictures(tmp_path, 12)
    decoded = {name: np.asarray(Image.open(tmp_path / name)).shape[:2] for name in names}
    assert len(set(decoded.values())) == 12
    assert read(size_cache, tmp_path, names) == decoded


def test_a_second_run_opens_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_pictures(tmp_path / "pictures", 9)
    opened = count_opens(monkeypatch)
    with SizeCache(tmp_path / "sizes.sqlite") as cache:
        first = read(cache, tmp_path / "pictures", names)
    assert len(opened) == 9
    with SizeCache(tmp_path / "sizes.sqlite") as cache:
        again = read(cache, tmp_path / "pictures", names)
        # A path through a link is the same folder.
        (tmp_path / "link").symlink_to(tmp_path / "pictures")
        linked = read(cache, tmp_path / "link", names)
    assert len(opened) == 9
    assert first == again == linked


@pytest.mark.parametrize("change", ["mtime", "size"])
def test_a_changed_file_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_cache: SizeCache, change: str
) -> None:
    names = write_pictures(tmp_path, 3)
    read(size_cache, tmp_path, names)
    size_cache._flush()
    path = tmp_path / names[2]
    before = path.stat()
    if change == "mtime":
        Image.new("RGB", (40, 60)).save(path)
        os.truncate(path, before.st_size)  # the header is whole, only the pixels are cut
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        Image.new("RGB", (40, 60)).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened = count_opens(monkeypatch)
    assert read(size_cache, tmp_path, names)[names[2]] == (60, 40)
    assert opened == [str(path)]


def test_the_same_size_is_one_object(tmp_path: Path, size_cache: SizeCache) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (300, 400)).save(tmp_path / name)
    found = read(size_cache, tmp_path, ["a.png", "b.png"])
    assert found["a.png"] is found["b.png"]


def test_missing_and_broken_pictures_are_problems_and_are_not_remembered(
    tmp_path: Path, size_cache: SizeCache
) -> None:
    (good,) = write_pictures(tmp_path, 1)
    (tmp_path / "text.jpg").write_bytes(b"not a picture")
    (tmp_path / "empty.jpg").touch()
    for _ in range(2):
        problems = Problems()
        found = size_cache.sizes(tmp_path, [good, "text.jpg", "empty.jpg", "gone.jpg"], problems)
        assert list(found) == [good]
        assert problems.count == 3
        text = "\n".join(problems._shown)
        assert f"{tmp_path}/gone.jpg: a frame must exist" in text
        assert f"{tmp_path}/text.jpg: a frame must be a readable image" in text
        assert f"{tmp_path}/empty.jpg: a frame must be a readable image" in text
        size_cache._flush()


def read_until_stopped(cache_path: Path, folder: Path, names: list[str]) -> None:
    with SizeCache(cache_path) as cache:
        read(cache, folder, names)
        raise KeyboardInterrupt


def test_what_was_read_before_an_interrupt_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_pictures(tmp_path / "pictures", 3)
    with pytest.raises(KeyboardInterrupt):
        read_until_stopped(tmp_path / "sizes.sqlite", tmp_path / "pictures", names)
    opened = count_opens(monkeypatch)
    with SizeCache(tmp_path / "sizes.sqlite") as cache:
        read(cache, tmp_path / "pictures", names)
    assert opened == []


def test_damaged_files_are_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "sizes.sqlite"
    path.write_bytes(b"this is no database " * 100)
    with pytest.raises(ConfigError, match=rf"size cache {path}: .*delete it"):
        SizeCache(path)


def test_damage_behind_the_header_is_explained_too(tmp_path: Path) -> None:
    path = tmp_path / "sizes.sqlite"
    names = write_pictures(tmp_path / "pictures", 300)
    with SizeCache(path) as cache:
        read(cache, tmp_path / "pictures", names)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(ConfigError, match="delete it"), SizeCache(path) as cache:
        read(cache, tmp_path / "pictures", names)


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE image (x)")
    database.close()
    content = path.read_bytes()
    with pytest.raises(ConfigError, match=r"no size cache of this version.*delete it"):
        SizeCache(path)
    assert path.read_bytes() == content


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be created .* set data\.size_cache"):
        SizeCache(tmp_path / "file/sizes.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(ConfigError, match=r"unable to open .* set data\.size_cache"):
        SizeCache(tmp_path / "folder.sqlite")


def test_a_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop a test that runs as root, so SQLite is asked for a read-only connection.
    SizeCache(tmp_path / "sizes.sqlite").close()
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options),
    )
    with pytest.raises(ConfigError, match=r"readonly .* set data\.size_cache"):
        SizeCache(tmp_path / "sizes.sqlite")


def test_the_default_place_follows_xdg_and_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = default_cache_path(tmp_path / "a")
    assert first.parent == tmp_path / "s3clip/sizes"
    assert first.suffix == ".sqlite"
    assert default_cache_path(tmp_path / "b/../a") == first
    assert default_cache_path(tmp_path / "b") != first
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_path(tmp_path / "a") == Path("/home/somebody/.cache/s3clip/sizes") / first.name


def test_a_lock_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_S", 5.0)
    names = write_pictures(tmp_path / "pictures", 3)
    path = tmp_path / "sizes.sqlite"
    SizeCache(path).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO folder (path) VALUES ('/elsewhere')")
    release = threading.Timer(0.4, other.execute, ["COMMIT"])
    release.start()
    start = time.monotonic()
    with SizeCache(path) as cache:
        assert len(read(cache, tmp_path / "pictures", names)) == 3
    assert time.monotonic() - start > 0.3
    release.join()
    other.close()


def test_a_lock_that_stays_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sizes.sqlite"
    SizeCache(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(module, "_BUSY_S", 0.1)
    with pytest.raises(ConfigError, match="another process has been writing"):
        SizeCache(path)
    other.close()


def _index(path: Path, folders: list[Path], names: list[str]) -> int:
    """What a second training process does; each image is its own transaction, to meet the others often."""
    module._FLUSH_ROWS = 1
    with SizeCache(path) as cache:
        return sum(len(read(cache, folder, names)) for folder in folders)


def test_processes_that_start_together_share_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / f"pictures{i}" for i in range(6)]
    for folder in folders:
        names = write_pictures(folder, 8)
    path = tmp_path / "deep/er/sizes.sqlite"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_index, [(path, folders, names)] * 3, chunksize=1) == [48] * 3
    opened = count_opens(monkeypatch)
    with SizeCache(path) as cache:
        for folder in folders:
            read(cache, folder, names)
    assert opened == []
