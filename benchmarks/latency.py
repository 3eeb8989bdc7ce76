"""Speed at full size: s3clip's targets beside what people run without it, in the same interleaved rounds.

    python -m benchmarks.latency -o docs/results.json; s3clip-bench page docs/results.json -o docs/results.md

Random weights with planted outliers on crops of the synthetic world: times hold for any weights, and the
accuracy beside PyTorch orders the targets, but certifies no trained checkpoint. Each contender has a process
of its own and is asked in turn; ratios are those within a round, with their medians and quartiles.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter

import click
import torch
from tqdm import tqdm

from benchmarks.apart import Apart
from benchmarks.full_size import full_size_model
from benchmarks.opponents import (
    OwnGraphs,
    export_plain,
    onnxruntime_opponent,
    openvino_opponent,
    torch_opponent,
)
from benchmarks.roofline import bundle_costs, cost_rows
from s3clip.config import DataSettings, SyntheticSettings
from s3clip.models.model import S3Clip
from s3clip_export.proof.verify import Trial, begin_trial, prove
from s3clip_export.tiers import BF16, INT8, add_tiers
from s3clip_export.write import export_graphs
from s3clip_runtime.bench.ceilings import matmul_ceiling
from s3clip_runtime.bench.cold import cold_start
from s3clip_runtime.bench.load import own_cpu_s
from s3clip_runtime.bench.machine import fingerprint
from s3clip_runtime.bench.records import BenchReport, Ceiling, ContenderRow, StageRow
from s3clip_runtime.bench.report_file import check_writable, write_report
from s3clip_runtime.bench.rounds import interleave
from s3clip_runtime.bench.stages import ClipEmbedder, Contender, Setting, Tick, graph_rows
from s3clip_runtime.bench.table import lines
from s3clip_runtime.inference.bundle import Bundle, attachment_of, write_manifest
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.evidence import Proof
from s3clip_runtime.inference.gate import broken_bounds
from s3clip_runtime.inference.manifest import PLAIN, Target
from s3clip_runtime.inference.reference import write_reference

TARGETS = (PLAIN, BF16, INT8)
EAGER = "torch-eager"

SIDE = 1536
"""Of the square matrices whose products are the ceilings."""

PEOPLE = 20
"""Of the synthetic world, each with an aerial and a ground tracklet: 40 to agree about nearest neighbours."""


@click.command()
@click.option("--rounds", default=12, show_default=True)
@click.option("--threads", default="1,2", show_default=True, help="Numbers of CPU threads.")
@click.option("--people", default=PEOPLE, show_default=True)
@click.option("-o", "--out", default=Path("docs/results.json"), type=click.Path(path_type=Path))
def main(rounds: int, threads: str, people: int, out: Path) -> None:
    """Export, prove, race, and write the report."""
    check_writable(out)
    model = full_size_model()
    with tempfile.TemporaryDirectory(prefix="s3clip-latency-") as name:
        folder = Path(name)
        trial = begin_trial(model, _world(people), 2 * people, folder)
        bundle = _bundle(model, folder, trial)
        numbers = [int(word) for word in threads.split(",")]
        report = _race(bundle, model, trial, numbers, rounds)
    write_report(out, report)
    for line in lines(report):
        print(line)


def _world(people: int) -> DataSettings:
    made = SyntheticSettings(
        seed=11, train_identities=2, test_identities=people, tracklets_per_view=1, frames=8
    )
    return DataSettings(root=Path(f"data/synthetic-latency-{people}"), synthetic=made)


def _bundle(model: S3Clip, folder: Path, trial: Trial) -> Bundle:
    """All targets, with their proofs; one that breaks a bound is told and still raced."""
    manifest = export_graphs(model, folder, name="full size, random weights", training={})
    manifest = add_tiers(folder, manifest, (BF16, INT8))
    write_reference(trial.file, trial.reference)
    manifest = manifest.changed(attachments={"reference": attachment_of(trial.file)})
    write_manifest(folder, manifest)
    proofs = []
    for target in tqdm(TARGETS, desc="prove", unit="target"):
        proof, _ = prove(folder, target, trial)
        print(
            f"{target}: {proof.model_dump_json(exclude={'bounds'})}; breaks {broken_bounds(proof) or 'none'}"
        )
        proofs.append(proof)
    write_manifest(folder, manifest.changed(proofs=tuple(proofs)))
    return Bundle.open(folder)


def _race(bundle: Bundle, model: S3Clip, trial: Trial, threads: list[int], rounds: int) -> BenchReport:
    plain = export_plain(model, bundle.folder)
    lr = next(clip for clip in trial.reference.clips if not clip.hr)
    hr = next(clip for clip in trial.reference.clips if clip.hr)
    stages: list[StageRow] = []
    refused: dict[str, str] = {}
    with tqdm(desc="race", unit="call") as bar:

        def tick(_: str) -> None:
            bar.update()

        for count in threads:
            race = Setting("lr", 1, count, rounds, EAGER)
            compiled = count == max(threads)
            stages += _tracklets(bundle, plain, (lr, hr), race, compiled, refused, tick)
            stages += _graphs_apart(bundle.folder, lr, hr, replace(race, reference=str(PLAIN)))
    return BenchReport(
        created=datetime.now(UTC),
        machine=fingerprint(),
        bundle=bundle.manifest.name,
        embedding_space=bundle.manifest.embedding_space,
        reference=EAGER,
        data=f"{len(trial.reference.clips)} clips of the synthetic world",
        synthetic=True,
        refused=refused,
        stages=tuple(stages),
        contenders=tuple(_contender(bundle, proof, max(threads)) for proof in bundle.manifest.proofs),
        ceilings=tuple(ceiling for count in threads for ceiling in _ceilings(count)),
        costs=cost_rows(bundle_costs(bundle, 1)),
    )


def _tracklets(
    bundle: Bundle,
    plain: dict[bool, Path],
    clips: tuple[Clip, Clip],
    setting: Setting,
    compiled: bool,
    refused: dict[str, str],
    tick: Tick,
) -> list[StageRow]:
    """Whole tracklets of all contenders, one LR clip and one HR clip a call; `compiled` takes minutes."""
    count = setting.threads
    makers: dict[str, Callable[[], ClipEmbedder]] = {
        EAGER: partial(_torch, count, compiled=False),
        "onnxruntime-default": partial(onnxruntime_opponent, plain, count),
        "openvino-default": partial(openvino_opponent, plain, count),
        "openvino-fp32": partial(OwnGraphs, bundle.folder, "fp32", count),
    }
    for target in TARGETS:
        makers[str(target)] = partial(_embedder, bundle.folder, target, count)
    with ExitStack() as opened:
        field: dict[str, Apart] = {}
        for name, make in makers.items():
            try:
                field[name] = opened.enter_context(Apart(make))
            except RuntimeError as error:
                refused[name] = str(error)
        sharp = _rows(field, clips[1], replace(setting, crops="hr"), tick)
        if compiled:
            field["torch-compile"] = opened.enter_context(Apart(partial(_torch, count, compiled=True)))
        return [*_rows(field, clips[0], setting, tick), *sharp]


def _rows(field: Mapping[str, Apart], clip: Clip, setting: Setting, tick: Tick) -> list[StageRow]:
    calls = {name: partial(one.embed, [clip]) for name, one in field.items()}
    return setting.rows("tracklet", interleave(calls, setting.rounds, tick=tick, cpu_clock=own_cpu_s))


def _torch(threads: int, *, compiled: bool) -> ClipEmbedder:
    torch.set_num_threads(threads)
    return torch_opponent(full_size_model(), compiled=compiled)


def _embedder(folder: Path, target: Target, threads: int) -> ClipEmbedder:
    return Embedder(Bundle.open(folder), device="cpu", target=target, threads=threads)


def _graphs_apart(folder: Path, lr: Clip, hr: Clip, setting: Setting) -> list[StageRow]:
    """The rows of single graphs, from a process without PyTorch's threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_graphs, folder, lr, hr, setting).result(timeout=3600)


