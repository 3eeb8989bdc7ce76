"""How well `encode` can be computed in 8 bits: methods, tracklets and layers of a calibration, measured.

    python -m benchmarks.full_size FULL; cp -r FULL MIXED; s3clip-calib MIXED data/synthetic-calibration
    python -m benchmarks.calibration FULL data/synthetic-calibration --calibrated MIXED --name full \\
        -o docs/results-calibration.md
    python -m benchmarks.calibration page docs/results-calibration-*.json -o docs/results-calibration.md

The first command writes docs/results-calibration-full.json, part by part; parts that are left out by `--skip`
stay as they were, so that hours can be measured in pieces. The second draws pictures and writes the page.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from benchmarks.calibration.clips import Clips, read_clips
from benchmarks.calibration.methods import BITS, measure_methods
from benchmarks.calibration.page import render
from benchmarks.calibration.records import (
    NAME,
    CalibrationReport,
    Methods,
    Setup,
    Stability,
    StudyPart,
    begun,
    best_static,
    read,
    write,
)
from benchmarks.calibration.study import check_calibrated, measure_stability, measure_study
from s3clip_calib.samples import Sample
from s3clip_runtime.bench.machine import fingerprint
from s3clip_runtime.bench.report_file import check_writable
from s3clip_runtime.cli.errors import DefaultGroup
from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import PLAIN

PARTS: Final = ("methods", "stability", "study")

_PATH = click.Path(path_type=Path)


@click.group(cls=DefaultGroup, default="measure", name="calibration")
def main() -> None:
    """Measure a calibration, and write the page."""


@main.command()
@click.argument("bundle", type=_PATH)
@click.argument("data", type=_PATH)
@click.option("--name", required=True, help="Of this measurement, lower case: a part of the file's name.")
@click.option("--about", default="", help="What weights and data are, sentences for the page.")
@click.option("--calibrated", type=_PATH, help="The bundle after s3clip-calib, for the rows of what it took.")
@click.option("--tracklets", type=click.IntRange(8), default=32, show_default=True, help="For ranges.")
@click.option("--clips", type=click.IntRange(8), default=32, show_default=True, help="To measure on.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Of the race.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every choice.")
@click.option("--skip", type=click.Choice(PARTS), multiple=True, help="Keep this part as it was.")
@click.option("-o", "--out", type=_PATH, default=Path("docs/results-calibration.md"), show_default=True)
def measure(
    bundle: Path,
    data: Path,
    name: str,
    about: str,
    calibrated: Path | None,
    tracklets: int,
    clips: int,
    rounds: int,
    seed: int,
    skip: tuple[str, ...],
    out: Path,
) -> None:
    """Measure BUNDLE on DATA, a folder of tracklets with identities; writes OUT's name with -NAME.json."""
    if re.fullmatch(NAME, name) is None:
        raise ConfigError(f"--name must be lower case words, digits and hyphens, found {name!r}; rename it")
    file = out.with_name(f"{out.stem}-{name}.json")
    check_writable(file)
    if "methods" in skip and "stability" not in skip and (not file.exists() or read(file).methods is None):
        raise ConfigError(f"{file}: holds no methods, and stability needs the best one; measure methods too")
    plain = _opened(bundle)
    mixed = None if calibrated is None else Bundle.open(calibrated)
    read_in = read_clips(plain, data, tracklets, clips, seed)
    setup = _setup(read_in, data)
    if mixed is not None:
        check_calibrated(plain, mixed, setup)
    keep = _Keeper(file, begun(file, name, about, setup))
    with tempfile.TemporaryDirectory(prefix="s3clip-calibration-") as scratch:
        if "methods" not in skip:
            keep(measure_methods(read_in, mixed, rounds, Path(scratch)))
        if "stability" not in skip:
            assert keep.report.methods is not None
            keep(measure_stability(read_in, best_static(keep.report.methods.rows)))
        for bits in () if "study" in skip else BITS:
            notes = file.with_suffix(f".{bits}.notes.jsonl")
            keep(measure_study(read_in, bits, setup, mixed, notes, Path(scratch)))


@main.command()
@click.argument("reports", type=_PATH, nargs=-1, required=True)
@click.option("-o", "--out", type=_PATH, default=Path("docs/results-calibration.md"), show_default=True)
def page(reports: tuple[Path, ...], out: Path) -> None:
    """Write OUT from JSON files, and its pictures into a folder beside it."""
    check_writable(out)
    found = [read(path) for path in reports]
    out.write_text(render(found, out.with_name(f"{out.stem}-plots")), "utf-8")


class _Keeper:
    """Puts parts into the report and the report into its file, as soon as they are there."""

    def __init__(self, file: Path, report: CalibrationReport) -> None:
        self._file = file
        self.report = report
        write(file, report)

    def __call__(self, part: Methods | Stability | StudyPart) -> None:
        self.report = self.report.with_part(part)
        write(self._file, self.report)


def _opened(folder: Path) -> Bundle:
    bundle = Bundle.open(folder)
    if "reference" not in bundle.manifest.attachments:
        raise BundleError(f"bundle {folder}: holds no reference for the gate; export it with --reference")
    return bundle


def _setup(clips: Clips, data: Path) -> Setup:
    return Setup(
        bundle=clips.bundle.manifest.name,
        encode=clips.bundle.artefact("encode", PLAIN).sha256,
        data=data.resolve().name,
        seed=clips.seed,
        calibration=_names(clips.calibration),
        tune=_names(clips.tune),
        held=_names(clips.held),
        machine=fingerprint(),
        versions={package: version(package) for package in ("s3clip", "onnx", "ml_dtypes")},
    )


def _names(samples: Sequence[Sample]) -> tuple[str, ...]:
    return tuple(sample.tracklet.name for sample in samples)


if __name__ == "__main__":
    main()
