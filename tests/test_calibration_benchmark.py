"""The measurement of calibration: pieces become one file, and the page tells the file's numbers."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.calibration.__main__ import main
from benchmarks.calibration.records import (
    CalibrationReport,
    Figures,
    LayerRow,
    MethodRow,
    Methods,
    PointRow,
    Setup,
    Stability,
    StabilityRow,
    StudyPart,
    Way,
    begun,
    best_static,
    read,
    write,
)
from s3clip_calib.ranges import Bits
from s3clip_runtime.bench.records import Machine, Spread
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.evidence import Interval

NOW = datetime(2026, 11, 30, tzinfo=UTC)
MACHINE = Machine(
    cpu="made up", cores=2, isa=("avx2",), memory_bytes=None, system="Linux", python="3.11", versions={},
    gpu=None, driver=None,
)  # fmt: skip
SETUP = Setup(
    bundle="made up", encode="ab" * 32, data="clips", seed=3, calibration=("a",), tune=("b", "c", "d"),
    held=("e", "f"), machine=MACHINE, versions={"onnx": "1.0"},
)  # fmt: skip


def figures(loss: float) -> Figures:
    """Six different numbers."""
    return Figures(
        cosine_mean=1 - loss / 9, cosine_min=1 - loss / 7, centred_mean=1 - loss, centred_min=1 - 3 * loss,
        top1_agreement=1 - 5 * loss, kendall_tau=1 - 6 * loss,
    )  # fmt: skip


def row(name: str, loss: float | None, **changes: Any) -> MethodRow:  # noqa: ANN401  of many kinds
    made = MethodRow(
        name=name, kind="static", precision="int8", method="max", smoothing=None, layers=2,
        figures=None if loss is None else figures(loss), rank1_change=None, map_change=None, faults=(),
        gate=None, ms={},
    )  # fmt: skip
    return made.model_copy(update=changes)


METHODS = Methods(
    measured=NOW, layers=2, rounds=9, foreign_load=0.01,
    rows=(
        row("float32", 0.0, kind="plain", layers=0, ms={
            "onnxruntime": Spread(median=41.5, low=40.25, high=47.75),
            "openvino": Spread(median=31.5, low=30.5, high=33.75),
        }),
        row("worse", 0.004), row("better", 0.003), row("broken", None),
        row(
            "naive", 0.05, kind="naive", layers=None, gate=("cosine_min is 0.9, must be at least 0.9995",),
            faults=("cosine_min is 0.9, must be at least 0.9995",),
            rank1_change=Interval(value=-0.0625, low=-0.125, high=0.03125),
        ),
    ),
    refused={"bfloat16, openvino": "no such instructions"},
)  # fmt: skip

LOSSES: tuple[tuple[Way, float], ...] = (("k-centre", 0.01), ("random", 0.02))

STABILITY = Stability(
    measured=NOW, method="mse", smoothing=0.5, pool=40, left_out=(128,),
    rows=tuple(
        StabilityRow(way=way, count=count, seed=seed, figures=figures(loss * (1 + seed) / count))
        for count in (8, 32) for way, loss in LOSSES for seed in (0, 1)
    ),
)  # fmt: skip


def study_part(bits: Bits, loss: float) -> StudyPart:
    return StudyPart(
        measured=NOW, bits=bits, method="max", smoothing=None,
        layers=tuple(
            LayerRow(layer=name, shape=(4, size), operations=10, figures=figures(loss * size))
            for name, size in (("first", 4), ("second", 8))
        ),
        points=(
            PointRow(layers=(), share=0, figures=figures(0), faults=(), ms={"onnx-int8": 20.5}),
            PointRow(layers=("first",), share=0.5, figures=figures(loss), faults=(), ms={"onnx-int8": 15.25}),
            PointRow(
                layers=("first", "second"), share=1, figures=figures(3 * loss), ms={"onnx-int8": 11.75},
                faults=("kendall_tau is 0.5, must be at least 0.97",),
            ),
        ),
        taken={"onnx-int8": 1},
    )  # fmt: skip


@pytest.fixture
def whole() -> CalibrationReport:
    report = CalibrationReport(name="tiny", about="All is made up.", setup=SETUP)
    return report.with_part(METHODS).with_part(STABILITY).with_part(study_part("int8", 0.002))


def test_pieces_become_one_file(tmp_path: Path, whole: CalibrationReport) -> None:
    file = tmp_path / "r.json"
    for part in (STABILITY, study_part("int8", 0.009), METHODS, study_part("int8", 0.002)):
        write(file, begun(file, "tiny", "All is made up.", SETUP).with_part(part))
    assert read(file) == whole
    both = begun(file, "tiny", "", SETUP).with_part(study_part("fp8", 0.01))
    assert both.about == whole.about
    assert both.studies == (study_part("fp8", 0.01), study_part("int8", 0.002))


def test_pieces_of_another_setup_are_refused(tmp_path: Path, whole: CalibrationReport) -> None:
    file = tmp_path / "r.json"
    write(file, whole)
    other = SETUP.model_copy(update={"seed": 4, "tune": ("b",)})
    with pytest.raises(ConfigError, match="same setup, and seed, tune differ; remove the file"):
        begun(file, "tiny", "", other)


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"schema_version": 1, "name": "Not So"}')
    words = ["page", str(tmp_path / "r.json"), "-o", str(tmp_path / "page.md")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "calibration: error:" in done.output
    assert "name: String should match pattern" in done.output
    assert not (tmp_path / "page.md").exists()


def test_stability_asks_for_methods_first(tmp_path: Path) -> None:
    words = ["BUNDLE", "DATA", "--name", "n", "--skip", "methods", "-o", str(tmp_path / "r.md")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "stability needs the best one" in done.output


def test_a_name_that_no_file_should_have_is_refused(tmp_path: Path) -> None:
    words = ["BUNDLE", "DATA", "--name", "../up", "-o", str(tmp_path / "r.md")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "found '../up'; rename it" in done.output


def page_of(tmp_path: Path, report: CalibrationReport) -> tuple[str, dict[str, Any]]:
    """The page, and the file's content as plain JSON."""
    file = tmp_path / "results-tiny.json"
    write(file, report)
    done = CliRunner().invoke(main, ["page", str(file), "-o", str(tmp_path / "results.md")])
    assert done.exit_code == 0, done.output
    return (tmp_path / "results.md").read_text(), json.loads(file.read_text())