def _graphs(folder: Path, lr: Clip, hr: Clip, setting: Setting) -> list[StageRow]:
    contenders = [Contender(target, "cpu") for target in TARGETS]
    return graph_rows(Bundle.open(folder), contenders, {"lr": [lr], "hr": [hr]}, setting, lambda _: None)


def _contender(bundle: Bundle, proof: Proof, threads: int) -> ContenderRow:
    target = Target.parse(proof.target)
    cold = cold_start(bundle.folder, target, "cpu", threads, starts=1)
    return ContenderRow(
        contender=proof.target,
        device="cpu",
        file_bytes=sum(a.bytes for a in bundle.manifest.artefacts if a.target == target),
        cold_start_ms=cold.start_ms,
        peak_memory_bytes=cold.peak_bytes,
        energy_j=None,
        energy_source="not asked",
        cosine_mean=proof.cosine_mean,
        cosine_min=proof.cosine_min,
        top1_agreement=proof.top1_agreement,
    )


def _ceilings(threads: int) -> Iterator[Ceiling]:
    """The machine's own products: numpy's float32, and PyTorch's in bfloat16."""
    yield matmul_ceiling(threads)
    torch.set_num_threads(threads)
    for kind in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(SIDE, SIDE).to(kind) for _ in range(2))
        name = f"{str(kind).removeprefix('torch.')} matmul of torch, threads {threads}"
        yield Ceiling(name=name, gflops=2 * SIDE**3 / _best_s(partial(torch.matmul, a, b)) / 1e9)


def _best_s(call: Callable[[], object], times: int = 20) -> float:
    best = float("inf")
    for _ in range(times):
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
