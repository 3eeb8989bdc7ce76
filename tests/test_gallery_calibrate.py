"""From folders of labelled tracklets to thresholds, with real graphs, and strangers of another set."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import write_block_world

from benchmarks.open_set import table_of, unseen
from s3clip.synthetic import write_dataset
from s3clip_runtime.cli.gallery.calibration import Labelled, embed_labelled, measure, table
from s3clip_runtime.cli.gallery.plots import draw
from s3clip_runtime.errors import DataError, SinkError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.tracklets import read_clip, read_tracklets

PEOPLE = 24


SEEN_FROM_ABOVE = 5
"""People whom the drone saw: fewer than any threshold needs."""


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return Bundle.open(Path(str(files("s3clip_runtime") / "demo/bundle")))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tracklets of each person on the ground, and of `SEEN_FROM_ABOVE` of them from above."""
    root = write_block_world(tmp_path_factory.mktemp("blocks"), train=0, test=PEOPLE, frames=2) / "test"
    for folder in sorted((root / "aerial").iterdir())[SEEN_FROM_ABOVE:]:
        shutil.rmtree(folder)
    return root


@pytest.fixture(scope="module")
def labelled(demo: Bundle, blocks: Path) -> Labelled:
    return embed_labelled(demo, blocks, "cpu")


def test_tracklets_are_embedded_by_the_rule_of_a_run(demo: Bundle, blocks: Path, labelled: Labelled) -> None:
    tracklets = read_tracklets(blocks)
    assert len(tracklets) == len(labelled.embeddings) == 2 * (PEOPLE + SEEN_FROM_ABOVE)
    assert labelled.people == tuple(tracklet.files[0].parts[-3] for tracklet in tracklets)
    assert labelled.platforms == tuple(tracklet.files[0].parts[-4] for tracklet in tracklets)
    cameras = {"ground/ground0", "ground/ground1", "aerial/aerial0", "aerial/aerial1"}
    assert set(labelled.cameras) == cameras
    assert set(zip(labelled.platforms, labelled.heights_px, strict=True)) == {("ground", 150), ("aerial", 28)}
    with Embedder(demo, device="cpu") as embedder:
        clips = [read_clip(tracklet) for tracklet in tracklets[::20]]
        np.testing.assert_allclose(labelled.embeddings[::20], embedder.embed(clips), atol=1e-5)


def test_measuring_tells_a_table_and_what_is_missing_and_draws(
    demo: Bundle, blocks: Path, labelled: Labelled, tmp_path: Path
) -> None:
    plots = tmp_path / "plots"
    open_set = measure(demo, blocks, fpir=0.2, seed=0, identities=8, device="cpu", plots=plots)
    count = 2 * (PEOPLE + SEEN_FROM_ABOVE)
    assert (open_set.data, open_set.people, open_set.tracklets) == ("test", PEOPLE, count)
    assert {(pair.query, pair.gallery) for pair in open_set.pairs} == {("ground", "ground")}
    lines = table(open_set).splitlines()
    assert lines[0] == (
        f"# test: {PEOPLE} people, {count} tracklets, 8 enrolled in each of 20 trials; target FPIR 0.2"
    )
    for pair, line in zip(open_set.pairs, lines[2:], strict=False):
        assert line.startswith("ground  ground   ")
        assert f"  {pair.threshold:.4f}     {pair.growth_threshold:.4f}" in line
        assert f"{100 * pair.fnir.value:.2f} ({100 * pair.fnir.low:.2f} to " in line
    assert (
        "not calibrated: aerial to ground, all: FPIR 0.2 needs tracklets of 15 people (3 / FPIR), found 5; "
        "give 10 more, or take --fpir 0.6 or above"
    ) in lines
    assert (
        "not calibrated: ground to aerial, all: 20 people must have one tracklet to search and another to be "
        "found by, found 5; give 15 more"
    ) in lines
    (drawn,) = plots.iterdir()
    assert drawn.name == "open-set-ground-ground.png"
    with Image.open(drawn) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=r"open-set-ground-ground\.png: cannot be written"):
        draw(open_set, *labelled.inputs, folder=tmp_path / "file")


def test_data_without_labels_is_refused(demo: Bundle, tmp_path: Path) -> None:
    write_block_world(tmp_path, train=0, test=1, frames=1)
    (tmp_path / "test/ground/1000/ground0_1000").rename(tmp_path / "test/ground/gate_17")
    with pytest.raises(DataError, match=r"path of 1 tells no person, such as ground/gate_17; lay them out"):
        measure(demo, tmp_path / "test", fpir=0.2, seed=0, identities=None, device="cpu")


@pytest.mark.slow
def test_on_the_demo_bundle_fpir_of_unseen_people_lies_within_its_interval(
    demo: Bundle, tmp_path: Path
) -> None:
    root, fpir, splits = tmp_path / "world", 0.05, 15
    write_dataset(root, seed=23, train_identities=1, test_identities=200, frames=4, progress=False)
    everybody = embed_labelled(demo, root / "test", "cpu")
    found = unseen(everybody, 60, fpir, splits)
    assert len(found) == splits * 4
    # The unseen people are a sample too, and the splits share people: fewer than 95 % is no fault yet.
    assert np.mean([one.covered for one in found]) >= 0.85
    assert fpir / 3 < np.mean([one.fpir for one in found]) <= fpir
    assert table_of(found).count("\n") == 6
