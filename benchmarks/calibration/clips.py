"""Clips of the measurement of calibration: chosen as `s3clip-calib` chooses, embedded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from s3clip_calib.choose import check_pool, split
from s3clip_calib.methods import Prepared, prepare
from s3clip_calib.samples import Plain, Sample, embeddings
from s3clip_calib.selection import LEAST_HELD, POOL_FACTOR, picked, some_people
from s3clip_calib.statistics import describe
from s3clip_runtime.errors import DataError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import PLAIN
from s3clip_runtime.inference.tracklets import Tracklet, read_clip, read_tracklets


class Pool:
    """Tracklets that ranges may come from. A full-size clip that was chosen once stays, 4 MB each.

    Args:
        bundle: whose float32 graphs embed them.
        tracklets: none of a person that results are measured on.
    """

    def __init__(self, bundle: Bundle, tracklets: Sequence[Tracklet]) -> None:
        self.tracklets = tuple(tracklets)
        self._bundle = bundle
        self._statistics = np.stack([describe(read_clip(tracklet)) for tracklet in tracklets])
        self._seen: dict[int, Sample] = {}

    def samples(self, rows: Sequence[int]) -> list[Sample]:
        """Embedded clips of these tracklets."""
        missing = [row for row in rows if row not in self._seen]
        if missing:
            with Plain(self._bundle) as plain:
                found = plain.samples([self.tracklets[row] for row in missing], "embed pool")
            self._seen |= dict(zip(missing, found, strict=True))
        return [self._seen[row] for row in rows]

    def k_centre(self, count: int, seed: int) -> list[int]:
        """As `s3clip-calib` chooses: by statistics those that are embedded, by both among these."""
        nothing = np.zeros((len(self.tracklets), 1), np.float32)
        few = picked(nothing, self._statistics, self.tracklets, POOL_FACTOR * count, seed)
        seen = self.samples(few)
        order = picked(embeddings(seen), self._statistics[few], [s.tracklet for s in seen], count, seed)
        return [few[place] for place in order]

    def at_random(self, count: int, seed: int) -> list[int]:
        """All alike, whatever they show."""
        drawn = np.random.default_rng(seed).choice(len(self.tracklets), count, replace=False)
        return [int(row) for row in drawn]


@dataclass(frozen=True)
class Clips:
    """Clips by their use; no person is in two of them.

    Attributes:
        bundle: whose float32 graphs are the truth.
        pool: to choose from.
        calibration: those that ranges come from.
        tune, held: those that all is measured on.
        seed: of every choice.
    """

    bundle: Bundle
    pool: Pool
    calibration: Sequence[Sample]
    tune: Sequence[Sample]
    held: Sequence[Sample]
    seed: int

    @property
    def measured(self) -> list[Sample]:
        """All that results are measured on."""
        return [*self.tune, *self.held]

    @cached_property
    def prepared(self) -> list[Prepared]:
        """The encoder, observed on the calibration clips, and with its scales moved; minutes at full size."""
        model = onnx.load(self.bundle.file("encode", PLAIN))
        return prepare(model, [sample.feed for sample in self.calibration])

    def prepared_by(self, smoothing: float | None) -> Prepared:
        """The one with this exponent."""
        return next(one for one in self.prepared if one.smoothing == smoothing)


def read_clips(bundle: Bundle, data: Path, tracklets: int, clips: int, seed: int) -> Clips:
    """Choose and embed, as `s3clip-calib` does with the same numbers.

    Args:
        bundle: with float32 graphs.
        data: see `s3clip_runtime.inference.tracklets.read_tracklets`.
        tracklets: calibration tracklets.
        clips: to measure on, both halves together.
        seed: of every choice.

    Raises:
        DataError: the data has too few tracklets or cannot be read.
    """
    pool, others = split(read_tracklets(data), seed)
    check_pool(pool, tracklets)
    sides = [some_people(side, clips // 2, seed) for side in split(others, seed)]
    if min(map(len, sides)) < LEAST_HELD:
        raise DataError(
            f"{data.name} leaves {min(map(len, sides))} tracklets to measure on, must be at least "
            f"{LEAST_HELD}; add tracklets of other people or raise --clips"
        )
    chosen = Pool(bundle, pool)
    calibration = chosen.samples(chosen.k_centre(tracklets, seed))
    with Plain(bundle) as plain:
        tune, held = (plain.samples(side, "embed measured") for side in sides)
    return Clips(bundle, chosen, calibration, tune, held, seed)
