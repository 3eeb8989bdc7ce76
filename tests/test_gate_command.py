"""`s3clip-bench gate`: the switch lands in the bundle with its table and its picture, or nothing changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_switches import bucket, switch
from matplotlib.patches import Rectangle
from PIL import Image
from tiny_bundle import crops_graph, manifest_of
from tiny_bundle import write_tiny_bundle as write_tiny
from worlds import write_block_world

from s3clip_export.gate_command import gate
from s3clip_export.switch.buckets import MIN_PEOPLE
from s3clip_export.switch.picture import draw_switch
from s3clip_runtime.cli.errors import Group
from s3clip_runtime.inference import spec
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.evidence import Interval

PROGRAM = Group(name="s3clip-bench", commands={"gate": gate})
"""What the command is added to: it makes errors one line."""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More people than the least that can switch something off."""
    root = tmp_path_factory.mktemp("crowd") / "crowd"
    return write_block_world(root, train=1, test=MIN_PEOPLE + 4, tracklets=1, frames=2)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(PROGRAM, ["gate", *words, "--device", "cpu"], catch_exceptions=False)


def run(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_super_resolver_that_destroys_is_switched_off(crowd: Path, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle", encode_weight=1000)  # what the crops show, not the platform
    blind = crops_graph(spec.LR_SIZE, 0.0, picture=True, count_batch=False)  # every crop looks alike
    (folder / "enhance.onnx").write_bytes(blind.SerializeToString())
    write_manifest(folder, manifest_of(folder))
    before = manifest_of(folder)
    said = run(str(folder), str(crowd))
    assert "decided: no clip is super-resolved; a gain of 0.5 points of mAP is ruled out" in said
    assert "synthetic" not in said
    with Image.open(tmp_path / "bundle-switch.png") as picture:
        assert picture.size == (1575, 660)
    manifest = Bundle.open(folder).manifest
    assert manifest.switch is not None
    (only,) = manifest.switch.buckets
    assert (only.low_px, only.high_px, only.tracklets, only.people) == (0, 28, 24, 24)
    assert only.map_with < 0.2 < 0.3 < only.map_without
    assert manifest.switch.data == "crowd"
    assert not Bundle.open(folder).enhances(28)
    assert manifest.model_copy(update={"switch": None, "schema_version": 2}) == before


def test_a_switch_of_few_people_changes_nothing(tiny_world: Path, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle")
    plot = tmp_path / "change.svg"
    said = run(str(folder), str(tiny_world), "--tracklets", "8", "--min-gain", "1", "--plot", str(plot))
    assert f"on (fewer than {MIN_PEOPLE} people)" in said
    assert Bundle.open(folder).enhances(1000)
    assert "<svg" in plot.read_text()
    assert [file.name for file in tmp_path.glob("*switch*")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--buckets", "24,x"], "heights in pixels are numbers"),
        (
            ["--buckets", "24,90"],
            "must rise from above 0 to below the tallest LR tracklet of 28 px, found 24,90",
        ),
        (["--buckets", "10"], "one of the 0 LR tracklets above 0 and up to 10 px"),
        (["--target", "onnx-fp16"], "holds no onnx-fp16 graphs"),
        (["--plot", "change.gif"], "a picture's name must end in .png, .svg, .pdf"),
        (["--plot", "no/such/change.png"], "the folder no/such does not exist"),
    ],
)
def test_wrong_wishes_leave_the_bundle_as_it_was(
    tiny_world: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    folder = write_tiny(tmp_path / "bundle")
    before = (folder / "manifest.json").read_bytes()
    result = invoke(str(folder), str(tiny_world), *words)
    assert result.exit_code == 2
    assert message in result.output
    assert (folder / "manifest.json").read_bytes() == before


def test_the_picture_shows_the_intervals_and_what_is_off() -> None:
    timed = Interval(value=5, low=4, high=7)
    low = bucket(0, 20, (0.01, 0.05)).model_copy(update={"ms_change": timed})
    figure = draw_switch(switch(20, low, bucket(20, 40, (-0.05, -0.01))))
    change, cost = figure.axes
    map_bars = change.containers[0]
    _, _, (lines,) = map_bars
    ends = [[round(float(y), 6) for y in segment[:, 1]] for segment in lines.get_segments()]
    assert ends == [[1, 5], [-5, -1]]  # points of mAP
    shaded = change.patches[-1].get_extents().transformed(change.transData.inverted())
    assert (round(shaded.x0, 6), round(shaded.x1, 6)) == (0.5, 1.5)
    heights = [round(patch.get_height(), 6) for patch in cost.patches[:4] if isinstance(patch, Rectangle)]
    assert heights == [4, 4, 5, 5]  # without it, and what it adds
    (bars,) = cost.containers[2][2]
    assert [float(y) for y in bars.get_segments()[0][:, 1]] == [4 + 4, 4 + 7]
    assert [label.get_text().splitlines()[0] for label in change.get_xticklabels()] == [
        "0 to 20 px",
        "20 to 40 px",
    ]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from s3clip_export.gate_command import gate; gate(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--min-gain" in done.stdout
