"""The page of a calibration: its numbers are those of the evidence, its pictures hold the points."""

from __future__ import annotations

import base64
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from s3clip_calib.candidates import BASES, FP8_ENGINE, INT8_ENGINE, OPENVINO, ORT, Timed, Verdict
from s3clip_calib.fidelity import Fidelity
from s3clip_calib.front import Point, faults_of, order_of
from s3clip_calib.layers import Layer
from s3clip_calib.methods import Prepared, Trial, combinations
from s3clip_calib.plots import LEAST_LOSS, MOST_LOSS, front_figure, sensitivity_figure
from s3clip_calib.ranges import Bits
from s3clip_calib.report import Evidence, render
from s3clip_calib.samples import Sample
from s3clip_calib.sensitivity import Sensitivity
from s3clip_calib.study import PRECISION_OF, Study, bounds_of
from s3clip_calib.super_resolution import PictureRow, choose_form
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.evidence import Interval, Proof
from s3clip_runtime.inference.gate import BOUNDS
from s3clip_runtime.inference.manifest import Artefact, Target
from s3clip_runtime.inference.tracklets import Tracklet

SHAPES = ((64, 192), (64, 64), (64, 256), (256, 64))
HOSTILE = "<script>alert('$x$')</script>"

Table = list[list[str]]


class Page(HTMLParser):
    """Tables by their id, items of lists, addresses of pictures, all tags, and the page's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, Table] = {}
        self.marked: dict[str, Table] = {}
        self.items: list[str] = []
        self.pictures: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._table, self._cell, self._item = "", False, False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        match tag:
            case "table":
                self._table = known["id"] or ""
                self.tables[self._table], self.marked[self._table] = [], []
            case "tr":
                self.tables[self._table].append([])
                if known.get("class") == "best":
                    self.marked[self._table].append(self.tables[self._table][-1])
            case "td" | "th":
                self.tables[self._table][-1].append("")
                self._cell = True
            case "br" if self._cell:
                self.tables[self._table][-1][-1] += " "
            case "li":
                self.items.append("")
                self._item = True
            case "img":
                self.pictures.append(known["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        self._item &= tag != "li"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[self._table][-1][-1] += data.replace("\n", "")
        if self._item:
            self.items[-1] += data

    def row(self, table: str, name: str, after: str = "") -> list[str]:
        """Cells behind the first one that says `name`, below the row `after`."""
        names = [row[0] for row in self.tables[table]]
        start = names.index(after) if after else 0
        return self.tables[table][names.index(name, start)][1:]


def made_fidelity(rng: np.random.Generator, loss: float) -> Fidelity:
    """Figures that all differ, so that a cell with another one's value shows."""
    drawn = rng.random(5)
    return Fidelity(
        1 - loss * (0.1 + 0.01 * drawn[0]),
        1 - loss * (0.2 + 0.1 * drawn[1]),
        1 - loss,
        1 - loss * (2 + drawn[2]),
        float(1 - loss * drawn[3]),
        float(1 - loss * (1 + drawn[4])),
    )