def cells(page: str, first: str) -> list[str]:
    """Of the only table row that begins so."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_tells_the_numbers_of_the_file(tmp_path: Path, whole: CalibrationReport) -> None:
    page, data = page_of(tmp_path, whole)
    names = ("cosine_mean", "cosine_min", "centred_mean", "centred_min", "top1_agreement", "kendall_tau")
    for one in data["methods"]["rows"]:
        found = cells(page, one["name"])
        if one["figures"] is None:
            assert found[2:8] == ["not finite"] * 6
            continue
        for text, name in zip(found[2:8], names, strict=True):
            assert float(text) == pytest.approx(one["figures"][name], abs=5.1e-4 if "top" in name else 5.1e-5)
    assert cells(page, "float32")[10:12] == ["41.5 (40.2-47.8)", "31.5 (30.5-33.8)"]
    assert cells(page, "naive")[8:] == [
        "-6.25 [-12.50, +3.12]",
        "-",
        "-",
        "-",
        "misses cosine_min",
        "refuses",
    ]
    for point in data["studies"][0]["points"]:
        found = cells(page, f"{100 * point['share']:.1f} %")
        assert int(found[1]) == len(point["layers"])
        assert float(found[8]) == pytest.approx(point["ms"]["onnx-int8"], abs=0.051)
    assert [cells(page, share)[-2:] for share in ("0.0 %", "50.0 %", "100.0 %")] == [
        ["hold", "-"], ["hold", "onnx-int8"], ["misses kendall_tau", "-"],
    ]  # fmt: skip


def test_the_page_draws_its_conclusions_from_the_file(tmp_path: Path, whole: CalibrationReport) -> None:
    page, _ = page_of(tmp_path, whole)
    assert best_static(METHODS.rows).name == "better"
    assert "least loss is `better`: 0.003." in page
    assert "* `naive` is refused: cosine_min is 0.9, must be at least 0.9995." in page
    assert "* `bfloat16, openvino` could not run here: no such instructions" in page
    # By hand: seeds 0 and 1 give 1 and 2 times 0.01 / 8.
    assert "With 8 tracklets the mean loss is 0.00187 by k-centre and 0.00375 at random, 2.00 times" in page
    assert "| 8 | k-centre | 0.999643 | 0.997500 | 0.988 | 0.00125 to 0.0025 |" in page
    assert "too few for 128" in page
    assert "alone are in int8: `second` 0.016, `first` 0.008." in page
    assert "Disturbed" not in page
    busy = whole.with_part(METHODS.model_copy(update={"foreign_load": 0.4}))
    assert "**Disturbed**: other processes took 40 %" in page_of(tmp_path, busy)[0]


def test_pictures_are_there_small_and_the_same_again(tmp_path: Path, whole: CalibrationReport) -> None:
    part = whole.studies[0]
    many = [part.layers[0].model_copy(update={"layer": f"l{i}", "shape": (i % 7 + 1, 2)}) for i in range(85)]
    whole = whole.with_part(part.model_copy(update={"layers": tuple(many)}))
    page, _ = page_of(tmp_path, whole)
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert links == [
        f"results-plots/tiny-{name}.png" for name in ("methods", "stability", "front-int8", "layers-int8")
    ]
    before = {link: (tmp_path / link).read_bytes() for link in links}
    assert all(500 < len(content) < 150_000 for content in before.values())
    page_of(tmp_path, whole)
    assert {link: (tmp_path / link).read_bytes() for link in links} == before
    assert len(list((tmp_path / "results-plots").iterdir())) == len(links)


def test_what_was_not_measured_is_not_on_the_page(tmp_path: Path) -> None:
    report = CalibrationReport(name="part", about="", setup=SETUP).with_part(STABILITY)
    page, _ = page_of(tmp_path, report)
    assert "### Other tracklets" in page
    assert "### Methods" not in page
    assert "### Layers" not in page
