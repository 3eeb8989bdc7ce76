"""Reports with planted numbers."""

from __future__ import annotations

from datetime import UTC, datetime

from s3clip_runtime.bench.records import (
    BenchReport,
    CamerasRow,
    Ceiling,
    ContenderRow,
    CostRow,
    Crops,
    GalleryRow,
    Latency,
    Machine,
    Spread,
    Stage,
    StageRow,
)

REFERENCE = "onnx-fp32"


def latency(p50_ms: float) -> Latency:
    """A latency whose tail is planted as 2 and 3 times its median."""
    return Latency(first_ms=9 * p50_ms, p50_ms=p50_ms, p95_ms=2 * p50_ms, p99_ms=3 * p50_ms, samples=20)


def stage_row(
    contender: str = REFERENCE,
    stage: Stage = "tracklet",
    p50_ms: float = 100.0,
    *,
    clips: int = 1,
    threads: int = 1,
    crops: Crops = "lr",
    speedup: float | None = None,
) -> StageRow:
    """A row; `speedup` is given with quartiles of 10 % around it."""
    spread = None if speedup is None else Spread(median=speedup, low=0.9 * speedup, high=1.1 * speedup)
    return StageRow(
        contender=contender,
        stage=stage,
        clips=clips,
        threads=threads,
        latency=latency(p50_ms),
        cpu_ms=p50_ms,
        tracklets_per_s=1000 * clips / p50_ms,
        speedup=spread,
        foreign_load=0.0,
        crops=crops,
    )


def contender_row(contender: str = REFERENCE, cosine_min: float | None = 0.99999) -> ContenderRow:
    """A row without energy."""
    return ContenderRow(
        contender=contender,
        device="cpu",
        file_bytes=400_000_000,
        cold_start_ms=1234.0,
        peak_memory_bytes=900_000_000,
        energy_j=None,
        energy_source="no counter: planted",
        cosine_mean=cosine_min,
        cosine_min=cosine_min,
        top1_agreement=1.0,
    )


def made_machine(cpu: str = "Planted CPU") -> Machine:
    """A machine of four cores."""
    return Machine(
        cpu=cpu,
        cores=4,
        isa=("avx2", "avx512_vnni"),
        memory_bytes=8 * 2**30,
        system="Planted Linux x86_64",
        python="3.11.7",
        versions={"numpy": "2.0", "onnxruntime": "1.24"},
        gpu=None,
        driver=None,
    )


def made_report(
    *rows: StageRow, cpu: str = "Planted CPU", gflops: float = 100.0, space: str = "ab" * 32
) -> BenchReport:
    """A report of these rows, or of one contender and the reference with one of everything else."""
    return BenchReport(
        created=datetime(2026, 11, 30, tzinfo=UTC),
        machine=made_machine(cpu),
        bundle="planted",
        embedding_space=space,
        reference=REFERENCE,
        data="planted clips",
        synthetic=True,
        refused={"tensorrt-fp16": "there is no | GPU"},
        stages=rows or (stage_row(), stage_row("onnx-fp16", p50_ms=50.0, speedup=2.0)),
        contenders=(contender_row(), contender_row("onnx-fp16", 0.9995)),
        galleries=(GalleryRow(people=100, prototypes=1000, top=5, latency=latency(0.5)),),
        cameras=(
            CamerasRow(
                contender=REFERENCE,
                cameras=2,
                frame_rate=7.0,
                frames_per_s=30.0,
                sustained=True,
                cores_used=1.5,
                dropped=0,
            ),
        ),
        ceilings=(Ceiling(name="fp32 matmul, threads 1", gflops=gflops),),
        costs=(CostRow(graph="encode", nodes=10, flops=2e11, weight_bytes=4e8, activation_bytes=1e9),),
    )
