"""The gallery's benchmark on small galleries: its rivals, its ratios and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.gallery import GalleryReport, main, page_of
from benchmarks.gallery_rivals import (
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
    out, page = tmp_path / "gallery.json", tmp_path / "gallery.md"
    words = ["--sizes", "200", "--rounds", "2", "--threads", "1", "-o", str(out), "--page", str(page)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    report = GalleryReport.model_validate(json.loads(out.read_text()))
    rows = {(row.contender, row.batch): row for row in report.in_memory.rows}
    assert set(rows) == {(name, batch) for name in RIVALS for batch in (1, 32)}
    assert rows[PRODUCT, 1].against_product.median == 1
    assert rows[PRODUCT, 1].recall is None
    assert rows[OURS, 32].recall == 1
    assert page.read_text() == page_of(report)
    assert OURS in page.read_text()