def made_study(bits: Bits, blocks: int = 3, seed: int = 0) -> Study:
    """Layers with losses over four decades, and a walk whose last points are refused."""
    rng = np.random.default_rng(seed)
    names = [f"/blocks.{i // 4}/{('qkv', 'out', 'fc1', 'fc2')[i % 4]}/MatMul" for i in range(4 * blocks)]
    layers = tuple(
        Layer(name, f"{name}.in", f"{name}.w", SHAPES[i % 4], 1, 0, None) for i, name in enumerate(names)
    )
    losses = 10 ** rng.uniform(-6, -2, len(names))
    rows = [
        Sensitivity(layer.name, 8 * layer.weights, made_fidelity(rng, loss))
        for layer, loss in zip(layers, losses, strict=True)
    ]
    ordered, whole = order_of(rows), sum(row.operations for row in rows)
    points, bounds = [], bounds_of(PRECISION_OF[bits])
    for count in range(0, len(rows) + 1, max(len(rows) // 8, 1)):
        part = ordered[:count]
        found = made_fidelity(rng, sum((row.fidelity.loss for row in part), 1e-9))
        share = sum(row.operations for row in part) / whole
        points.append(
            Point(
                tuple(row.layer for row in part),
                share,
                found,
                faults_of(found, bounds),
            )
        )
    ways = combinations(bits)
    # The best one of int8 is planted among those with a smoothing.
    bad = np.where(np.arange(len(ways)) == len(ways) // 2, 1e-4, 10 ** rng.uniform(-3, -1, len(ways)))
    trials = tuple(Trial(*way, made_fidelity(rng, loss)) for way, loss in zip(ways, bad, strict=True))
    best = min(trials, key=lambda trial: trial.fidelity.loss)
    prepared = Prepared(best.smoothing, {}, onnx.ModelProto(), layers, {})
    return Study(bits, trials, best.method, prepared, tuple(rows), tuple(points))


def made_proof(target: Target, seed: int, change: Interval | None) -> Proof:
    rng = np.random.default_rng(seed)
    good = 1 - rng.uniform(1e-5, 4e-4, 6)
    return Proof(
        target=str(target),
        device="cpu",
        tracklets=10 + seed,
        crops=80,
        stages={"encode": 0.02},
        cosine_mean=good[0],
        cosine_p1=good[1],
        cosine_min=good[2],
        max_abs_error=0.01,
        top1_agreement=good[3],
        top10_agreement=good[4],
        kendall_tau=good[5],
        rank1_change=change,
        map_change=None if change is None else Interval(value=-0.0013, low=-0.0101, high=0.0079),
        bounds=dict(BOUNDS[target.precision]),
    )


def made_artefact(target: Target, file: str, size: int) -> Artefact:
    return Artefact(
        role="encode",
        file=file,
        precision=target.precision,
        backend=target.backend,
        opset=18,
        sha256="0" * 64,
        bytes=size,
    )


def furthest(study: Study) -> Point:
    return study.allowed[0]


def timed_points(study: Study, base: float) -> list[Timed]:
    return [Timed(point, base * (1 - 0.6 * point.share)) for point in study.points]


def taken(target: Target, study: Study, change: Interval | None, tried: tuple[str, ...] = ()) -> Verdict:
    proofs = made_proof(target, 1, None), made_proof(target, 2, change)
    files = (made_artefact(target, "encode.qdq.onnx", 123_456_789),)
    return Verdict(target, study.method, furthest(study), *proofs, tried, files)


def made_sample(name: str, heights: tuple[int, ...] = (40, 44, 60), frames: int = 5) -> Sample:
    tracklet = Tracklet(
        name, tuple(Path(f"{i}.jpg") for i in range(frames)), 1, "aerial/cam7", None, ((44, 20),) * frames
    )
    clip = Clip(tuple(np.zeros((height, 20, 3), np.uint8) for height in heights), 1, False)
    nothing = np.zeros(0, np.float32)
    return Sample(tracklet, clip, np.zeros(0, np.uint8), nothing, nothing)


def made_evidence() -> Evidence:
    """One target taken, one refused, one left out."""
    study = made_study("int8")
    pictures = [
        PictureRow("onnx", "higher precision", float("inf"), 25.0),
        PictureRow("onnx", "products", 61.5, 20.25),
        PictureRow("onnx", "all", 48.25, 11.5),
        PictureRow("openvino", "higher precision", float("inf"), 10.0),
        PictureRow("openvino", "products", 64.0, 9.9),
        PictureRow("openvino", "all", 47.0, 9.0),
    ]
    return Evidence(
        bundle="front-door",
        data="yard",
        seed=7,
        cpu="Planted CPU 9000",
        calibration=[made_sample("aerial/cam7_0001"), made_sample("aerial/cam7_0002", (90,), 3)],
        tune=13,
        held=17,
        studies={"int8": study},
        timed={ORT: timed_points(study, 300.0)},
        encoders={},
        pictures=pictures,
        forms={
            backend: choose_form([row for row in pictures if row.backend == backend]).form
            for backend in ("onnx", "openvino")
        },
        verdicts=(
            taken(ORT, study, Interval(value=0.0123, low=-0.02, high=0.0456), ("12 layers: too far",)),
            Verdict(OPENVINO, None, None, None, None, ("dynamic: cosine_min is 0.98", "static: slower"), ()),
        ),
        left_out={FP8_ENGINE: "the bundle holds no onnx-fp16 graphs"},
    )


def test_the_verdict_of_a_taken_target_is_that_of_its_proofs() -> None:
    evidence = made_evidence()
    page, study, one = Page(render(evidence)), evidence.studies["int8"], evidence.verdicts[0]
    assert one.point is not None
    assert one.proof is not None
    assert one.held_out is not None
    assert page.tables["taken"][0] == ["", f"{ORT} on cpu"]
    (way,) = page.row("taken", "ranges of activations")
    assert way == f"{study.method}, smoothing {study.prepared.smoothing:g}"
    layers = f"{len(one.point.layers)} of {len(study.rows)}"
    assert page.row("taken", "layers of encode in 8 bits") == [layers]
    assert page.row("taken", "their share of the multiply-adds") == [f"{one.point.share * 100:.1f} %"]
    for proof, part in (
        (one.proof, "Beside PyTorch"),
        (one.held_out, "On held-out tracklets, beside float32"),
    ):
        assert page.row("taken", "tracklets", part) == [str(proof.tracklets)]
        assert page.row("taken", "cosine, minimum", part) == [f"{proof.cosine_min:.6f} ≥ 0.9995"]
        top1 = f"{proof.top1_agreement:.6f} ≥ {proof.bounds['top1_agreement']:g}"
        assert page.row("taken", "same nearest neighbour (top-1)", part) == [top1]
        assert page.row("taken", "Kendall's tau", part) == [f"{proof.kendall_tau:.6f} ≥ 0.97"]
    assert page.row("taken", "centred cosine, mean") == [f"{one.point.fidelity.centred_mean:.6f}"]
    assert page.row("taken", "centred cosine, minimum") == [f"{one.point.fidelity.centred_min:.6f}"]
    assert page.row("taken", "change of Rank-1, 95 % interval") == ["+0.0123 [-0.0200, +0.0456]"]
    assert page.row("taken", "change of mAP, 95 % interval") == ["-0.0013 [-0.0101, +0.0079]"]
    ms = 300 * (1 - 0.6 * one.point.share)
    assert page.row("taken", "encode on the CPU, ms a clip") == [f"{BASES[ORT]}: 300.00 {ORT}: {ms:.2f}"]
    assert page.row("taken", "files, MB") == ["encode.qdq.onnx: 123.46"]
    assert "12 layers: too far" in page.items


def test_the_forms_of_encode_that_were_timed_come_before_the_points_of_the_walk() -> None:
    page = Page(render(replace(made_evidence(), encoders={ORT: {"fp32": 201.5, "8 bits": 99.25}})))
    assert page.row("taken", "encode on the CPU, ms a clip") == ["fp32: 201.50 8 bits: 99.25"]


def test_what_was_not_measured_is_not_told_as_a_number() -> None:
    study = made_study("int8")
    page = Page(render(replace(made_evidence(), verdicts=(taken(INT8_ENGINE, study, None),))))
    assert page.row("taken", "change of Rank-1, 95 % interval") == ["–"]
    assert page.row("taken", "encode on the CPU, ms a clip") == ["not timed here"]


def test_dynamic_ranges_have_no_smoothing() -> None:
    study = made_study("int8")
    assert study.prepared.smoothing is not None
    verdict = replace(taken(OPENVINO, study, None), method="dynamic")
    page = Page(render(replace(made_evidence(), verdicts=(verdict,))))
    assert page.row("taken", "ranges of activations") == ["dynamic: anew in every run"]


def test_a_refusal_tells_what_was_tried_and_the_five_worst_layers() -> None:
    evidence = made_evidence()
    page = Page(render(evidence))
    for line in evidence.verdicts[1].tried:
        assert line in page.items
    rows = sorted(evidence.studies["int8"].rows, key=lambda row: row.fidelity.centred_mean)
    said = [item for item in page.items if ": 1 - centred cosine " in item]
    assert said == [f"{row.layer}: 1 - centred cosine {row.fidelity.loss:.2e}" for row in rows[:5]]
    assert f"Refused: {OPENVINO}" in page.text
    assert "1 taken, 1 refused, 1 left out" in page.text


def test_what_is_left_out_has_its_reason_and_nothing_else_is_needed() -> None:
    reasons = {target: f"no {target} here" for target in (ORT, OPENVINO, INT8_ENGINE, FP8_ENGINE)}
    evidence = replace(
        made_evidence(),
        studies={},
        timed={},
        pictures=(),
        forms={},
        verdicts=(),
        calibration=(),
        left_out=reasons,
    )
    page = Page(render(evidence))
    for target, why in reasons.items():
        assert f"{target}: {why}" in page.items
    assert "0 taken, 0 refused, 4 left out" in page.text
    assert "No type was studied" in page.text
    assert "left in higher precision because" in page.text
    assert page.pictures == []


def test_the_page_says_where_its_figures_are_from() -> None:
    page = Page(render(made_evidence()))
    assert "Nothing here ran on a GPU." in page.text
    assert "measured on the CPU Planted CPU 9000" in page.text
    assert "yard, seed 7" in page.text
    assert "2 gave the ranges, 13 chose among methods and layers, 17 proved the choice" in page.text


def test_every_point_of_the_walk_is_in_its_table() -> None:
    evidence = made_evidence()
    study = evidence.studies["int8"]
    page = Page(render(evidence))
    head, *rows = page.tables["points-int8"]
    assert head[2:5] == ["centred, mean", "cosine, mean ≥ 0.9995", "cosine, min ≥ 0.9995"]
    assert head[-2] == f"{ORT} ms"  # engines' graphs were not timed and have no column
    for row, point, one in zip(rows, study.points, evidence.timed[ORT], strict=True):
        assert row[:2] == [str(len(point.layers)), f"{point.share * 100:.1f} %"]
        found = point.fidelity
        names = {"centred_mean": 6, "cosine_mean": 6, "cosine_min": 6, "top1_agreement": 4, "kendall_tau": 4}
        missed = {fault.split()[0] for fault in point.faults}
        assert row[2:7] == [
            f"{'× ' * (name in missed)}{getattr(found, name):.{digits}f}" for name, digits in names.items()
        ]
        assert row[7] == f"{one.ms:.2f}"
        assert row[8] in (["refused"] if missed else ["allowed", f"taken by {ORT}"])
    assert [row[8] for row in page.marked["points-int8"]] == [f"taken by {ORT}"]
    assert any("refused" in row[8] for row in rows)


def test_a_point_with_the_same_layers_but_other_ranges_is_another_point() -> None:
    """OpenVINO's own scales with all layers: the walk's last point was refused, and stays so."""
    study = made_study("int8")
    assert study.points[-1].faults
    own = Point(study.points[-1].layers, 1.0, made_fidelity(np.random.default_rng(3), 1e-4), ())
    verdict = replace(taken(OPENVINO, study, None), method="dynamic", point=own)
    page = Page(render(replace(made_evidence(), verdicts=(verdict,))))
    assert page.tables["points-int8"][-1][-1].startswith("refused")
    assert page.marked["points-int8"] == []


@pytest.mark.parametrize("bits", ["int8", "fp8"])
def test_every_method_is_in_its_table_and_the_best_marked(bits: Bits) -> None:
    study = made_study(bits)
    page = Page(render(replace(made_evidence(), studies={bits: study}, verdicts=(), timed={})))
    rows = page.tables[f"methods-{bits}"][1:]
    for row, trial in zip(rows, study.trials, strict=True):
        found = trial.fidelity
        assert row[:2] == [trial.method, "none" if trial.smoothing is None else f"{trial.smoothing:g}"]
        cosines = (found.cosine_mean, found.cosine_min, found.centred_mean, found.centred_min)
        assert row[2:6] == [f"{value:.6f}" for value in cosines]
        assert row[6:8] == [f"{found.top1_agreement:.4f}", f"{found.kendall_tau:.4f}"]
    ((*_, centred, _, _, _, said),) = page.marked[f"methods-{bits}"]
    assert said == "best"
    assert centred == max(row[4] for row in rows)


def test_the_ten_worst_layers_are_told_by_their_places_in_the_graph() -> None:
    evidence = made_evidence()
    study = evidence.studies["int8"]
    rows = Page(render(evidence)).tables["worst-int8"][1:]
    assert len(rows) == 10
    worst = sorted(study.rows, key=lambda row: row.fidelity.centred_mean)[:10]
    whole = sum(row.operations for row in study.rows)
    for row, expected in zip(rows, worst, strict=True):
        number = study.rows.index(expected)
        assert row[:2] == [expected.layer, str(number + 1)]
        assert row[2] == " x ".join(map(str, SHAPES[number % 4]))
        found = expected.fidelity
        assert row[3:5] == [f"{expected.operations / whole * 100:.2f} %", f"{1 - found.centred_mean:.2e}"]
        assert row[5:] == [
            f"{found.centred_mean:.6f}",
            f"{found.top1_agreement:.4f}",
            f"{found.kendall_tau:.4f}",
        ]


def test_forms_of_the_super_resolver_and_why_they_were_taken() -> None:
    page = Page(render(made_evidence()))
    assert [row[1:4] for row in page.tables["forms"][1:4]] == [
        ["higher precision", "equal pictures", "25.00"],
        ["products", "61.5 dB", "20.25"],
        ["all", "48.2 dB", "11.50"],
    ]
    assert [row[:2] for row in page.marked["forms"]] == [
        ["onnx", "products"],
        ["openvino", "higher precision"],
    ]
    assert "onnx: products taken: 20.25 ms instead of 25.00 ms, 61.5 dB." in page.items
    (why,) = (item for item in page.items if item.startswith("openvino: "))
    assert why == (
        "openvino: left in higher precision because products takes 9.90 ms, must be at most 9.50 ms; "
        "all has 47.0 dB, must be at least 60 dB."
    )


def test_calibration_tracklets_are_told_without_their_pictures() -> None:
    page = Page(render(made_evidence()))
    assert page.tables["calibration"][1:] == [
        ["aerial/cam7_0001", "aerial/cam7", "aerial", "44", "5"],
        ["aerial/cam7_0002", "aerial/cam7", "aerial", "90", "3"],
    ]


def test_hostile_names_stay_text() -> None:
    study = made_study("int8")
    layers = tuple(replace(layer, name=f"{HOSTILE}{layer.name}") for layer in study.prepared.layers)
    rows = tuple(replace(row, layer=f"{HOSTILE}{row.layer}") for row in study.rows)
    study = replace(study, prepared=replace(study.prepared, layers=layers), rows=rows)
    evidence = replace(
        made_evidence(),
        bundle=HOSTILE,
        data=HOSTILE,
        cpu=HOSTILE,
        calibration=[made_sample(HOSTILE)],
        studies={"int8": study},
        verdicts=(Verdict(ORT, None, None, None, None, (HOSTILE,), ()),),
        left_out={FP8_ENGINE: HOSTILE},
    )
    text = render(evidence)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.tables["calibration"][1][0] == HOSTILE
    assert HOSTILE in page.items


def test_the_page_loads_nothing() -> None:
    text = render(made_evidence())
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "http" not in text
    assert len(page.pictures) == 2
    for picture in page.pictures:
        kind, _, content = picture.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(content)


def test_equal_evidence_gives_an_equal_page() -> None:
    assert render(made_evidence()) == render(made_evidence())


def places(axes: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return list(zip(np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata()), strict=True))


def plotted(study: Study, timed: dict[Target, list[Timed]], chosen: dict[Target, Point]) -> Figure:
    figure = front_figure(study, timed, chosen)
    figure.draw_without_rendering()
    return figure


def test_the_front_holds_every_point_in_the_shape_of_its_verdict() -> None:
    study, allowed = made_study("int8"), made_study("int8").allowed
    timed = {ORT: timed_points(study, 300.0)}
    figure = plotted(study, timed, {ORT: allowed[0], INT8_ENGINE: allowed[1]})
    shares, times = figure.axes  # none for the target without times
    assert shares.get_yscale() == "log"
    for axes, xs in ((shares, [100 * p.share for p in study.points]), (times, [t.ms for t in timed[ORT]])):
        for label, wanted in (("allowed", False), ("refused", True)):
            expected = [
                (x, max(point.fidelity.loss, LEAST_LOSS))
                for x, point in zip(xs, study.points, strict=True)
                if bool(point.faults) is wanted
            ]
            assert expected
            assert places(axes, label) == expected
    markers = {line.get_label(): line.get_marker() for line in shares.lines}
    assert len({markers[label] for label in ("allowed", "refused", f"taken: {ORT}")}) == 3
    assert places(shares, f"taken: {ORT}") == [(100 * allowed[0].share, allowed[0].fidelity.loss)]
    assert places(shares, f"taken: {INT8_ENGINE}") == [(100 * allowed[1].share, allowed[1].fidelity.loss)]
    ms = 300 * (1 - 0.6 * allowed[0].share)
    assert places(times, f"taken: {ORT}") == [(ms, allowed[0].fidelity.loss)]
    assert times.get_title() == str(ORT)


def test_targets_that_took_the_same_point_share_a_mark() -> None:
    study = made_study("int8")
    (axes,) = plotted(study, {}, {ORT: furthest(study), INT8_ENGINE: furthest(study)}).axes
    assert len(places(axes, f"taken: {ORT}, {INT8_ENGINE}")) == 1


def test_the_front_is_those_that_no_other_beats_in_both() -> None:
    study = made_study("int8")
    losses = [1e-5, 3e-4, 2e-4, 1e-3]
    points = tuple(
        Point((str(i),), share, made_fidelity(np.random.default_rng(i), loss), ())
        for i, (share, loss) in enumerate(zip([0.1, 0.3, 0.5, 0.9], losses, strict=True))
    )
    (axes,) = plotted(replace(study, points=points), {}, {}).axes
    front = sorted(places(axes, "Pareto front"))
    assert [x for x, _ in front] == pytest.approx(
        [10, 50, 90]
    )  # the one at 30 % loses more than that at 50 %


def test_every_layer_has_a_bar_and_every_shape_a_look() -> None:
    study = made_study("int8", blocks=5)
    figure = sensitivity_figure(study)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    found = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
    assert found == {number: row.fidelity.loss for number, row in enumerate(study.rows, 1)}
    looks: dict[tuple[int, ...], set[object]] = {}
    for bar in bars:
        number = round(bar.get_x() + bar.get_width() / 2)
        looks.setdefault(SHAPES[(number - 1) % 4], set()).add((bar.get_facecolor(), bar.get_hatch()))
    assert all(len(seen) == 1 for seen in looks.values())
    assert len({str(seen) for seen in looks.values()}) == len(SHAPES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{a} x {b}" for a, b in SHAPES]


def test_losses_that_a_logarithm_cannot_show() -> None:
    """A layer that gains by rounding, and one whose embeddings are no numbers."""
    study = made_study("int8")
    nan = float("nan")
    odd = [Fidelity(1, 1, 1 + 1e-7, 1, 1, 1), Fidelity(nan, nan, nan, nan, nan, nan)]
    rows = tuple(replace(row, fidelity=found) for row, found in zip(study.rows, odd, strict=False))
    study = replace(study, rows=(*rows, *study.rows[2:]))
    bars = [bar for bar in sensitivity_figure(study).axes[0].patches if isinstance(bar, Rectangle)]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars}
    assert heights[1] == LEAST_LOSS
    assert heights[2] == MOST_LOSS
    page = Page(render(replace(made_evidence(), studies={"int8": study})))
    assert page.tables["worst-int8"][1][0] == rows[1].layer


def test_importing_takes_neither_matplotlib_nor_jinja2() -> None:
    code = "import sys, s3clip_calib.report; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_library_is_told_with_its_cure(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf'{module} must be .* pip install "s3clip\[calib\]"'):
        render(made_evidence())
