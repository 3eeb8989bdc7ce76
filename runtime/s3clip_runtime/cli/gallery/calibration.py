"""What `s3clip-gallery calibrate` does: read labelled tracklets, embed them, calibrate, tell and draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from s3clip_runtime.bench.plots import check_installed
from s3clip_runtime.cli.gallery.embedding import CLIPS_AT_ONCE, Model
from s3clip_runtime.cli.gallery.plots import draw
from s3clip_runtime.errors import DataError
from s3clip_runtime.gallery.open_set.calibrate import calibrate
from s3clip_runtime.gallery.open_set.decision import OpenSet, PairCalibration
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.evidence import Interval
from s3clip_runtime.inference.spec import PLATFORMS
from s3clip_runtime.inference.tracklets import Tracklet, read_clip, read_tracklets

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """n tracklets whose people are known: what `calibrate` takes.

    Attributes:
        embeddings: float32 (n, dim), rows of length 1.
        people, platforms, cameras: n names.
        heights_px: n, `Clip.height_px`.
    """

    embeddings: NDArray[np.float32]
    people: tuple[str, ...]
    platforms: tuple[str, ...]
    cameras: tuple[str, ...]
    heights_px: tuple[float, ...]

    @property
    def inputs(self) -> tuple[NDArray[np.float32], Names, Names, Names, tuple[float, ...]]:
        """In the order in which `calibrate` takes them."""
        return self.embeddings, self.people, self.platforms, self.cameras, self.heights_px


def measure(
    bundle: Bundle,
    data: Path,
    *,
    fpir: float,
    seed: int,
    identities: int | None,
    device: str,
    plots: Path | None = None,
) -> OpenSet:
    """Calibrate the open-set thresholds of a bundle's embedding space.

    Args:
        bundle: whose graphs embed.
        data: folder of labelled tracklets, see `read_tracklets`; the identity must be in the path.
        fpir, seed, identities: as of `calibrate`.
        device: as of `Embedder`.
        plots: folder for a picture of each pair of platforms; None: none is drawn.

    Raises:
        ConfigError: a number is out of range, or pictures are asked for and matplotlib is missing.
        DataError: the data cannot be read, has no labels, or is too little for any threshold.
        BackendError: the graphs cannot run on the device.
        SinkError: a picture cannot be written.
    """
    if plots is not None:
        check_installed()
    labelled = embed_labelled(bundle, data, device)
    open_set = calibrate(
        *labelled.inputs, data=data.resolve().name, fpir=fpir, seed=seed, identities=identities
    )
    if plots is not None:
        for picture in draw(open_set, *labelled.inputs, folder=plots):
            click.echo(f"wrote {picture}", err=True)
    return open_set


def embed_labelled(bundle: Bundle, data: Path, device: str) -> Labelled:
    """Embed each tracklet below `data` as a run would.

    Raises:
        DataError: the data cannot be read, or a tracklet's person is not in its path.
        BackendError: the graphs cannot run on the device.
    """
    tracklets = read_tracklets(data)
    people = _people(data, tracklets)
    vectors, heights = [], []
    with (
        Model(bundle, device) as model,
        tqdm(total=len(tracklets), desc="embed", unit="tracklet", disable=None, leave=False) as bar,
    ):
        for low in range(0, len(tracklets), CLIPS_AT_ONCE):
            clips = [read_clip(tracklet) for tracklet in tracklets[low : low + CLIPS_AT_ONCE]]
            vectors.append(model.embed(clips))
            heights += [clip.height_px for clip in clips]
            bar.update(len(clips))
    return Labelled(
        np.concatenate(vectors),
        people,
        tuple(PLATFORMS[tracklet.platform] for tracklet in tracklets),
        tuple(tracklet.camera for tracklet in tracklets),
        tuple(heights),
    )


def table(open_set: OpenSet) -> str:
    """What was calibrated, a line a pair of platforms and bucket, and then what was not and why."""
    title = (
        f"# {open_set.data}: {open_set.people} people, {open_set.tracklets} tracklets, {open_set.identities} "
        f"enrolled in each of {open_set.trials} trials; target FPIR {open_set.fpir:g}"
    )
    lines = [title, *_columns([_HEAD, *map(_row, open_set.pairs)])]
    lines += [
        f"not calibrated: {refusal.query} to {refusal.gallery}, {refusal.bucket.name}: {refusal.reason}"
        for refusal in open_set.refused
    ]
    return "\n".join(lines)


_HEAD: Final = (
    "query",
    "gallery",
    "height",
    "threshold",
    "growth",
    "FPIR %",
    "FNIR %",
    "strangers",
    "enrolled",
)


def _row(pair: PairCalibration) -> tuple[str, ...]:
    return (
        pair.query,
        pair.gallery,
        pair.bucket.name,
        f"{pair.threshold:.4f}",
        f"{pair.growth_threshold:.4f}" + ("" if pair.growth_measured else "*"),
        _percent(pair.fpir),
        _percent(pair.fnir),
        f"{pair.non_mated_people} ({pair.non_mated})",
        f"{pair.mated_people} ({pair.mated})",
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.2f} ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if any("*" in line for line in lines):
        lines.append("* extrapolated: too few people to measure a tenth of the target")
    return lines


def _people(data: Path, tracklets: Sequence[Tracklet]) -> tuple[str, ...]:
    """The person of each tracklet.

    Raises:
        DataError: some have none.
    """
    nobody = [tracklet.name for tracklet in tracklets if tracklet.identity is None]
    if nobody:
        raise DataError(
            f"{data}: thresholds need to know whose each tracklet is, and the path of {len(nobody)} tells no "
            f"person, such as {nobody[0]}; lay them out as PLATFORM/PERSON/CAMERA_NAME/*.jpg"
        )
    return tuple(tracklet.identity or "" for tracklet in tracklets)
