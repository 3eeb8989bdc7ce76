"""Pictures of sightings: what is in them, who gets one, and when they go."""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_sightings import MATCH, UNKNOWN, ids, recognised, sightings, wait_for, with_pictures
from PIL import Image

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.gallery.recognition.deciding import Recognised
from s3clip_runtime.streams.events import Sighting, Unasked
from s3clip_runtime.streams.outputs.crops import CropFolder, Which, strip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written(folder: Path, many: list[Sighting], which: Which = "all", max_mb: float = 1000) -> CropFolder:
    sink = CropFolder(folder, which, 7, max_mb)
    for one in many:
        before = sink.status().delivered
        sink.sighting(one)
        wait_for(lambda before=before: sink.status().delivered > before or which != "all")  # type: ignore[misc]
    sink.close()
    return sink


def test_strip_holds_the_very_pixels() -> None:
    one = with_pictures(sightings(1)[0])
    assert one.pictures is not None
    image = strip(one.clip.crops, tuple(one.pictures))
    assert image.shape == (58 + 128, 3 * 64, 3)
    left = 0
    for crop, picture, at in zip(one.clip.crops, one.pictures, (0, 64, 128), strict=True):
        height, width = crop.shape[:2]
        np.testing.assert_array_equal(image[:height, left : left + width], crop)
        assert (image[height:58, left : left + width] == 96).all()
        np.testing.assert_array_equal(image[58:, at : at + 64], picture)
        left += width
    assert strip(one.clip.crops, ()).shape == (58, 63, 3)


def test_file_is_named_and_close_to_the_picture(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 32, 3)).copy()
    smooth[..., 2] = 255 - smooth[..., 2]
    one = sightings(1, decision=MATCH)[0]
    one = replace(one, clip=replace(one.clip, crops=(smooth, smooth)))
    written(tmp_path / "crops", [one])
    assert names(tmp_path / "crops") == [f"{ids([one])[0]}_c_anna.jpg"]
    image = np.asarray(Image.open(tmp_path / "crops" / names(tmp_path / "crops")[0])).astype(int)
    assert np.abs(image - strip((smooth, smooth), ())).max() < 8  # red is red
    assert stat.S_IMODE((tmp_path / "crops").stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE(next((tmp_path / "crops").iterdir()).stat().st_mode) & 0o007 == 0


@pytest.mark.parametrize(
    ("which", "expected"),
    [("match", {"anna"}), ("unknown", {"unknown", "no-gallery"}), ("all", {"anna", "unknown", "no-gallery"})],
)
def test_policy(tmp_path: Path, which: Which, expected: set[str]) -> None:
    decisions: tuple[Recognised | Unasked, ...] = (MATCH, UNKNOWN, "no_gallery")
    many = [
        replace(one, event=replace(one.event, event_id=f"{ids([one])[0]}{number}"))
        for number, decision in enumerate(decisions)
        for one in sightings(1, decision=decision)
    ]
    sink = CropFolder(tmp_path, which, 7, 100)
    for one in [*many, *sightings(3, stage="first"), *sightings(3, stage="refined")]:
        sink.sighting(one)
    sink.close()
    assert {name.rpartition("_")[2].removesuffix(".jpg") for name in names(tmp_path)} == expected
    assert sink.status().delivered == len(expected)


@pytest.mark.parametrize("evil", ["../../x", "/etc/x", "a\x00b", "..", "ø" * 300, "x" * 300, "a\nb"])
def test_names_cannot_leave_the_folder(tmp_path: Path, evil: str) -> None:
    one = sightings(1, decision=recognised(0.9, name=evil))[0]
    one = replace(one, event=replace(one.event, camera=evil))
    folder = tmp_path / "deep" / "crops"
    written(folder, [one])
    assert len(names(folder)) == 1
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,200}\.jpg", names(folder)[0])
    assert names(tmp_path) == ["deep"]
    assert names(tmp_path / "deep") == ["crops"]


def test_the_oldest_go_beyond_the_space(tmp_path: Path) -> None:
    many = sightings(12)
    written(tmp_path, many[:1])
    size = next(tmp_path.iterdir()).stat().st_size
    written(tmp_path, many[1:], max_mb=5.5 * size / 1e6)
    assert [name.partition("_")[0] for name in names(tmp_path)] == ids(many)[-5:]


def test_old_ones_go_and_other_files_stay(tmp_path: Path) -> None:
    many = sightings(4)
    written(tmp_path, many)
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    (tmp_path / f"{ids(many)[3]}_torn.jpg.part").write_bytes(b"x")  # of a crash
    for path in tmp_path.iterdir():
        days = 6 if ids(many)[2] in path.name else 8
        os.utime(path, (time.time() - 86_400 * days,) * 2)
    CropFolder(tmp_path, "all", 7, 100).close()
    assert [name.partition("_")[0] for name in names(tmp_path)] == [ids(many)[2], "holiday.jpg"]


def test_full_disk_is_counted_and_passes(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    filler = small_disk / "filler"
    sink = CropFolder(small_disk / "crops", "all", 7, 100)
    free = os.statvfs(small_disk)
    filler.write_bytes(b"x" * free.f_bavail * free.f_bsize)
    many = sightings(3)
    sink.sighting(many[0])
    wait_for(lambda: sink.status().lost == 1)
    assert "No space left" in sink.status().error
    assert names(small_disk / "crops") == []
    filler.unlink()
    sink.sighting(many[1])
    wait_for(lambda: sink.status().delivered == 1)
    assert sink.status().error == ""
    sink.close()
    assert "a picture is lost: No space left on device" in caplog.text


@pytest.mark.slow
def test_more_than_can_be_written_is_dropped_and_counted(tmp_path: Path) -> None:
    large = sightings(1)[0]
    large = replace(large, clip=replace(large.clip, crops=(np.zeros((1500, 1500, 3), np.uint8),) * 2))
    sink = CropFolder(tmp_path, "all", 7, 100)
    began = time.monotonic()
    for _ in range(80):
        sink.sighting(large)
    assert time.monotonic() - began < 1
    lost = sink.status().lost
    assert lost > 0
    wait_for(lambda: sink.status().delivered + lost == 80)
    sink.close()


def test_options_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use match, unknown or all"):
        CropFolder(tmp_path, "none", 7, 100)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be above 0"):
        CropFolder(tmp_path, "all", 0, 100)
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="name a writable folder"):
        CropFolder(tmp_path / "file", "all", 7, 100)
