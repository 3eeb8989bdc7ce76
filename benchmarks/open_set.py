"""Whether calibrated thresholds hold for people whom no calibration saw, in many random splits.

    python -m benchmarks.open_set BUNDLE --people 320 --known 60 --fpir 0.05
    python -m benchmarks.open_set BUNDLE --people 320 --known 150 --fpir 0.02

Draws a world of people whom no model was trained on, embeds them as a run would, and splits them: thresholds
are calibrated on the known ones, and the share of strangers that match is measured among the others. Prints
the tables of docs/open-set.md. Drawn people: it shows that the method holds, and nothing about real ones.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import click
import numpy as np

from s3clip.synthetic import write_dataset
from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.cli.errors import Command
from s3clip_runtime.cli.gallery.calibration import Labelled, embed_labelled
from s3clip_runtime.gallery.open_set.calibrate import calibrate
from s3clip_runtime.gallery.open_set.decision import ALL_HEIGHTS, PairCalibration
from s3clip_runtime.gallery.open_set.estimates import person_weights
from s3clip_runtime.gallery.open_set.trials import Looks, draw_enrolled, search_pair
from s3clip_runtime.inference.bundle import Bundle

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unseen:
    """One threshold of one split, and the share of unseen strangers that match at it."""

    pair: PairCalibration
    fpir: float

    @property
    def covered(self) -> bool:
        """It lies within the interval that the calibration told."""
        return self.pair.fpir.low <= self.fpir <= self.pair.fpir.high


def unseen(everybody: Labelled, known: int, fpir: float, splits: int) -> list[Unseen]:
    """Each pair of platforms, of all heights, in each of `splits` splits into known and unseen people."""
    names = sorted(set(everybody.people))
    found = []
    for split in range(splits):
        chosen = set(np.random.default_rng(split).permutation(names)[:known].tolist())
        open_set = calibrate(*part_of(everybody, chosen).inputs, data="known", fpir=fpir, seed=split)
        others = part_of(everybody, set(names) - chosen)
        found += [
            Unseen(pair, strangers_rate(others, pair))
            for pair in open_set.pairs
            if pair.bucket.name == ALL_HEIGHTS
        ]
    return found


def part_of(labelled: Labelled, people: set[str]) -> Labelled:
    """The tracklets of some people."""
    rows = [row for row, person in enumerate(labelled.people) if person in people]

    def chosen(values: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(values[row] for row in rows)

    return Labelled(
        labelled.embeddings[rows],
        chosen(labelled.people),
        chosen(labelled.platforms),
        chosen(labelled.cameras),
        chosen(labelled.heights_px),
    )


def strangers_rate(labelled: Labelled, pair: PairCalibration) -> float:
    """FPIR of a threshold among people none of whom it was made of, enrolled ones and strangers."""
    looks = Looks.of(*labelled.inputs)
    enrolled = draw_enrolled(looks.people, round(pair.identities), 20, seed=9)
    found = search_pair(looks, pair.query, pair.gallery, enrolled)
    assert found is not None
    strangers = found.within(~found.mated)
    return float(person_weights(strangers.person)[strangers.score >= pair.threshold].sum())


def table_of(found: list[Unseen]) -> str:
    """A row a pair of platforms: means over the splits."""
    pairs = defaultdict[str, list[Unseen]](list)
    for one in found:
        pairs[f"{one.pair.query}, {one.pair.gallery}"].append(one)
    lines = [
        "| query, gallery | threshold | FPIR of unseen people, % | within the interval, % | FNIR, % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, ones in {**pairs, "all": found}.items():
        rows = [(one.pair.threshold, one.fpir, one.covered, one.pair.fnir.value) for one in ones]
        threshold, fpir, covered, fnir = np.mean(rows, axis=0).tolist()
        shares = f"{100 * fpir:.1f} | {100 * covered:.1f} | {100 * fnir:.0f}"
        lines.append(f"| {name} | {threshold:.4f} | {shares} |")
    return "\n".join(lines)


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--people", type=click.IntRange(2), default=320, show_default=True, help="Drawn.")
@click.option("--known", type=click.IntRange(1), default=60, show_default=True, help="To calibrate on.")
@click.option("--fpir", type=click.FloatRange(0, 1), default=0.05, show_default=True)
@click.option("--splits", type=click.IntRange(1), default=40, show_default=True)
@click.option("--seed", default=23, show_default=True, help="Of the world.")
def main(bundle: Path, people: int, known: int, fpir: float, splits: int, seed: int) -> None:
    """Measure, and print the table."""
    with TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        write_dataset(root, seed=seed, train_identities=1, test_identities=people, frames=4)
        everybody = embed_labelled(Bundle.open(bundle), root / "test", "cpu")
    click.echo(
        f"{people} drawn people, {known} to calibrate and {people - known} unseen, target {100 * fpir:g} %, "
        f"{splits} splits, on {cpu_name()}:\n"
    )
    click.echo(table_of(unseen(everybody, known, fpir, splits)))


if __name__ == "__main__":
    main()
