"""One micro-batch of stage 2 at full size: seconds, memory beside the estimate, and where the time goes.

    MALLOC_MMAP_THRESHOLD_=65536 python -m benchmarks.training_step --set reid.identities=2

Runs on blurred noise with random weights, which changes neither time nor memory. Memory is the growth of this
process' peak; the estimate is what s3clip-train prints before the first step, without Adam's moments. The
variable makes the C library give freed blocks back at once: without it the peak also holds what the library
keeps for later, several times the truth where blocks are checkpointed.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.loader import write_crops
from s3clip.checkpoint import RunFolder
from s3clip.config import TrainConfig, load_config
from s3clip.datasets.catalog import read_train
from s3clip.memory import estimate_bytes
from s3clip.networks import build_networks
from s3clip.parallel import World
from s3clip.reid import ReidStage
from s3clip.train import Run, prepare_modules, reid_stage
from s3clip_runtime.bench.machine import cpu_name

CONFIG = Path(__file__).parents[1] / "configs" / "detreidx.toml"
SETTINGS = ["device=cpu", "data.kind=folder", "clip.weights=random", "sr.weights=random", "reid.epochs=1"]
OPERATIONS = 12
GIB = 2**30


def begin(config: TrainConfig, folder: Path) -> Run:
    """A new run before its first step."""
    tracklets = read_train(config.data)
    networks = build_networks(config, len({t.identity for t in tracklets}))
    return Run(config, RunFolder(folder, config), networks, tracklets, World(), config.device)


def present_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """Largest memory of this process so far; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(stage: ReidStage) -> None:
    """Print the seconds of loading and of learning, and, of a second pass, the operations that take most."""
    start = time.perf_counter()
    batch = stage._dataset[0]
    loaded = time.perf_counter()
    before = present_bytes()
    stage._phases.accumulate(batch, 1.0, np.random.default_rng(0), stage.scalers)
    done = time.perf_counter()
    print(
        f"load {loaded - start:.2f} s in this process, learn {done - loaded:.1f} s: "
        f"loading is {100 * (loaded - start) / (done - start):.1f} % without a worker"
    )
    print(f"measured growth of the peak: {(peak_bytes() - before) / GIB:.2f} GiB")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:  # after the memory, for it takes its own
        stage._phases.accumulate(batch, 1.0, np.random.default_rng(0), stage.scalers)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:OPERATIONS]:
        print(f"{100 * row.self_cpu_time_total / total:5.1f} %  {row.key}")


@click.command()
@click.option("--set", "overrides", multiple=True, metavar="A.B=V")
def main(overrides: tuple[str, ...]) -> None:
    """Measure the first micro-batch, in this process, with all cores."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "crops"
        write_crops(root)
        config = load_config(CONFIG, [*SETTINGS, f"data.root={root}", "compute.precision=fp32", *overrides])
        run = begin(config, Path(folder) / "run")
        prepare_modules(run)
        stage = reid_stage(run)
        networks = (run.networks.model, run.networks.heads)
        kept = sum(p.nbytes for network in networks for p in network.parameters())
        phases = stage._phases
        kept += 8 * sum(p.numel() for p in [*phases.sr, *phases.visual.values()])
        settings = config.reid
        print(
            f"{cpu_name()}, {torch.get_num_threads()} threads; P={settings.identities} K={settings.triplets} "
            f"T={settings.clip_length}, {config.compute.precision}, "
            f"checkpointed activations: {config.compute.checkpoint_activations}"
        )
        measure(stage)
        # Last, for it builds the networks once more, which the peak would show.
        estimate = estimate_bytes(config, len(run.labels)) - kept
        print(f"estimated growth: {estimate / GIB:.2f} GiB (activations and gradients)")


if __name__ == "__main__":
    main()
