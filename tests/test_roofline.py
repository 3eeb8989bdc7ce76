"""The roofline on paper against arithmetic by hand, and the join with a benchmark's report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tiny_graphs import Shape

from benchmarks.roofline import bundle_costs, clips_of, device_of, main, measured_rows
from benchmarks.roofline_bounds import Bound, bound, paper_rows
from benchmarks.roofline_peaks import DEVICES, Device
from s3clip_export.cost import GraphCost, graph_cost
from s3clip_runtime.bench.records import BenchReport, ContenderRow, Crops, Latency, Machine, Stage, StageRow
from s3clip_runtime.bench.report_file import read_report
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.bundle import Bundle

ROUND = Device("round", {"fp16": 2.0, "int8": 4.0}, 100.0, ("Round",), None, "made up")
"""2 and 4 operations a picosecond, 100 bytes a nanosecond."""


def attention_of_one_head() -> GraphCost:
    """x (1, 1000, 1000) by a weight (1000, 1000), and the result by its own transpose.

    Two products of 2 x 10^9 FLOPs each, and of the second no operand is a weight; 4 MB of weights; a product
    moves 8 and 12 MB, and the transposition between them 8.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["p", "t"], ["y"]),
    ]
    size: Shape = ("N", 1000, 1000)
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, size)],
        [numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "w")],
    )
    return graph_cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), 1)


def close(found: Bound, **wanted: float) -> None:
    assert {name: pytest.approx(value) for name, value in wanted.items()} == {
        name: getattr(found, name) for name in wanted
    }


def test_half_precision_by_hand() -> None:
    """Half of the bytes: the weights 2 MB, activations 8 + 8 + 12 MB halved, input and output 4 MB."""
    found = bound(attention_of_one_head(), ROUND, "fp16")
    close(found, compute_ms=2.0, weights_ms=0.02, activations_ms=0.14, roofline_ms=2.0)
    close(found, fused_ms=1.0 + 1.0, unfused_ms=1.0 + 0.04 + 1.0)


def test_fusing_leaves_what_needs_whole_rows() -> None:
    """1000 values of 2 bytes, read and written, are 40 nanoseconds of a node."""
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Softmax", ["e"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 1000)) for name in "xy"]
    graph = helper.make_graph(nodes, "hand", ends[:1], ends[1:])
    cost = graph_cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), 1)
    close(bound(cost, ROUND, "fp16"), fused_ms=4e-5, unfused_ms=8e-5, roofline_ms=4e-5, compute_ms=0)


def test_int8_reaches_products_with_weights_alone() -> None:
    found = bound(attention_of_one_head(), ROUND, "int8")
    close(found, compute_ms=0.5 + 1.0, weights_ms=0.01, activations_ms=0.14, roofline_ms=1.5)
    kept = bound(attention_of_one_head(), ROUND, "int8", int8_linears=False)
    assert kept == bound(attention_of_one_head(), ROUND, "fp16")


def test_traffic_is_the_roofline_of_a_slow_memory() -> None:
    slow = Device("slow", {"fp32": 2.0, "bf16": 2.0, "int8": 4.0}, 1.0, ("Slow",), 2, "made up")
    whole, half = (bound(attention_of_one_head(), slow, kind) for kind in ("fp32", "bf16"))
    close(whole, compute_ms=2.0, weights_ms=4.0, activations_ms=28.0, roofline_ms=4.0 + 8.0)
    close(half, compute_ms=2.0, weights_ms=2.0, activations_ms=14.0, roofline_ms=2.0 + 4.0)
    close(whole, fused_ms=12.0 + 12.0, unfused_ms=12.0 + 8.0 + 12.0)
    close(half, fused_ms=6.0 + 6.0, unfused_ms=6.0 + 4.0 + 6.0)


def test_peaks_are_dense_and_of_one_kind() -> None:
    """INT8 is twice the 16-bit rate on all of them, as on NVIDIA's tensor cores and with VNNI."""
    for device in DEVICES:
        assert device.tflops["int8"] == pytest.approx(2 * device.tflops[device.half], rel=0.02)
        assert device.source
    rates = {device.name: device.tflops["int8"] for device in DEVICES}
    assert rates["AGX Orin 64GB"] * 2 == 170  # the data sheet's sparse rate of the GPU
    per_core_and_cycle = {"Orin NX 16GB": (32, 0.918), "AGX Orin 64GB": (64, 1.3)}
    for name, (cores, gigahertz) in per_core_and_cycle.items():  # the same tensor cores in both
        assert rates[name] * 1e3 / cores / gigahertz == pytest.approx(1024, rel=0.005)


