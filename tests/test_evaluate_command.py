"""`s3clip-train evaluate` and `compare` on a tiny run, against figures by hand from its embeddings."""

from __future__ import annotations

import json
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from test_evaluate import embed_clip
from tiny_run import tiny_tree
from worlds import write_block_world

from s3clip.checkpoint import read_run
from s3clip.cli import main
from s3clip.config import parse_config
from s3clip.datasets import Protocol
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.evaluation.compare import Comparison, compare, comparison_table, read_evaluation
from s3clip.evaluation.page import render_page
from s3clip.train import train
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.clips import spread_indices
from s3clip_runtime.inference.ranking import paired_bootstrap, sign_flip_p_value

pytestmark = pytest.mark.slow
PAIR = "aerial/aerial1:ground/ground0"
NAMES = ["aerial_to_ground", "ground_to_aerial", "aerial_to_aerial", PAIR]


@pytest.fixture(scope="module")
def run_folder(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, evaluated with all options but re-ranking."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(parse_config(tiny_tree(tiny_world), "test"), folder, threading.Event())
    done = call("evaluate", str(folder), "--csv", "--pair", PAIR)
    assert done.exit_code == 0, done.output
    assert f"{PAIR} " in done.stdout
    return folder


@pytest.fixture(scope="module")
def report(run_folder: Path) -> dict[str, Any]:
    text = (run_folder / "evaluation" / "evaluation.json").read_text("utf-8")
    return cast(dict[str, Any], json.loads(text))


def call(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def by_hand(protocol: Protocol, vectors: dict[str, NDArray[np.float32]]) -> list[tuple[int, float, float]]:
    """First hit rank, AP and height of every query, from one embedding after the other."""
    rows = []
    for query in protocol.query:
        entries = [
            (-float(vectors[query.name] @ vectors[entry.name]), number, entry.identity)
            for number, entry in enumerate(protocol.gallery)
            if (entry.identity, entry.camera) != (query.identity, query.camera)
        ]
        ranks = [rank for rank, (*_, who) in enumerate(sorted(entries), 1) if who == query.identity]
        ap = np.mean([(i + 1) / rank for i, rank in enumerate(ranks)])
        rows.append((ranks[0], float(ap), float(np.median([height for height, _ in query.sizes]))))
    return rows


def test_evaluation_is_what_a_hand_computes_from_the_embeddings(
    run_folder: Path, report: dict[str, Any]
) -> None:
    config, model, results = read_run(run_folder)
    protocols = read_protocols(config.data)
    tracklets = protocol_tracklets(protocols)
    vectors = {t.name: embed_clip(model, t, spread_indices(len(t))) for t in tracklets}
    pair = Protocol(
        PAIR,
        [t for t in tracklets if t.camera == "aerial/aerial1"],
        [t for t in tracklets if t.camera == "ground/ground0"],
    )
    assert list(report["protocols"]) == NAMES
    for protocol in (*protocols, pair):
        rows, found = by_hand(protocol, vectors), report["protocols"][protocol.name]
        first = np.array([row[0] for row in rows])
        assert (found["queries"], found["gallery"]) == (len(rows), len(protocol.gallery))
        for rank in (1, 5, 10):
            assert found[f"rank{rank}"]["value"] == pytest.approx(100 * np.mean(first <= rank))
        assert found["map"]["value"] == pytest.approx(100 * np.mean([row[1] for row in rows]))
        for bucket in found["heights"]:
            ap = [row[1] for row in rows if bucket["low"] <= row[2] < (bucket["high"] or np.inf)]
            assert bucket["queries"] == len(ap)
            assert (bucket["map"] or {"value": 0})["value"] == pytest.approx(100 * np.mean(ap) if ap else 0)
    for name, row in results.items():  # training's own results are the same figures
        assert row == report["protocols"][name]
    assert report["overall"]["map"]["mean"] == pytest.approx(
        np.mean([row["map"]["value"] for row in results.values()])
    )
    assert report["settings"] == {
        "device": "cpu",
        "clips": "one",
        "rerank": None,
        "pairs": [PAIR],
        "hr_rule": "tracklet",
    }
    assert report["synthetic"] is False


class PageReader(HTMLParser):
    """Text, image sources, and everything that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for key, value in attrs if key in {"src", "href", "srcset", "data"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(html: str) -> PageReader:
    reader = PageReader()
    reader.feed(html)
    reader.close()
    return reader


def test_the_page_names_what_failed_and_loads_nothing(run_folder: Path, report: dict[str, Any]) -> None:
    page = read_page((run_folder / "evaluation" / "index.html").read_text("utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert text.startswith("Evaluation of tiny")
    assert report["config_sha256"] in text
    assert report["created"] in text
    assert "Synthetic data" not in text
    assert all(name in text for name in NAMES)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    queries = read_evaluation(run_folder).queries
    shown = 0
    for one in queries.values():
        worst = sorted(range(len(one.name)), key=lambda i, one=one: (-one.first_hit_rank[i], i))[:5]  # type: ignore[misc]
        for i in worst:
            if one.first_hit_rank[i] > 1:
                assert f"query {one.name[i]}" in text
                assert f"first match at rank {one.first_hit_rank[i]} of" in text
                shown += 1
    assert text.count("first match at rank") == shown > 0
    assert text.count("✓ first match") == shown


def test_names_of_others_are_text_and_synthetic_data_is_named(report: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    page = read_page(render_page({**report, "run": evil, "data": evil, "synthetic": True}, {evil: []}))
    assert "script" not in page.tags
    assert page.text.count(evil) == 1  # the heading of its failures; the others stand in longer texts
    assert any("Synthetic data" in text for text in page.text)


def test_other_settings_and_comparison(run_folder: Path, tmp_path: Path) -> None:
    done = call("evaluate", str(run_folder), "--out", str(tmp_path / "b"), "--clips", "all", "--rerank")
    assert done.exit_code == 0, done.output
    other = read_evaluation(tmp_path / "b")
    assert other.report["settings"]["rerank"] == {"k1": 50, "k2": 15, "original": 0.3}
    assert not (tmp_path / "b" / "submission.csv").exists()
    mine = read_evaluation(run_folder)
    rows = compare(mine, other)
    assert [row.protocol for row in rows if row.bucket == "all"] == NAMES[:3]  # the pair is in one only
    assert {row.bucket for row in rows} == {"all", "16-32 px", "128 px and more"}
    for row in rows:
        check_row(row, mine.queries[row.protocol], other.queries[row.protocol])
    printed = call("compare", str(run_folder), str(tmp_path / "b"))
    assert printed.exit_code == 0
    first, second, _, table = printed.stdout.split("\n", 3)
    assert first.endswith("run tiny, clips one, cosine, HR by tracklet")
    assert second.endswith("run tiny, clips all, re-ranked, HR by tracklet")
    assert table.strip() == comparison_table(rows)


def check_row(row: Comparison, a: Any, b: Any) -> None:  # noqa: ANN401  QueryValues, read by hand
    edges = {"all": (0, np.inf), "16-32 px": (16, 32), "128 px and more": (128, np.inf)}[row.bucket]
    chosen = a.valid & (a.height >= edges[0]) & (a.height < edges[1])
    assert row.queries == chosen.sum()
    ap = (a.ap[chosen], b.ap[chosen])
    assert row.map.interval.mean == pytest.approx(ap[0].mean() - ap[1].mean())
    assert row.map.interval == paired_bootstrap(*ap)
    assert row.map.p == sign_flip_p_value(*ap)
    hits = [(one.first_hit_rank[chosen] == 1).mean() for one in (a, b)]
    assert row.rank1.interval.mean == pytest.approx(hits[0] - hits[1])


def test_a_run_does_not_differ_from_itself(run_folder: Path) -> None:
    done = call("compare", str(run_folder), str(run_folder / "evaluation"))
    assert done.exit_code == 0
    rows = compare(read_evaluation(run_folder), read_evaluation(run_folder))
    assert all(row.map == ((0, 0, 0), 1) and row.rank1 == ((0, 0, 0), 1) for row in rows)


def test_other_queries_or_galleries_are_refused(run_folder: Path, tmp_path: Path) -> None:
    world = write_block_world(tmp_path / "small", train=0, test=3)
    out = tmp_path / "b"
    done = call("evaluate", str(run_folder), "--data", str(world), "--out", str(out))
    assert done.exit_code == 0, done.output
    assert json.loads((out / "evaluation.json").read_text())["data"] == str(world)
    refused = call("compare", str(run_folder), str(out))
    assert refused.exit_code == 2
    assert "has 8" in refused.output
    assert "has 6, and 2 are in one only" in refused.output
    shutil.rmtree(world / "test" / "ground" / "1000" / "ground1_1000")
    fewer = tmp_path / "c"
    assert call("evaluate", str(run_folder), "--data", str(world), "--out", str(fewer)).exit_code == 0
    refused = call("compare", str(out), str(fewer))
    assert refused.exit_code == 2
    assert "aerial_to_ground" in refused.output
    assert "different galleries" in refused.output


def test_what_cannot_be_evaluated_or_compared(run_folder: Path, tmp_path: Path) -> None:
    cases = {
        ("evaluate", str(tmp_path)): "config.json is missing",
        ("evaluate", str(run_folder), "--device", "warp"): "device 'warp' cannot be used here",
        ("evaluate", str(run_folder), "--device", "cuda:77"): "device 'cuda:77' cannot be used here",
        ("evaluate", str(run_folder), "--pair", "a:b"): "QUERY_CAMERA:GALLERY_CAMERA",
        ("evaluate", str(run_folder), "--data", str(tmp_path)): "a split is a folder",
        ("compare", str(run_folder), str(tmp_path)): "no evaluation.json here; make it with",
    }
    for words, message in cases.items():
        done = call(*words)
        assert done.exit_code == 2, done.output
        assert message in done.output
        assert len(done.stderr.splitlines()) == 1
    copy = shutil.copytree(run_folder / "evaluation", tmp_path / "copy")
    changed = json.loads((copy / "evaluation.json").read_text())
    changed["protocols"].pop(PAIR)
    (copy / "evaluation.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"queries\.npz is not of its evaluation\.json"):
        read_evaluation(copy)
