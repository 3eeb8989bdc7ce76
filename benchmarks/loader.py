"""Throughput of the input pipeline alone: JPEG crops to the micro-batches of stage 2.

    python -m benchmarks.loader

Writes JPEG crops of 64 to 256 pixels, then loads micro-batches as training does, with worker processes, and
for reference one after the other in this process. A crop counts once for each time it is decoded; an HR crop
becomes two inputs (HR and h2l). Indexing is timed first, with an empty size cache and with a full one. The
profile names what one process spends its time on.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from s3clip.batching import TripletSampler
from s3clip.config import DataSettings
from s3clip.datasets.catalog import read_train
from s3clip.triplets import MicroBatch, TripletDataset
from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.inference.spec import CLIP_LENGTH

IDENTITIES, TRACKLETS, FRAMES = 24, 2, 16
HEIGHTS = {"ground": (130, 256), "aerial": (64, 127)}
QUALITY = 90
TARGET = 1500
"""Crops a second that keep one modern GPU busy."""

Sample = tuple[int, int]


def write_crops(root: Path) -> None:
    """Crops with the spectrum of pictures, not of noise: noise would take twice as long to decode."""
    rng = np.random.default_rng(0)
    for platform, (low, high) in HEIGHTS.items():
        for identity in range(IDENTITIES):
            for number in range(TRACKLETS):
                folder = root / "train" / platform / f"{identity:04d}" / f"cam{number}_{number:04d}"
                folder.mkdir(parents=True)
                for frame in range(FRAMES):
                    height = int(rng.integers(low, high + 1))
                    small = rng.integers(0, 256, (height // 6, height // 12, 3), dtype=np.uint8)
                    picture = Image.fromarray(small).resize((height // 2, height), Image.Resampling.BICUBIC)
                    grain = rng.normal(0, 4, (height, height // 2, 3))
                    pixels = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{frame:06d}.jpg", quality=QUALITY)


def dataset(root: Path, epochs: int) -> TripletDataset:
    """The paper's micro-batches: P=4, K=2, T=8."""
    tracklets = read_train(DataSettings(root=root, size_cache=root / "sizes.sqlite"))
    labels = {identity: i for i, identity in enumerate(sorted({t.identity for t in tracklets}))}
    return TripletDataset(
        TripletSampler(tracklets, 4, 2, 0),
        epochs,
        labels,
        clip_length=CLIP_LENGTH,
        flip=0.5,
        antialias=True,
        direct=False,
        seed=0,
    )


def index_rates(root: Path) -> tuple[float, float]:
    """Frames a second of indexing: headers read for the first time, and sizes looked up."""
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        tracklets = read_train(DataSettings(root=root, size_cache=root / "index.sqlite"))
        rates.append(sum(map(len, tracklets)) / (time.perf_counter() - start))
    return rates[0], rates[1]


def crops_of(batch: MicroBatch) -> int:
    """Crops that were decoded for a micro-batch."""
    return len(batch.labels) * CLIP_LENGTH * 2


def throughput(data: TripletDataset, workers: int) -> float:
    """Crops a second after the first micro-batch, which starts the workers."""
    loader: DataLoader[MicroBatch] = DataLoader(data, batch_size=None, num_workers=workers)
    crops, start = 0, 0.0
    for number, batch in enumerate(loader):
        if number:
            crops += crops_of(batch)
        else:
            start = time.perf_counter()
    return crops / (time.perf_counter() - start)


def profile(data: TripletDataset, count: int) -> str:
    """The ten costliest functions of loading `count` micro-batches in this process."""
    profiler = cProfile.Profile()
    with profiler:
        for index in range(count):
            data[index]
    stats = pstats.Stats(profiler)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:10]  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.stats.values())  # type: ignore[attr-defined]
    lines = [f"{100 * row[2] / total:5.1f} %  {key[2]} ({Path(key[0]).name})" for key, row in rows]
    return "\n".join(lines)


@click.command()
@click.option("--workers", default="0,1,2", show_default=True, help="Loader processes, by turns.")
@click.option("--rounds", default=3, show_default=True)
def main(workers: str, rounds: int) -> None:
    """Measure in interleaved rounds and print medians with the spread."""
    counts = [int(word) for word in workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        write_crops(Path(folder))
        cold, warm = index_rates(Path(folder))
        data = dataset(Path(folder), epochs=3)
        found: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(rounds):
            for count in counts:
                found[count].append(throughput(data, count))
        print(f"{cpu_name()}; JPEG crops 64 to 256 px high, quality {QUALITY}; target {TARGET} crops/s")
        print(f"indexing: {cold:.0f} new frames/s, {warm:.0f} known frames/s (one process)")
        for count, rates in found.items():
            print(
                f"{count} worker(s): {np.median(rates):6.0f} crops/s ({min(rates):.0f} to {max(rates):.0f})"
            )
        print("profile of one process:")
        print(profile(data, 10))


if __name__ == "__main__":
    main()
