"""The gallery against brute force, crashes, foreign files and a search for forgotten bytes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from tiny_bundle import SPACE, write_tiny_bundle

from s3clip_runtime.cli.errors import Command, Group
from s3clip_runtime.cli.gallery import main
from s3clip_runtime.errors import ConfigError, GalleryError
from s3clip_runtime.gallery.records import Match
from s3clip_runtime.gallery.store import MAX_PROTOTYPES, Gallery, decide

DIM = 32
OTHER_SPACE = "cd" * 32
Vectors = NDArray[np.float32]


def units(rng: np.random.Generator, count: int, dim: int = DIM) -> Vectors:
    raw = rng.normal(size=(count, dim))
    vectors: Vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def opened(path: Path | None, space: str = SPACE, dim: int = DIM) -> Gallery:
    return Gallery.open(path, embedding_space=space, dim=dim)


def filled(path: Path | None, people: int = 3) -> tuple[Gallery, dict[str, Vectors]]:
    rng = np.random.default_rng(1)
    truth = {f"person {i}": units(rng, i + 1) for i in range(people)}
    gallery = opened(path)
    for name, vectors in truth.items():
        gallery.enrol(name, vectors, platform="ground", source="camera 1")
    return gallery, truth


def brute_force(truth: dict[str, Vectors], query: Vectors, k: int) -> list[tuple[str, float]]:
    scores = {
        n: max(float(v.astype(np.float64) @ query.astype(np.float64)) for v in vs) for n, vs in truth.items()
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_search_equals_brute_force(k: int) -> None:
    rng = np.random.default_rng(0)
    truth = {f"p{i}": units(rng, int(rng.integers(1, 6))) for i in range(150)}
    queries = units(rng, 17)
    with opened(None) as gallery:
        for name, vectors in truth.items():
            gallery.enrol(name, vectors, platform="aerial", source="test")
        found = gallery.search(queries, k)
    for query, matches in zip(queries, found, strict=True):
        wanted = brute_force(truth, query, k)
        assert [m.identity for m in matches] == [name for name, _ in wanted]
        np.testing.assert_allclose([m.score for m in matches], [s for _, s in wanted], atol=1e-12)


def test_equal_scores_are_ordered_by_name_and_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(3)
    twin, others = units(rng, 1), units(rng, 40)
    with opened(None) as gallery:
        for i, vector in enumerate(others):
            gallery.enrol(f"other {i}", vector[None], platform=None, source="test")
            if i % 5 == 0:
                gallery.enrol(f"twin {9 - i // 5}", twin, platform=None, source="test")
        queries = np.concatenate([units(rng, 6), twin])
        together = gallery.search(queries, 40)
        assert [m.identity for m in together[6]][:8] == [f"twin {i}" for i in range(2, 10)]
        assert len({m.score for m in together[6][:8]}) == 1
        assert [gallery.search(query[None], 40)[0] for query in queries] == together


def test_ties_across_the_cut_are_cut_by_name() -> None:
    """A matrix product gives the rows of one and the same vector scores that differ in the last digit."""
    rng = np.random.default_rng(0)
    twin = units(rng, 1)
    with opened(None) as gallery:
        for i in rng.permutation(101):
            gallery.enrol(f"twin {i:03}", twin, platform=None, source="test")
        for queries in (units(rng, 1), units(rng, 7), units(rng, 20)):
            for matches in gallery.search(queries, 3):
                assert [m.identity for m in matches] == ["twin 000", "twin 001", "twin 002"]


def test_search_stays_exact_while_people_come_change_and_go() -> None:
    rng = np.random.default_rng(11)
    truth: dict[str, Vectors] = {}
    with opened(None) as gallery:
        for _ in range(300):
            name = f"p{rng.integers(25)}"
            if name in truth and rng.random() < 0.4:
                assert gallery.forget(name) == len(truth.pop(name))
            elif len(truth.get(name, ())) < 20:
                new = units(rng, int(rng.integers(1, 9)))
                gallery.enrol(name, new, platform=None, source="test")
                truth[name] = np.concatenate([truth.get(name, new[:0]), new])
            query = units(rng, 1)
            found = gallery.search(query, 30)[0]
            wanted = brute_force(truth, query[0], 30)
            assert [m.identity for m in found] == [name for name, _ in wanted]
            np.testing.assert_allclose([m.score for m in found], [s for _, s in wanted], atol=1e-12)


def test_empty_gallery_and_no_queries() -> None:
    with opened(None) as gallery:
        assert gallery.search(units(np.random.default_rng(0), 2)) == [[], []]
        assert gallery.list() == []
        gallery.enrol("a", units(np.random.default_rng(0), 1), platform=None, source="s")
        assert gallery.search(np.zeros((0, DIM), np.float32)) == []


def test_what_is_enrolled_survives_reopening(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g")
    query = units(np.random.default_rng(5), 4)
    before = gallery.search(query)
    gallery.close()
    gallery.close()
    with opened(tmp_path / "g") as again:
        assert again.search(query) == before
        summaries = again.list()
    assert [(s.identity, s.prototypes, s.platforms, s.sources) for s in summaries] == [
        (name, len(vectors), ("ground",), ("camera 1",)) for name, vectors in truth.items()
    ]
    assert abs(summaries[0].enrolled_s - time.time()) < 60
    info = Gallery.describe(tmp_path / "g")
    assert (info.embedding_space, info.dim, info.identities, info.prototypes) == (SPACE, DIM, 3, 6)
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


def test_prototypes_are_bounded_and_rare_views_stay(tmp_path: Path) -> None:
    """100 near-equal ground views do not push out the one aerial view that looks different."""
    rng = np.random.default_rng(4)
    aerial, ground = units(rng, 2)
    noisy = ground + 0.02 * rng.normal(size=(100, DIM))
    views = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    with opened(tmp_path / "g") as gallery:
        gallery.enrol("a", aerial[None], platform="aerial", source="drone")
        for start in range(0, 100, 10):
            gallery.enrol("a", views[start : start + 10], platform="ground", source="gate")
        assert gallery.search(aerial[None])[0][0].score == pytest.approx(1, abs=1e-6)
        assert gallery.search(views[-1:])[0][0].score == pytest.approx(1, abs=1e-6)
        queries = units(rng, 5)
        kept = gallery.search(queries)
        (summary,) = gallery.list()
    assert (summary.prototypes, summary.platforms) == (MAX_PROTOTYPES, ("aerial", "ground"))
    with opened(tmp_path / "g") as again:  # memory and file keep the same rows
        assert again.search(queries) == kept


_ENROL_FOR_EVER = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
from s3clip_runtime.gallery.store import Gallery
gallery = Gallery.open(Path(sys.argv[1]), embedding_space=sys.argv[2], dim=32)
for i in range(100000):
    vector = np.zeros((1, 32), np.float32)
    vector[0, i % 32] = 1
    gallery.enrol(f"person {i}", vector, platform="ground", source="loop")
    print(i, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
def test_kill_9_keeps_every_acknowledged_enrolment(tmp_path: Path, acknowledged: int) -> None:
    command = [sys.executable, "-c", _ENROL_FOR_EVER, str(tmp_path / "g"), SPACE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(acknowledged):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        said = acknowledged + len(process.stdout.readlines())
    with opened(tmp_path / "g") as gallery:
        names = {s.identity for s in gallery.list()}
        assert names >= {f"person {i}" for i in range(said)}
        assert len(names) - said in (0, 1)  # one may be written but not yet acknowledged
        gallery.enrol("later", units(np.random.default_rng(0), 1), platform=None, source="s")


def test_forget_leaves_no_bytes(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g", people=20)
    gallery.enrol("Erika Mustermann", truth["person 0"], platform=None, source="passport scan")
    traces = [vector.tobytes()[i : i + 8] for vector in truth["person 7"] for i in range(0, 4 * DIM, 8)]
    before = (tmp_path / "g").read_bytes()
    assert all(trace in before for trace in traces)
    assert gallery.forget("person 7") == 8
    assert gallery.forget("Erika Mustermann") == 1
    after = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert not any(trace in after for trace in [*traces, b"person 7", b"Mustermann", b"passport"])
    assert truth["person 6"][0].tobytes() in after
    assert "person 7" not in {m.identity for m in gallery.search(truth["person 7"], 100)[0]}
    gallery.close()


def test_rows_pushed_out_leave_no_bytes(tmp_path: Path) -> None:
    """No compacting here: it is the overwriting of erased rows that is seen."""
    rng = np.random.default_rng(2)
    vectors = units(rng, 3 * MAX_PROTOTYPES)
    with opened(tmp_path / "g") as gallery:
        gallery.enrol("a", vectors[:MAX_PROTOTYPES], platform=None, source="s")
        first = (tmp_path / "g").read_bytes()
        gallery.enrol("a", vectors[MAX_PROTOTYPES:], platform=None, source="s")
        kept = [bool(gallery.search(v[None])[0][0].score > 0.999) for v in vectors]
    content = (tmp_path / "g").read_bytes()
    assert all(vector.tobytes() in first for vector in vectors[:MAX_PROTOTYPES])
    assert [vector.tobytes() in content for vector in vectors] == kept
    assert sum(kept) == MAX_PROTOTYPES
    pieces = [v.tobytes()[8:16] for v, stays in zip(vectors, kept, strict=True) if not stays]
    assert not any(piece in content for piece in pieces)


def test_forget_gives_the_space_back(tmp_path: Path) -> None:
    gallery, _ = filled(tmp_path / "g")
    small = (tmp_path / "g").stat().st_size
    gallery.enrol("x", units(np.random.default_rng(0), MAX_PROTOTYPES), platform=None, source="s")
    assert (tmp_path / "g").stat().st_size > small
    gallery.forget("x")
    assert (tmp_path / "g").stat().st_size == small
    gallery.close()


def test_an_open_gallery_sees_what_another_process_does(tmp_path: Path) -> None:
    running, truth = filled(tmp_path / "g")
    with opened(tmp_path / "g") as command:
        assert command.forget("person 1") == 2
        command.enrol("person 9", truth["person 1"], platform=None, source="s")
    best = running.search(truth["person 1"], 1)
    assert [m[0].identity for m in best] == ["person 9", "person 9"]
    running.close()


def test_threads_may_share_a_gallery(tmp_path: Path) -> None:
    gallery = opened(tmp_path / "g")
    vectors = units(np.random.default_rng(0), 24)
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for i in range(worker, 24, 3):
                gallery.enrol(f"p{i:02}", vectors[i][None], platform=None, source="s")
                assert gallery.search(vectors[i][None], 1)[0][0].identity == f"p{i:02}"
        except BaseException as error:  # handed to the main thread, which fails
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert [s.identity for s in gallery.list()] == [f"p{i:02}" for i in range(24)]
    gallery.close()


def test_other_embedding_space_or_dim_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "g")[0].close()
    before = (tmp_path / "g").read_bytes()
    with pytest.raises(GalleryError, match=f"(?s){SPACE}.*{OTHER_SPACE}.*enrol"):
        opened(tmp_path / "g", space=OTHER_SPACE)
    with pytest.raises(GalleryError, match=r"with 32 numbers.*with 64"):
        opened(tmp_path / "g", dim=64)
    assert (tmp_path / "g").read_bytes() == before


def test_foreign_files_are_refused_and_untouched(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "browser.db")
    database.execute("CREATE TABLE history (url TEXT)")
    database.commit()
    database.close()
    (tmp_path / "text").write_text("not a database, but longer than a header " * 10)
    (tmp_path / "short").write_text("x")
    for name in ("browser.db", "text", "short"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(GalleryError, match=f"{name}: the file is no gallery of s3clip"):
            opened(tmp_path / name)
        with pytest.raises(GalleryError, match="no gallery of s3clip"):
            Gallery.describe(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(GalleryError):
        opened(tmp_path)
    with pytest.raises(GalleryError, match="check the path"):
        opened(tmp_path / "absent" / "g")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g", people=30)
    gallery.close()
    good = (tmp_path / "g").read_bytes()
    vector = good.index(truth["person 9"][0].tobytes())
    huge = good[: vector + 3] + b"\x7f" + good[vector + 4 :]
    for damaged in (good[: len(good) // 2], good[:4096] + bytes(4096) + good[8192:], huge):
        (tmp_path / "g").write_bytes(damaged)
        with pytest.raises(GalleryError, match="damaged"):
            opened(tmp_path / "g")


def test_other_schema_version_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "g")[0].close()
    database = sqlite3.connect(tmp_path / "g")
    database.execute("UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    database.commit()
    database.close()
    with pytest.raises(GalleryError, match="schema_version must be 1, found 2"):
        opened(tmp_path / "g")


def test_an_empty_file_becomes_a_gallery(tmp_path: Path) -> None:
    (tmp_path / "g").touch()
    filled(tmp_path / "g")[0].close()
    assert Gallery.describe(tmp_path / "g").identities == 3


def test_a_writer_that_does_not_finish_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3clip_runtime.gallery.journal._BUSY_S", 0.1)
    gallery, truth = filled(tmp_path / "g")
    other = sqlite3.connect(tmp_path / "g", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(GalleryError, match="another process has been writing"):
        gallery.enrol("x", truth["person 0"], platform=None, source="s")
    other.execute("ROLLBACK")
    gallery.enrol("x", truth["person 0"], platform=None, source="s")
    other.close()
    gallery.close()


def test_bad_input_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    gallery, truth = filled(tmp_path / "g")
    good = truth["person 2"]
    nan = good.copy()
    nan[1, 3] = np.nan
    for bad, message in (
        (nan, "not finite"),
        (good * 1.1, "length 1, found 1.1"),
        (good * 0, "length 1, found 0"),
        (good[:, :-1], r"must be \(n, 32\), found \(3, 31\)"),
        (good[0], r"must be \(n, 32\), found \(32,\)"),
    ):
        with pytest.raises(GalleryError, match=message):
            gallery.enrol("x", bad, platform=None, source="s")
        with pytest.raises(GalleryError, match=message):
            gallery.search(bad)
    with pytest.raises(GalleryError, match="no embeddings"):
        gallery.enrol("x", good[:0], platform=None, source="s")
    for name in ("", " ", " x", "a\nb", "\ud800"):
        with pytest.raises(GalleryError, match="printable name"):
            gallery.enrol(name, good, platform=None, source="s")
    with pytest.raises(ConfigError, match="platform 'space' is unknown"):
        gallery.enrol("x", good, platform="space", source="s")
    with pytest.raises(GalleryError, match="k must be at least 1"):
        gallery.search(good, 0)
    with pytest.raises(GalleryError, match="did you mean person 2"):
        gallery.forget("persn 2")
    assert [s.identity for s in gallery.list()] == list(truth)
    gallery.close()


def test_decide() -> None:
    matches = [Match("a", 0.7), Match("b", 0.6)]
    assert decide(matches, 0.7).identity == "a"
    assert decide(matches, 0.71).identity is None
    assert (decide(matches, 0.9).score, decide(matches, 0.9).runner_up) == (0.7, Match("b", 0.6))
    assert decide(matches[:1], 0.5).runner_up is None
    assert (decide([], -1).identity, decide([], -1).score) == (None, -1.0)
    for threshold in (1.5, float("nan")):
        with pytest.raises(GalleryError, match="threshold"):
            decide(matches, threshold)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bundle(tmp_path_factory.mktemp("bundle")))


def save_person(folder: Path, colour: tuple[int, int, int], count: int) -> None:
    """Noisy pictures of one colour; the tiny bundle's embedding follows the brightness along rows."""
    folder.mkdir()
    rng = np.random.default_rng(sum(colour))
    ramp = np.linspace(colour[0] / 255, colour[1] / 255, 60)[:, None, None]
    for i in range(count):
        pixels = rng.integers(colour[2] // 2, colour[2] + 1, (60, 30, 3)) * ramp
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def test_commands_enrol_list_search_and_forget(tmp_path: Path, bundle: str) -> None:
    save_person(tmp_path / "anna", (255, 20, 250), 3)
    save_person(tmp_path / "bert", (10, 250, 60), 9)
    gallery, run = str(tmp_path / "g"), CliRunner()
    options = ["--bundle", bundle, "--platform", "ground", "--device", "cpu"]
    for name in ("anna", "bert"):
        done = run.invoke(main, ["enrol", gallery, *options, "--identity", name, str(tmp_path / name)])
        assert (done.exit_code, done.stdout) == (0, f"enrolled {name}\n")
        assert done.stderr == "device cpu: as asked; onnx-fp32 is the first choice on cpu\n"
    listed = run.invoke(main, ["list", gallery]).stdout.splitlines()
    assert listed[0].startswith("# 2 identities, 2 prototypes, 10 numbers, space abababab")
    assert [line.split("\t")[:3] for line in listed[1:]] == [["anna", "1", "ground"], ["bert", "1", "ground"]]
    files = [str(file) for file in sorted((tmp_path / "bert").iterdir())]
    found = run.invoke(main, ["search", gallery, *options, *files]).stdout.splitlines()
    assert [line.split("\t")[1] for line in found] == ["bert", "anna"]
    assert float(found[0].split("\t")[0]) == pytest.approx(1, abs=1e-4)
    assert run.invoke(main, ["forget", gallery, "anna"]).stdout == "forgot anna: 1 prototypes erased\n"
    assert "anna" not in run.invoke(main, ["list", gallery]).stdout


def test_commands_fail_with_one_line_and_exit_2(tmp_path: Path, bundle: str) -> None:
    filled(tmp_path / "g")[0].close()
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    (tmp_path / "folder").mkdir()
    options = ["--bundle", bundle, "--platform", "ground", "--device", "cpu"]
    save_person(tmp_path / "anna", (255, 20, 250), 1)
    enrol = ["enrol", str(tmp_path / "new"), *options, "--identity", "x"]
    cases = {
        "there is no such file": ["list", str(tmp_path / "absent")],
        "did you mean person 1": ["forget", str(tmp_path / "g"), "persn 1"],
        "absent: the folder does not exist": [
            *("enrol", str(tmp_path / "g"), "--bundle", str(tmp_path / "absent"), "--identity", "x"),
            *("--platform", "aerial", str(tmp_path / "anna")),
        ],
        "picture.jpg cannot be read": [*enrol, str(tmp_path / "picture.jpg")],
        "missing.jpg cannot be read": [*enrol, str(tmp_path / "missing.jpg")],
        "has no pictures": [*enrol, str(tmp_path / "folder")],
        "with 32 numbers": ["search", str(tmp_path / "g"), *options, str(tmp_path / "anna")],
    }
    for message, arguments in cases.items():
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if not line.startswith("device ")]
        assert len(lines) == 1
        assert lines[0].startswith("s3clip-gallery: error: ")
        assert message in lines[0]
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "new").exists()


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
for command in ([], ["list"], ["enrol"], ["search"], ["forget"]):
    assert CliRunner().invoke(main, [*command, "--help"]).exit_code == 0
print([name for name in ("numpy", "onnxruntime", "cv2", "PIL", "pydantic", "torch") if name in sys.modules])
"""


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELP], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