# The report


def stage(contender: str, name: Stage, p50_ms: float, *, crops: Crops = "lr", threads: int = 2) -> StageRow:
    return StageRow(
        contender=contender, stage=name, clips=1, threads=threads, cpu_ms=1, tracklets_per_s=1, speedup=None,
        latency=Latency(first_ms=9, p50_ms=p50_ms, p95_ms=p50_ms, p99_ms=p50_ms, samples=5), foreign_load=0,
        crops=crops,
    )  # fmt: skip


def report(cpu: str, gpu: str | None, *stages: StageRow, cuda: tuple[str, ...] = ()) -> BenchReport:
    machine = Machine(
        cpu=cpu, cores=2, isa=(), memory_bytes=None, system="Linux", python="3.11", versions={}, gpu=gpu,
        driver=None,
    )  # fmt: skip
    contenders = tuple(
        ContenderRow(
            contender=name, device="cuda" if name in cuda else "cpu", file_bytes=1, cold_start_ms=None,
            peak_memory_bytes=None, energy_j=None, energy_source="", cosine_mean=None, cosine_min=None,
            top1_agreement=None,
        )
        for name in dict.fromkeys(row.contender for row in stages)
    )  # fmt: skip
    return BenchReport(
        created=datetime(2026, 11, 25, tzinfo=UTC), machine=machine, bundle="tiny", embedding_space="0" * 64,
        reference="onnx-fp32", stages=stages, contenders=contenders,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cpu", "gpu", "name"),
    [
        ("AMD EPYC", None, "EPYC Zen 4, 2 cores"),
        ("AMD EPYC", "NVIDIA H100 80GB HBM3 (9.0)", "H100 SXM"),
        ("Intel Xeon", "Tesla T4 (7.5)", "T4"),
        ("Intel Xeon", "NVIDIA L4 (8.9)", "L4"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Orin (8.7)", "Orin NX 16GB"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "Orin (8.7)", "AGX Orin 64GB"),
    ],
)
def test_a_report_finds_its_device(cpu: str, gpu: str | None, name: str) -> None:
    assert device_of(report(cpu, gpu)).name == name


def test_an_unknown_device_is_named_by_the_user() -> None:
    for gpu in ("NVIDIA L40S (8.9)", "NVIDIA H100 PCIe (9.0)", "Orin (8.7)"):
        with pytest.raises(ConfigError, match=r"the table has no such device; name the nearest of Orin NX"):
            device_of(report("Intel Xeon", gpu))
    assert device_of(report("Intel Xeon", "Orin (8.7)"), "AGX Orin 64GB").bandwidth_gb_s == 204.8
    with pytest.raises(ConfigError, match="--device L44: the table has no such device"):
        device_of(report("AMD EPYC", None), "L44")


def test_measured_stages_stand_beside_their_paper(bundle_folder: Path) -> None:
    rows = paper_rows(bundle_costs(Bundle.open(bundle_folder), 1), 1)
    measured = report(
        "AMD EPYC",
        None,
        stage("onnx-fp32", "tracklet", 8.0),
        stage("onnx-fp32", "encode", 4.0, crops="hr"),
        stage("torch-eager", "enhance", 5.0),
        stage("openvino-bf16", "tracklet", 3.0, crops="hr"),
        stage("openvino-default", "tracklet", 2.0),  # its name tells no precision
        stage("onnx-fp32", "tracklet", 9.0, threads=1),  # the peaks are those of two cores
        stage("onnx-fp32", "match", 0.1),  # no graph
    )
    device = device_of(measured)
    found, left = measured_rows(measured, device, rows)
    assert left == ["onnx-fp32 with 1 threads", "openvino-default with 2 threads"]
    assert [(r.contender, r.stage, r.crops, r.measured_ms) for r in found] == [
        ("onnx-fp32", "tracklet", "lr", 8.0),
        ("onnx-fp32", "encode", "lr", 4.0),
        ("torch-eager", "enhance", "lr", 5.0),
        ("openvino-bf16", "tracklet", "hr", 3.0),
    ]
    paper = {(r.device, r.contender, r.stage, r.crops): r.bound for r in rows}
    for row, kind in zip(found, ("fp32", "fp32", "fp32", "bf16"), strict=True):
        assert row.bound == paper[device.name, f"paper-{kind}", row.stage, row.crops]
        assert row.measured_ms is not None
        assert row.reached == row.bound.roofline_ms / row.measured_ms


def test_on_a_gpu_the_cpu_contenders_stay_out(bundle_folder: Path) -> None:
    rows = paper_rows(bundle_costs(Bundle.open(bundle_folder), 1), 1)
    measured = report(
        "Intel Xeon",
        "Tesla T4 (7.5)",
        stage("tensorrt-fp16", "tracklet", 9.0, threads=8),
        stage("onnx-fp16", "tracklet", 90.0),
        cuda=("tensorrt-fp16",),
    )
    found, left = measured_rows(measured, device_of(measured), rows)
    assert [row.contender for row in found] == ["tensorrt-fp16"]
    assert left == ["onnx-fp16 with 2 threads"]


def test_a_tracklet_is_its_stages_one_after_the_other(bundle_folder: Path) -> None:
    costs = bundle_costs(Bundle.open(bundle_folder), 4)
    rows = {(r.contender, r.stage, r.crops): r.bound for r in paper_rows(costs, 4) if r.device == "T4"}
    halves: tuple[tuple[Crops, Stage], ...] = (("lr", "enhance"), ("hr", "patchify"))
    for field in ("compute_ms", "weights_ms", "activations_ms", "roofline_ms", "fused_ms", "unfused_ms"):
        for crops, first in halves:
            parts = [rows["paper-int8", first, crops], rows["paper-int8", "encode", "lr"]]
            assert getattr(rows["paper-int8", "tracklet", crops], field) == pytest.approx(
                sum(getattr(part, field) for part in parts)
            )
    one = bundle_costs(Bundle.open(bundle_folder), 1)
    assert costs["enhance"].activation_bytes == 4 * one["enhance"].activation_bytes
    batch = graph_cost(onnx.load(bundle_folder / "enhance.onnx"), 8)
    assert one["enhance"].flops == batch.flops  # a tracklet has eight crops


def test_the_command_joins_a_report_and_writes_the_page(bundle_folder: Path, tmp_path: Path) -> None:
    measured = report("AMD EPYC", None, stage("onnx-fp32", "tracklet", 8.0))
    assert list(clips_of(measured)) == list(clips_of(None)) == [1]
    (tmp_path / "bench.json").write_text(measured.model_dump_json())
    words = [
        str(bundle_folder),
        "--report",
        str(tmp_path / "bench.json"),
        "--page",
        str(tmp_path / "page.md"),
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    head, *body = done.output.splitlines()
    assert head.split()[:4] == ["device", "contender", "stage", "crops"]
    assert len(body) == sum(len(device.tflops) for device in DEVICES) * 5 + 1
    assert "8.00" in body[-1]
    assert body[-1].endswith("%")
    assert all(line.endswith("-") for line in body[:-1])  # nothing else was measured
    assert read_report(tmp_path / "bench.json") == measured
    page = (tmp_path / "page.md").read_text()
    assert "Nothing here was measured" in page
    assert all(device.source in page and device.name in page for device in DEVICES)
    assert page.count("onnx-fp32") == 1


def test_costs_are_added_to_a_report(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    measured = report("AMD EPYC", None, stage("onnx-fp32", "tracklet", 8.0))
    file.write_text(measured.model_dump_json())
    done = CliRunner().invoke(main, [str(bundle_folder), "--report", str(file), "--add-costs"])
    assert done.exit_code == 0, done.output
    after = read_report(file)
    assert after.model_copy(update={"costs": ()}) == measured
    assert [row.graph for row in after.costs] == ["enhance", "patchify", "encode"]
    encode = graph_cost(onnx.load(bundle_folder / "encode.onnx"), 1)
    assert "other processes took" not in done.output
    busy = measured.stages[0].model_copy(update={"foreign_load": 0.4})
    file.write_text(measured.model_copy(update={"stages": (busy,)}).model_dump_json())
    done = CliRunner().invoke(main, [str(bundle_folder), "--report", str(file)])
    assert "other processes took up to 40 % of the cores" in done.output
    assert after.costs[2].flops == encode.flops
    assert after.costs[2].activation_bytes == encode.activation_bytes > encode.weight_bytes
    done = CliRunner().invoke(main, [str(bundle_folder), "--add-costs"])
    assert done.exit_code == 2
    assert "name it with --report" in done.output


def test_a_wrong_device_is_one_line(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(report("Intel Xeon", None).model_dump_json())
    done = CliRunner().invoke(main, [str(bundle_folder), "--report", str(tmp_path / "bench.json")])
    assert done.exit_code == 2
    assert "roofline: error: the report is of Intel Xeon" in done.output
