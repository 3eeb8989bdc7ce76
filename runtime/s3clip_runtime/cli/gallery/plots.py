"""Pictures of a calibration: where strangers and right matches score, and FNIR against FPIR."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.plots import check_installed
from s3clip_runtime.errors import SinkError
from s3clip_runtime.gallery.open_set.calibrate import searched
from s3clip_runtime.gallery.open_set.decision import ALL_HEIGHTS, OpenSet, PairCalibration
from s3clip_runtime.gallery.open_set.estimates import person_weights
from s3clip_runtime.gallery.open_set.trials import Found, Looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS: Final = 60
_STRANGERS, _RIGHT = "#ee6677", "#4477aa"


def draw(
    open_set: OpenSet,
    embeddings: NDArray[np.float32],
    people: Sequence[str],
    platforms: Sequence[str],
    cameras: Sequence[str],
    heights_px: Sequence[float],
    *,
    folder: Path,
) -> list[Path]:
    """A PNG of each pair of platforms whose pooled entry is calibrated; the searches are those it came from.

    Args:
        open_set: what `calibrate` gave for the others, which are as of it.
        folder: made if it is new; pictures of an earlier run are replaced one by one, whole.

    Raises:
        ConfigError: matplotlib is missing.
        SinkError: the folder cannot be written.
    """
    check_installed()
    from matplotlib.figure import Figure

    looks = Looks.of(embeddings, people, platforms, cameras, heights_px)
    pooled = {(pair.query, pair.gallery): pair for pair in open_set.pairs if pair.bucket.name == ALL_HEIGHTS}
    written = []
    for found, query, gallery in searched(looks, open_set.identities, open_set.seed):
        pair = pooled.get((query, gallery))
        if pair is not None:
            figure = Figure(figsize=(10, 4.2), layout="constrained")
            scores, trade = figure.subplots(1, 2)
            _draw_scores(scores, found, pair)
            _draw_trade(trade, found, pair)
            figure.suptitle(f"{query} searches {gallery}: {open_set.data}, {open_set.identities} enrolled")
            written.append(folder / f"open-set-{query}-{gallery}.png")
            _save(figure, written[-1])
    return written


def _draw_scores(axes: Axes, found: Found, pair: PairCalibration) -> None:
    right = found.within(found.mated & (found.found == found.person))
    edges = np.linspace(found.score.min(), max(found.score.max(), pair.threshold) + 1e-3, _BINS).tolist()
    for part, colour, label in (
        (found.within(~found.mated), _STRANGERS, "strangers"),
        (right, _RIGHT, "enrolled, right"),
    ):
        if len(part.score):
            axes.hist(
                part.score, edges, weights=person_weights(part.person), color=colour, alpha=0.6, label=label
            )
    axes.axvline(pair.threshold, color="black", label=f"threshold {pair.threshold:.3f}")
    axes.axvline(pair.growth_threshold, color="black", ls=":", label=f"growth {pair.growth_threshold:.3f}")
    chances = axes.twinx()
    chances.plot(edges, [pair.probability(edge) for edge in edges], color="grey")
    chances.set_ylabel("probability of being right (grey)")
    chances.set_ylim(0, 1)
    axes.set_xlabel("cosine of the best match")
    axes.set_ylabel("share of each kind")
    axes.legend(loc="upper left", fontsize=8)


def _draw_trade(axes: Axes, found: Found, pair: PairCalibration) -> None:
    strangers, enrolled = found.within(~found.mated), found.within(found.mated)
    at = np.quantile(found.score, np.linspace(0, 1, 400))
    hit = enrolled.found == enrolled.person
    wrong_rate = [_rate(strangers, strangers.score >= level) for level in at]
    missed_rate = [_rate(enrolled, ~(hit & (enrolled.score >= level))) for level in at]
    axes.plot(wrong_rate, missed_rate, color=_RIGHT)
    axes.errorbar(
        pair.fpir.value,
        pair.fnir.value,
        xerr=[[pair.fpir.value - pair.fpir.low], [pair.fpir.high - pair.fpir.value]],
        yerr=[[pair.fnir.value - pair.fnir.low], [pair.fnir.high - pair.fnir.value]],
        color="black",
        marker="o",
        capsize=3,
        label="threshold, 95 % intervals",
    )
    axes.set_xscale("log")
    axes.set_xlabel("FPIR: strangers who match")
    axes.set_ylabel("FNIR: enrolled people who are missed")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _rate(found: Found, chosen: NDArray[np.bool_]) -> float:
    return float(person_weights(found.person)[chosen].sum())


def _save(figure: Figure, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(draft, format="png", dpi=120)
        draft.replace(path)
    except OSError as error:
        raise SinkError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be a file
            draft.unlink()
