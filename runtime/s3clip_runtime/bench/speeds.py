"""What a report says of the fastest target, put into the bundle for those who choose one later."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from s3clip_runtime.bench.records import BenchReport, Crops
from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference.bundle import MANIFEST_FILE, Bundle, write_manifest
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.evidence import Speed
from s3clip_runtime.inference.manifest import SCHEMA_VERSIONS, Manifest
from s3clip_runtime.inference.records import read_record
from s3clip_runtime.inference.speeds import Place, with_speeds
from s3clip_runtime.inference.targets import choose_target


def speeds_of(report: BenchReport) -> list[Speed]:
    """One a contender: whole tracklets, one a call, with all usable cores.

    Args:
        report: of targets alone, measured on this machine.

    Raises:
        BackendError: a GPU measured, and none answers now.
        ConfigError: such calls are not in the report.
    """
    cores = usable_cpus()
    medians: dict[tuple[str, Crops], float] = {
        (row.contender, row.crops): row.latency.p50_ms
        for row in report.stages
        if (row.stage, row.clips, row.threads) == ("tracklet", 1, cores)
    }
    if not medians:
        raise ConfigError(
            f"a target is chosen by calls of one tracklet on all {cores} cores, and there were none; "
            f"measure with --clips 1 and --threads {cores} among the settings"
        )
    return [
        Speed(
            target=row.contender,
            **Place.here(row.device)._asdict(),
            lr_ms=medians[row.contender, "lr"],
            hr_ms=medians[row.contender, "hr"],
            measured=report.created,
        )
        for row in report.contenders
    ]


def record_speeds(bundle: Bundle, measured: Sequence[Speed]) -> Bundle:
    """Write speeds into the manifest, in the place of older ones of this machine.

    Raises:
        BundleError: the manifest cannot be written, or the graphs have changed since `bundle` was opened.
    """
    # Read again: minutes have passed, and what others wrote in them must stay.
    current = read_record(bundle.folder / MANIFEST_FILE, Manifest, *SCHEMA_VERSIONS)
    if current.artefacts != bundle.manifest.artefacts:
        raise BundleError(
            f"bundle {bundle.folder}: its graphs became other ones while they were measured; measure again"
        )
    manifest = with_speeds(current, measured)
    write_manifest(bundle.folder, manifest)
    return dataclasses.replace(bundle, manifest=manifest)


def winner_text(bundle: Bundle, measured: Sequence[Speed]) -> str:
    """Which of the speeds is the best, and whether it decides what will be run on this machine.

    Args:
        bundle: with these speeds in its manifest.
        measured: at least one.

    Raises:
        BackendError: onnxruntime is needed for the choice and missing.
    """
    best = min(measured, key=lambda speed: speed.lr_ms + speed.hr_ms)
    choice = choose_target(bundle, "auto", None)
    times = f"{best.lr_ms:.1f} ms an LR tracklet and {best.hr_ms:.1f} an HR one"
    fact = f"fastest here: {best.target} on {best.device}, {times}"
    if (str(choice.target), choice.device) == (best.target, best.device):
        return f"{fact}; --device auto will take it"
    return f"{fact}; --device auto will take {choice.target} on {choice.device}: {choice.reason}"
