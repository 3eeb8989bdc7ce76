"""s3clip-gallery: forgetting with receipts and pictures, limits of storage, backups and keys."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gallery_world import call, refused, rows, save_person, told
from tiny_bundle import write_tiny_bundle

from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.records import Kind, Sighting

DAY_S = 86_400


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def gallery(tmp_path: Path, bundle: Path) -> Path:
    """Anna and Bert, each seen by a camera."""
    for seed, (name, camera) in enumerate((("anna", "gate"), ("bert", "roof"))):
        folder = save_person(tmp_path / name, seed, 2)
        words = ("--bundle", bundle, "--platform", "ground", "--identity", name, "--camera", camera)
        told("enrol", tmp_path / "g", *words, "--keep-crops", folder)
    return tmp_path / "g"


def names(gallery: Path) -> list[str]:
    return [row[0] for row in rows(told("list", gallery))]


def forget(gallery: Path, *words: str | Path) -> dict[str, Any]:
    """The receipt of an erasure that works."""
    file = gallery.with_name(f"receipt-{time.monotonic_ns()}.json")
    assert told("forget", gallery, *words, "--yes", "--receipt", file)[-1] == f"wrote {file}"
    receipt: dict[str, object] = json.loads(file.read_text())["receipt"]
    return receipt


def test_the_receipt_is_signed_and_others_can_check_it(tmp_path: Path, gallery: Path, bundle: Path) -> None:
    receipt = tmp_path / "receipt.json"
    told("forget", gallery, "anna", "--yes", "--receipt", receipt)
    key = next(line for line in told("info", gallery) if line.startswith("key of receipts: ")).split()[-1]
    plain = call("verify-receipt", receipt)
    assert plain.exit_code == 0
    lines = plain.stdout.splitlines()
    assert lines[0].startswith("the signature holds: identity 'anna', by ")
    assert lines[1:] == ["erased: 1 clip, 1 identity, 1 log, 1 prototype", "complete"]
    assert "signed by the key that the file itself names" in plain.stderr
    for words in (("--public-key", key), ("--gallery", gallery)):
        checked = call("verify-receipt", receipt, *words)
        assert (checked.stdout, checked.stderr) == (plain.stdout, "")
    assert "must be signed by the key" in refused("verify-receipt", receipt, "--public-key", "00" * 32)
    told("enrol", tmp_path / "other", "--bundle", bundle, "--platform", "ground", "--identity", "x",
         tmp_path / "anna")  # fmt: skip
    assert "must be signed by" in refused("verify-receipt", receipt, "--gallery", tmp_path / "other")
    receipt.write_text(receipt.read_text().replace("'anna'", "'bert'"))
    assert "one of them was altered" in refused("verify-receipt", receipt, "--gallery", gallery)


def test_the_receipt_has_a_name_of_its_own_and_overwrites_nothing(
    tmp_path: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").touch()
    words = ("forget", gallery, "anna", "--yes")
    assert "must be a new file" in refused(*words, "--receipt", tmp_path / "there")
    assert "must be a new file" in refused(*words, "--receipt", tmp_path / "no folder/receipt")
    assert names(gallery) == ["anna", "bert"]
    monkeypatch.chdir(tmp_path)
    wrote = told(*words)[-1].removeprefix("wrote ")
    assert wrote == f"forget-{json.loads(Path(wrote).read_text())['receipt']['receipt_id']}.json"


def answered(words: Sequence[str | Path], answer: bytes) -> tuple[int, bytes]:
    """Exit code and output of the command on a terminal on which somebody answers."""
    code = "from s3clip_runtime.cli.gallery import main; main()"
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdin=slave, stdout=subprocess.PIPE, stderr=slave
    ) as process:
        os.close(slave)
        os.write(master, answer)
        out = process.communicate(timeout=60)[0]
    os.close(master)
    return process.returncode, out


def test_it_says_what_will_go_and_asks(
    tmp_path: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("forget", gallery, "anna")
    assert done.exit_code == 2
    told_first, error = done.stderr.splitlines()
    assert told_first == "identity 'anna': 1 prototype rows, 1 clip rows of 1 people, 0 pictures"
    assert "there is no terminal to ask on; add --yes" in error
    monkeypatch.chdir(tmp_path)
    assert answered(["forget", gallery, "anna"], b"n\n") == (1, b"")
    assert names(gallery) == ["anna", "bert"]
    code, out = answered(["forget", gallery, "anna"], b"y\n")
    assert (code, out.splitlines()[0][:22]) == (0, b"forgot identity 'anna'")
    assert names(gallery) == ["bert"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "forget needs a NAME, or --camera"),
        (("anna", "--camera", "gate"), "forget needs a NAME, or --camera"),
        (("--older-than-days", "3", "--since", "2026-01-01"), "forget needs a NAME, or --camera"),
        (("--since", "yesterday"), "--since must be a time, found 'yesterday'; write 2026-03-01"),
        (("nobody",), "'nobody' is not in the gallery"),
    ],
)
def test_forget_refuses(gallery: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("forget", gallery, *words, "--yes")
    assert names(gallery) == ["anna", "bert"]


def test_forget_by_camera_and_by_time(gallery: Path) -> None:
    receipt = forget(gallery, "--camera", "gate", "--until", "2026-01-01T12:00")
    assert (receipt["what"], receipt["erased"]) == ("camera", {})
    receipt = forget(gallery, "--camera", "gate", "--since", "2026-01-01")
    assert receipt["asked"] == "camera gate, since 2026-01-01"
    assert receipt["erased"] == {"prototype": 1, "clip": 1, "identity": 1, "log": 1}
    assert names(gallery) == ["bert"]
    assert forget(gallery, "--since", "2026-01-01T00:00:00+02:00")["what"] == "time"
    assert names(gallery) == []


def test_forget_by_age_leaves_what_was_enrolled(gallery: Path) -> None:
    with Gallery.open(gallery, None) as opened, opened.database.transaction():
        book = opened._book
        anna = book.named("anna")
        assert anna is not None
        for days in (1, 40):
            told_s = time.time() - days * DAY_S
            book.add_sighting(
                Sighting(anna.id, "gate", "ground", f"gate-{days}-0", "r", "gate-1", "arrival", told_s - 5,
                         told_s, told_s, 0.9)
            )  # fmt: skip
    assert [row[5] for row in rows(told("list", gallery))] == ["2", "0"]
    receipt = forget(gallery, "--older-than-days", "30")
    assert (receipt["what"], receipt["erased"]) == ("retention", {"sighting": 1})
    assert [row[5] for row in rows(told("list", gallery))] == ["1", "0"]


def test_expire_erases_unknown_people_whom_nobody_saw(gallery: Path) -> None:
    with Gallery.open(gallery, None) as opened, opened.database.transaction():
        people: list[tuple[str, Kind, int]] = [
            ("u1", "unknown", 40),
            ("u2", "unknown", 5),
            ("c1", "candidate", 5),
        ]
        for name, kind, days in people:
            made = opened._book.add_identity(name, kind)
            added_s = time.time() - days * DAY_S
            opened.database.run("UPDATE identity SET added_s = ? WHERE id = ?", added_s, made.id)
    assert "expire needs a limit" in refused("expire", gallery)
    assert told("expire", gallery, "--unknown-days", "30") == ["expired: 1 people are gone"]
    assert names(gallery) == ["anna", "bert", "c1", "u2"]
    told("expire", gallery, "--candidate-days", "2", "--keep-days", "1")
    assert names(gallery) == ["anna", "bert", "u2"]


def test_pictures_that_a_run_wrote_go_too(tmp_path: Path, gallery: Path) -> None:
    told("rename", gallery, "bert", "Bert B.")
    told("rename", gallery, "anna", "Anna")
    told("merge", gallery, "Bert B.", "Anna")
    told("name", gallery, "Bert B.", "Zoë")
    folder = tmp_path / "crops"
    folder.mkdir()
    theirs = ["_gate_anna", "_gate_Anna", "_roof_bert", "_roof_Bert-B.", "_gate_Zo-"]
    others = ["_gate_ann", "_gate_unknown", "_anna_cara", "_bert_unknown-1f"]
    for number, end in enumerate(theirs + others):
        (folder / f"20261123T032600Z-1a2b3c-{number:06d}{end}.jpg").write_bytes(b"x")
    (folder / "20261123T032600Z-1a2b3c-000099_gate_anna.jpg.part").write_bytes(b"x")
    for name in ("anna.jpg", "holiday_gate_anna.jpg"):
        (folder / name).write_bytes(b"x")
    receipt = forget(gallery, "Zoë", "--crops", folder)
    assert receipt["erased"]["picture files"] == 6
    left = sorted(path.name.partition("-1a2b3c-")[2][6:].removesuffix(".jpg") for path in folder.iterdir())
    assert left == sorted([*others, "", ""])  # two that no run wrote
    assert "folder" in refused("forget", gallery, "--camera", "gate", "--crops", tmp_path / "none", "--yes")


def test_pictures_of_who_was_merged_by_mistake_stay(tmp_path: Path, gallery: Path) -> None:
    told("merge", gallery, "bert", "anna")
    told("undo", gallery)
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, name in enumerate(("anna", "bert")):
        (folder / f"20261123T032600Z-1a2b3c-{number:06d}_gate_{name}.jpg").write_bytes(b"x")
    forget(gallery, "bert", "--crops", folder)
    assert [path.stem.rpartition("_")[2] for path in folder.iterdir()] == ["anna"]


def test_pictures_of_a_camera_and_a_time_go_too(tmp_path: Path, gallery: Path) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, (end, days) in enumerate((("gate_anna", 9), ("gate_unknown", 1), ("roof_anna", 1))):
        path = folder / f"20261123T032600Z-1a2b3c-{number:06d}_{end}.jpg"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - days * DAY_S,) * 2)
    since = time.strftime("%Y-%m-%dT%H:%M", time.localtime(time.time() - 2 * DAY_S))
    forget(gallery, "--camera", "gate", "--since", since, "--crops", folder)
    assert sorted(path.stem.partition("_")[2] for path in folder.iterdir()) == ["gate_anna", "roof_anna"]


def test_names_that_files_cannot_tell_apart_are_said(tmp_path: Path, gallery: Path) -> None:
    told("rename", gallery, "anna", "李")
    told("rename", gallery, "bert", "王")
    folder = tmp_path / "crops"
    folder.mkdir()
    (folder / "20261123T032600Z-1a2b3c-000001_gate_-.jpg").write_bytes(b"x")
    done = call("forget", gallery, "李", "--crops", folder)
    assert "files name them like 王: pictures of these may be among them" in done.stderr
    assert len(list(folder.iterdir())) == 1  # nobody said yes


def test_a_backup_that_is_not_reached_makes_the_receipt_incomplete(tmp_path: Path, gallery: Path) -> None:
    near, moved = tmp_path / "near.sqlite", tmp_path / "moved.sqlite"
    assert told("backup", gallery, near) == [f"wrote {near}"]
    told("backup", gallery, moved)
    moved.rename(tmp_path / "elsewhere")
    receipt = tmp_path / "receipt.json"
    line = refused("forget", gallery, "anna", "--yes", "--receipt", receipt)
    assert line.endswith(f"is not complete: backup {moved}: the file is not there; was it moved?")
    assert names(gallery) == ["bert"]
    assert names(near) == ["bert"]
    assert told("verify-receipt", receipt)[-1].startswith("not complete: backup ")


def test_backup_and_restore(tmp_path: Path, gallery: Path) -> None:
    backup = tmp_path / "backup"
    told("backup", gallery, backup)
    assert "there is a file already" in refused("backup", gallery, backup)
    told("rename", gallery, "bert", "Bert")
    with Gallery.open(gallery, None) as opened:
        anna = opened.show("anna")[0].id
    copy = tmp_path / "copy"
    copy.write_bytes(backup.read_bytes())  # whom forget cannot reach
    forget(gallery, "anna")
    assert "add --yes" in refused("restore", gallery, copy)
    assert names(gallery) == ["Bert"]
    assert told("restore", gallery, copy, "--yes") == [
        "restored 1 people",
        f"{anna} was forgotten since the backup, and stays forgotten",
    ]
    assert names(gallery) == ["bert"]
    assert told("restore", tmp_path / "new", copy) == ["restored 2 people"]
    assert "there is no such file" in refused("restore", gallery, tmp_path / "none", "--yes")
    assert "is no gallery of s3clip" in refused("restore", gallery, tmp_path / "anna/0.png", "--yes")


def test_an_encrypted_gallery_wants_its_key(tmp_path: Path, gallery: Path, bundle: Path) -> None:
    key, sealed = tmp_path / "key", tmp_path / "sealed"
    assert told("make-key", key)[0].startswith(f"wrote {key}; keep a copy elsewhere")
    assert "there is one already" in refused("make-key", key)
    words = ("--bundle", bundle, "--platform", "ground", "--identity", "anna", tmp_path / "anna")
    told("enrol", sealed, "--key-file", key, *words)
    assert "the key file does not fit: give the key file" in refused("list", sealed)
    by_env = {"S3CLIP_GALLERY_KEY_FILE": str(key)}
    assert "vectors and crops are encrypted" in told("info", sealed, env=by_env)
    receipt = tmp_path / "receipt"
    told("forget", sealed, "anna", "--yes", "--key-file", key, "--receipt", receipt)
    told("verify-receipt", receipt, "--gallery", sealed, env=by_env)
