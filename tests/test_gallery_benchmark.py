"""The gallery's benchmark on small galleries: its rivals, its ratios and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.gallery.__main__ import main
from benchmarks.gallery.page import page_of
from benchmarks.gallery.records import GalleryReport
from benchmarks.gallery.rivals import (
    DIM,
    EACH,
    OURS,
    PRODUCT,
    RIVALS,
    ROWS,
    RivalApart,
    made,
    made_queries,
    people_of,
)

pytest.importorskip("faiss")
pytest.importorskip("usearch")


def test_made_vectors_are_the_same_everywhere_and_have_length_one() -> None:
    once, again = (np.concatenate(list(made(4200))) for _ in range(2))
    assert once.shape == (4200, DIM)
    assert once.dtype == np.float16
    assert once.tobytes() == again.tobytes()
    np.testing.assert_allclose(np.linalg.norm(once.astype(np.float32), axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in RIVALS if name != PRODUCT])
def test_every_rival_finds_whom_the_plain_product_finds(name: str) -> None:
    vectors = np.concatenate(list(made(300))).astype(np.float32)
    queries = made_queries(300, 3)
    wanted = people_of(np.argsort(-(queries @ vectors.T), axis=1)[:, :ROWS])
    rival = RIVALS[name](300, 1)
    rival.search(queries)
    assert rival.people() == wanted
    assert all(len(set(people)) == 10 and max(people) < 300 // EACH for people in wanted)


def test_a_rival_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        RivalApart("nobody", 100, 1)


@pytest.mark.slow
def test_the_report_and_its_page(tmp_path: Path) -> None:
    out = tmp_path / "gallery.json"
    words = [
        "--sizes",
        "200",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--server-sizes",
        "500,1000",
        "--queries",
        "20",
    ]
    done = CliRunner().invoke(main, [*words, "-o", str(out)])
    assert done.exit_code == 0, done.output
    report = GalleryReport.model_validate(json.loads(out.read_text()))
    assert report.in_memory is not None
    rows = {(row.contender, row.batch): row for row in report.in_memory.rows}
    assert set(rows) == {(name, batch) for name in RIVALS for batch in (1, 32)}
    assert rows[PRODUCT, 1].against_product.median == 1
    assert rows[PRODUCT, 1].recall is None
    assert rows[OURS, 32].recall == 1
    assert report.on_server is not None
    assert [row.prototypes for row in report.on_server.sizes] == [500, 1000]
    assert all(row.recall >= 0.95 for row in report.on_server.sizes)
    page = out.with_suffix(".md").read_text()
    assert page == page_of(report)
    assert OURS in page
    again = CliRunner().invoke(main, [*words, "--only", "in-memory", "-o", str(out)])
    assert again.exit_code == 0, again.output
    assert GalleryReport.model_validate(json.loads(out.read_text())).on_server == report.on_server
