"""s3clip-gallery: enrolling, looking and correcting, through the command itself."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from click.testing import CliRunner
from gallery_world import call, refused, rows, save_person, told
from PIL import Image
from tiny_bundle import SPACE, edit_manifest, write_tiny_bundle
from worlds import write_block_world

from s3clip_runtime.cli.errors import Command, Group
from s3clip_runtime.cli.gallery import main
from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.gallery import Gallery

DEMO = Path(str(files("s3clip_runtime") / "demo"))
OTHER_SPACE = "cd" * 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """One sub-folder a person."""
    for name, seed, count in (("anna", 1, 3), ("bert", 2, 9), ("cara", 3, 1)):
        save_person(tmp_path / "people" / name, seed, count)
    return tmp_path / "people"


def enrolled(gallery: Path, people: Path, bundle: Path, *options: str) -> Path:
    told("enrol-folder", gallery, people, "--bundle", bundle, "--platform", "ground", *options)
    return gallery


def kinds(gallery: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in rows(told("list", gallery))}


def test_enrol_list_search_and_forget(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery = tmp_path / "g"
    options = ("--bundle", bundle, "--platform", "ground", "--device", "cpu")
    for name in ("anna", "bert"):
        done = call("enrol", gallery, *options, "--identity", name, people / name)
        assert (done.exit_code, done.stdout) == (0, f"enrolled {name}\n")
        assert done.stderr == "device cpu: as asked; onnx-fp32 is the first choice on cpu\n"
    listed = rows(told("list", gallery))
    assert [row[:6] for row in listed] == [
        ["anna", "known", "1", "ground", "-", "0"],
        ["bert", "known", "1", "ground", "-", "0"],
    ]
    pictures = sorted((people / "bert").iterdir())
    found = told("search", gallery, *options, *pictures)
    assert found[0] == "# uncalibrated: nobody can tell; run s3clip-gallery calibrate, or give --threshold"
    assert [row[1] for row in rows(found)] == ["bert", "anna"]
    assert float(rows(found)[0][0]) == pytest.approx(1, abs=1e-3)
    receipt = tmp_path / "receipt.json"
    forgot = told("forget", gallery, "anna", "--yes", "--receipt", receipt)
    assert forgot == ["forgot identity 'anna': 1 prototype, 1 identity, 1 log", f"wrote {receipt}"]
    assert list(kinds(gallery)) == ["bert"]


def test_create_makes_an_empty_gallery_once(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery = tmp_path / "g"
    assert told("create", gallery, "--bundle", bundle) == [f"made gallery {gallery}"]
    assert kinds(gallery) == {}
    before = gallery.read_bytes()
    assert "there is a file already" in refused("create", gallery, "--bundle", bundle)
    assert gallery.read_bytes() == before
    assert list(kinds(enrolled(gallery, people, bundle))) == ["anna", "bert", "cara"]


def test_a_search_decides_by_the_threshold_and_is_written_to_the_log(
    tmp_path: Path, people: Path, bundle: Path
) -> None:
    gallery = enrolled(tmp_path / "g", people, bundle)
    search = ("search", gallery, "--bundle", bundle, "--platform", "ground", "--top", "1")
    with Gallery.open(gallery, None) as opened:
        ids = {name: opened.show(name)[0].id for name in ("anna", "bert", "cara")}
        before = opened.log()
    matched = told(*search, "--threshold", "0.9", people / "anna")
    assert matched[0].startswith("# match: anna (score 1.0")
    assert matched[0].endswith(", threshold 0.9000)")
    assert len(matched) == 2
    stranger = save_person(tmp_path / "stranger", 4, 2)
    assert told(*search, "--threshold", "1", stranger)[0].startswith("# unknown: nobody of the gallery (")
    with Gallery.open(gallery, None) as opened:
        first, second = opened.log()[len(before) :]
    assert (first.action, first.identity, first.detail["verdict"]) == ("search", ids["anna"], "match")
    assert cast(list[str], first.detail["found"])[0] == ids["anna"]
    assert (second.identity, second.detail["verdict"]) == (None, "unknown")
    assert set(cast(list[str], second.detail["found"])) <= set(ids.values())
    assert [row[4:6] for row in rows(told("log", gallery, "--last", "2"))] == [
        ["search", "anna"],
        ["search", "-"],
    ]


def test_enrol_folder_skips_what_is_there_and_goes_on_after_a_stop(
    tmp_path: Path, people: Path, bundle: Path
) -> None:
    gallery, words = tmp_path / "g", ("--bundle", bundle, "--platform", "aerial")
    for number in range(9):  # a first batch of eight, then one that stops
        save_person(people / f"x{number}", 10 + number, 1)
    broken = people / "x8" / "0.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:60])
    assert "0.png: a crop must be a readable picture" in refused("enrol-folder", gallery, people, *words)
    first = set(kinds(gallery))
    assert first == {"anna", "bert", "cara", *(f"x{number}" for number in range(5))}
    broken.write_bytes(good)
    lines = told("enrol-folder", gallery, people, *words)
    assert {line.split()[1].removesuffix(":") for line in lines[:-1]} == first
    assert lines[0] == "skipped anna: people/anna is there already"
    assert lines[-1] == "enrolled 4 views of 4 people, skipped 8"
    assert {row[2] for row in rows(told("list", gallery))} == {"1"}


def test_enrol_folder_reads_person_platform_and_camera_from_paths(tmp_path: Path, bundle: Path) -> None:
    root = write_block_world(tmp_path / "world", train=0, test=3, frames=2) / "test"
    gallery = tmp_path / "g"
    lines = told("enrol-folder", gallery, root, "--bundle", bundle)
    assert lines == ["enrolled 12 views of 3 people, skipped 0"]
    for row in rows(told("list", gallery)):
        assert row[2:5] == ["4", "aerial,ground", "aerial0,aerial1,ground0,ground1"]
    (root / "ground/1000/ground0_1000").rename(root / "ground/gate_17")
    message = refused("enrol-folder", gallery, root, "--bundle", bundle)
    assert "the path of 1 tracklets tells no person, such as ground/gate_17" in message


def crops_by_hand(folder: Path, last: int) -> dict[int, Path]:
    """The last pictures of each person in the demo's ground video, cut by nobody's code but this."""
    boxes = defaultdict(list)
    for line in (DEMO / "ground.txt").read_text().splitlines():
        frame, person, x, y, width, height, *_ = (float(word) for word in line.split(","))
        boxes[int(frame)].append((int(person), round(x), round(y), round(x + width), round(y + height)))
    seen = defaultdict(list)
    with av.open(str(DEMO / "ground.mp4")) as video:
        for number, picture in enumerate(video.decode(video=0), start=1):
            for person, *box in boxes[number]:
                left, top, right, bottom = box
                image = picture.to_ndarray(format="rgb24").astype(np.uint8)
                seen[person].append(image[top:bottom, left:right])
    for person, pictures in seen.items():
        (folder / str(person)).mkdir(parents=True)
        for number, crop in enumerate(pictures[-last:]):
            Image.fromarray(crop).save(folder / str(person) / f"{number}.png")
    return {person: folder / str(person) for person in seen}


def test_people_of_a_video_are_found_by_pictures_of_them(tmp_path: Path) -> None:
    gallery, folders = tmp_path / "g", crops_by_hand(tmp_path / "cut", last=24)
    names = [f"--name={person}=person {person}" for person in folders if person != 2006]
    words = ("enrol-video", gallery, f"{DEMO / 'ground.mp4'}@ground", "--boxes", DEMO / "ground.txt")
    bundle = ("--bundle", DEMO / "bundle")
    lines = told(*words, *names, *bundle, "--camera", "gate")
    assert lines == ["enrolled 6 views of 6 people, skipped 0"]
    for person, folder in folders.items():
        best = rows(told("search", gallery, "--platform", "ground", *bundle, folder))[0]
        assert (best[1] == f"person {person}") == (person != 2006)  # whom nobody enrolled
    again = told(*words, *names, "--name=2006=late", *bundle)
    assert again[-1] == "enrolled 1 views of 1 people, skipped 6"
    listed = {row[0]: row for row in rows(told("list", gallery))}
    assert listed["late"][3:5] == ["ground", "ground"]  # the file's name
    assert listed["person 2000"][4] == "gate"
    with Gallery.open(gallery, None) as opened:
        (prototype,) = opened.show("late")[1]
    assert prototype.quality is not None
    assert 0.3 < prototype.quality <= 1


@pytest.mark.parametrize(
    ("video", "boxes", "name", "message"),
    [
        ("ground.mp4@ground", "ground.txt", "7=x", "ground.txt has no person 7; it has 2000, 2001, "),
        ("ground.mp4@ground", "ground.txt", "x", "--name must be ID=NAME, found 'x'"),
        ("ground.mp4", "ground.txt", "2000=x", "does not end in its platform"),
        ("absent.mp4@ground", "ground.txt", "2000=x", "no such file or folder"),
        ("rtsp://127.0.0.1/x@ground", "ground.txt", "2000=x", "from a video file or a folder of pictures"),
        (
            "ground.mp4@ground",
            "no-ids.txt",
            "2000=x",
            "frame 1: the id must be a whole number from 0, found -1",
        ),
        ("no-ids.txt@ground", "ground.txt", "2000=x", "cannot be read"),
    ],
)
def test_enrol_video_refuses(
    tmp_path: Path, bundle: Path, video: str, boxes: str, name: str, message: str
) -> None:
    (tmp_path / "no-ids.txt").write_text("1,-1,10,10,20,40,1\n")

    def place(name: str) -> str:
        return str((tmp_path if name.startswith("no-ids") else DEMO) / name) if "://" not in name else name

    words = ("--boxes", place(boxes), f"--name={name}", "--bundle", bundle)
    assert message in refused("enrol-video", tmp_path / "g", place(video), *words)


def test_names_notes_merge_split_and_undo(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery = enrolled(tmp_path / "g", people, bundle)
    assert told("name", gallery, "anna", "Anna Ö") == ["anna is Anna Ö"]
    assert told("rename", gallery, "bert", "Bert") == ["bert is Bert"]
    told("note", gallery, "Bert", "left handed")
    told("merge", gallery, "Bert", "cara")
    listed = {row[0]: row for row in rows(told("list", gallery))}
    assert list(listed) == ["Anna Ö", "Bert"]
    assert (listed["Bert"][2], listed["Bert"][-1]) == ("2", "left handed")
    numbers = [row[0] for row in rows(told("show", gallery, "Bert"))[2:4]]
    told("split", gallery, "Bert", "--prototypes", numbers[1], "--into", "Cara")
    assert list(kinds(gallery)) == ["Anna Ö", "Bert", "Cara"]
    assert told("undo", gallery)[0].endswith(", split")
    assert told("undo", gallery)[0].endswith(", merge")
    assert list(kinds(gallery)) == ["Anna Ö", "Bert", "cara"]
    first = next(row for row in rows(told("log", gallery)) if row[4] == "name")
    assert told("undo", gallery, first[0]) == [f"undone: entry {first[0]}, name"]
    assert "anna" in kinds(gallery)
    shown = next(row for row in rows(told("log", gallery)) if row[0] == first[0])
    assert shown[-1].startswith("undone by ")
    assert "cannot be undone or is undone already" in refused("undo", gallery, first[0])
    assert "'nobody' is not in the gallery" in refused("rename", gallery, "nobody", "x")
    assert "cannot be merged with itself" in refused("merge", gallery, "Bert", "Bert")
    assert "write 3,4" in refused("split", gallery, "Bert", "--prototypes", "all", "--into", "x")


def test_an_unknown_becomes_somebody(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery = enrolled(tmp_path / "g", people, bundle)
    with Gallery.open(gallery, None) as opened, opened.database.transaction():
        opened._book.add_identity("unknown-1f", "unknown")
    assert [row[0] for row in rows(told("list", gallery, "--kind", "unknown"))] == ["unknown-1f"]
    told("name", gallery, "unknown-1f", "Dora")
    assert kinds(gallery)["Dora"] == "known"
    assert rows(told("list", gallery, "--kind", "unknown")) == []


def test_kept_crops_are_shown(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery, sheet = enrolled(tmp_path / "g", people, bundle, "--keep-crops"), tmp_path / "anna.png"
    assert told("show", gallery, "anna", "--pictures", sheet)[-1] == f"wrote {sheet}: 1 clips"
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    truth = np.asarray(Image.open(people / "anna/0.png"))
    shown = pixels[52:180, 8:72].reshape(128, 64, 3)  # the first crop, enlarged without smoothing
    at = ((np.arange(128) + 0.5) * 64 / 128).astype(int), ((np.arange(64) + 0.5) * 32 / 64).astype(int)
    np.testing.assert_array_equal(shown, truth[np.ix_(*at)])
    plain = enrolled(tmp_path / "plain", people, bundle)
    assert "no crops were kept" in refused("show", plain, "anna", "--pictures", sheet)


def test_a_new_model_embeds_kept_crops_and_the_old_one_retires(
    tmp_path: Path, people: Path, bundle: Path
) -> None:
    gallery = enrolled(tmp_path / "g", people, bundle, "--keep-crops")
    save_person(tmp_path / "dora", 5, 2)
    told(
        "enrol", gallery, "--bundle", bundle, "--identity", "dora", "--platform", "ground", tmp_path / "dora"
    )
    new = write_tiny_bundle(tmp_path / "new", encode_weight=-1.0)
    edit_manifest(new, embedding_space=OTHER_SPACE)
    search = ("search", gallery, "--bundle", new, "--platform", "ground", "--top", "4")
    assert f"the bundle gives space {OTHER_SPACE}" in refused(*search, people / "bert")
    assert told("add-model", gallery, "--bundle", new) == [
        f"space {OTHER_SPACE}: 3 prototypes embedded again",
        "left behind, no crops were kept: dora",
    ]
    found = rows(told(*search, people / "bert"))
    assert (found[0][1], {row[1] for row in found}) == ("bert", {"anna", "bert", "cara"})
    assert float(found[0][0]) == pytest.approx(1, abs=1e-3)
    assert told("add-model", gallery, "--bundle", new)[0].endswith(": 0 prototypes embedded again")
    assert "there is no terminal to ask on; add --yes" in refused("retire-model", gallery, SPACE[:8])
    assert told("retire-model", gallery, SPACE[:8], "--yes") == [f"erased 4 prototypes of space {SPACE[:8]}"]
    assert "is the only one" in refused("retire-model", gallery, OTHER_SPACE, "--yes")
    assert f"space {OTHER_SPACE}: 3 prototypes of 10 numbers" in told("info", gallery)


def test_calibrate_stores_thresholds_that_searches_decide_by(tmp_path: Path, bundle: Path) -> None:
    root = write_block_world(tmp_path / "blocks", train=0, test=24, frames=2) / "test"
    gallery = tmp_path / "g"
    told("enrol-folder", gallery, root, "--bundle", bundle)
    assert "uncalibrated" in told("info", gallery)
    words = ("calibrate", gallery, root, "--bundle", bundle, "--identities", "8", "--seed", "3")
    too_low = refused(*words, "--fpir", "0.01")
    assert "300 people" in too_low
    assert "uncalibrated" in told("info", gallery)
    done = call(*words, "--fpir", "0.2")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("# test: 24 people, 96 tracklets, 8 enrolled in each of ")
    assert "the gallery has 24 identities and its thresholds were measured with" in done.stderr
    assert told("info", gallery)[-len(lines) :] == lines
    pairs = (re.match(r"aerial +aerial +0-32 px +([01].[0-9]{4}) ", line) for line in lines)
    (threshold,) = [pair[1] for pair in pairs if pair is not None]
    query = next((root / "aerial/1003").iterdir())
    decision = told("search", gallery, "--bundle", bundle, "--platform", "aerial", query)[0]
    assert f", threshold {threshold}, probability " in decision


def test_expected_errors_are_one_line(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery = enrolled(tmp_path / "g", people, bundle)
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    (tmp_path / "folder").mkdir()
    options = ("--bundle", bundle, "--platform", "ground", "--device", "cpu")
    enrol = ("enrol", tmp_path / "new", *options, "--identity", "x")
    cases: dict[str, tuple[str | Path, ...]] = {
        "there is no such file": ("list", tmp_path / "absent"),
        "'persn' is not in the gallery": ("show", gallery, "persn"),
        "absent: the folder does not exist": (
            *("enrol", gallery, "--bundle", tmp_path / "absent", "--identity", "x"),
            *("--platform", "aerial", people / "anna"),
        ),
        "picture.jpg: a crop must be a readable picture": (*enrol, tmp_path / "picture.jpg"),
        "missing.jpg: a crop must be a readable picture": (*enrol, tmp_path / "missing.jpg"),
        "has no pictures": (*enrol, tmp_path / "folder"),
        "must hold one sub-folder a person": ("enrol-folder", tmp_path / "new", people / "anna", *options),
        "must lie below a folder named": ("enrol-folder", tmp_path / "new", people, "--bundle", bundle),
        "a file is searched exactly in memory": ("index", gallery, "--bundle", bundle),
        "variable GALLERY_OF_NOBODY is not set": ("list", "env:GALLERY_OF_NOBODY"),
        "the key file does not fit": ("list", gallery, "--key-file", tmp_path / "key"),
    }
    told("make-key", tmp_path / "key")
    for message, words in cases.items():
        assert message in refused(*words)
        assert call(*words).stdout == ""
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "new").exists()


def test_the_address_may_come_from_the_environment(tmp_path: Path, people: Path, bundle: Path) -> None:
    gallery = enrolled(tmp_path / "g", people, bundle)
    assert told("list", "env:MY_GALLERY", env={"MY_GALLERY": str(gallery)}) == told("list", gallery)
    done = call("list", "postgresql://anna:secret@127.0.0.1:1/none?connect_timeout=1")
    assert done.exit_code == 2
    assert "use env:NAME" in done.stderr
    assert "secret" not in done.output


def test_a_gallery_on_a_server_by_the_same_commands(
    tmp_path: Path, people: Path, bundle: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED", dsn)
    words = ("--bundle", bundle, "--platform", "ground")
    assert told("enrol-folder", "env:SHARED", people, *words)[-1] == "enrolled 3 views of 3 people, skipped 0"
    assert told("enrol-folder", "env:SHARED", people, *words)[-1] == "enrolled 0 views of 0 people, skipped 3"
    local = told("search", enrolled(tmp_path / "g", people, bundle), *words, people / "bert")
    assert told("search", "env:SHARED", *words, people / "bert") == local
    told("backup", "env:SHARED", tmp_path / "backup")
    receipt = tmp_path / "receipt"
    told("forget", "env:SHARED", "anna", "--yes", "--receipt", receipt)
    assert told("verify-receipt", receipt, "--gallery", "env:SHARED")[-1] == "complete"
    assert set(kinds(tmp_path / "backup")) == {"bert", "cara"}


def test_the_index_of_a_server_is_built_and_dropped(
    people: Path, bundle: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED", dsn)
    told("enrol-folder", "env:SHARED", people, "--bundle", bundle, "--platform", "ground")

    def indexes() -> list[str]:
        with Gallery.open(dsn, None) as opened:
            found = opened.database.rows("SELECT indexdef FROM pg_indexes WHERE tablename = 'prototype'")
        return [row[0] for row in found if "hnsw" in row[0]]

    assert told("index", "env:SHARED", "--bundle", bundle) == [f"built the index of space {SPACE}"]
    assert len(indexes()) == 1
    found = told("search", "env:SHARED", "--bundle", bundle, "--platform", "ground", people / "bert")
    assert rows(found)[0][1] == "bert"
    assert told("index", "env:SHARED", "--bundle", bundle, "--drop") == [
        f"dropped the index of space {SPACE}"
    ]
    assert indexes() == []


@pytest.mark.parametrize("kind", [Command, Group])
def test_expected_errors_are_one_line_and_bugs_are_not_dressed_up(kind: type[Command] | type[Group]) -> None:
    def fail() -> None:
        raise GalleryError("first line\nsecond line")

    def crash() -> None:
        raise KeyError("bug")

    shared: dict[str, Any] = {"name": "s3clip-thing"}
    if kind is Group:
        shared["invoke_without_command"] = True
    failed = CliRunner().invoke(kind(callback=fail, **shared), [])
    assert (failed.exit_code, failed.stderr) == (2, "s3clip-thing: error: first line second line\n")
    assert isinstance(CliRunner().invoke(kind(callback=crash, **shared), []).exception, KeyError)


_HELP = """
import sys
from click.testing import CliRunner
from s3clip_runtime.cli.errors import Command, Group
from s3clip_runtime.cli.gallery import main
for command in ([], *([name] for name in main.commands)):
    assert CliRunner().invoke(main, [*command, "--help"]).exit_code == 0
print([name for name in ("numpy", "onnxruntime", "cv2", "PIL", "pydantic", "torch") if name in sys.modules])
"""


def test_help_loads_nothing_heavy_and_answers_in_under_a_second() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELP], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
    seconds = []
    code = "from s3clip_runtime.cli.gallery import main; main()"
    for _ in range(3):  # the first start may have to compile, and neighbours may slow down another
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code, "forget", "--help"], capture_output=True, check=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1


def test_every_command_has_a_line_of_help() -> None:
    wanted = (
        "add-model backup calibrate create enrol enrol-folder enrol-video expire forget index info list log "
        + ("make-key merge name note rename restore retire-model search show split undo verify-receipt")
    )
    assert sorted(main.commands) == wanted.split()
    assert all(command.help for command in main.commands.values())
