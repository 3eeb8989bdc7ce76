"""Two reports side by side: what became slower, by times on equal machines, else by speed-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from s3clip_runtime.bench.records import BenchReport, StageRow
from s3clip_runtime.errors import DataError

SAME_SPEED: Final = 1.05
"""Machines whose matrix products differ by less count as equally fast. The best product of a second repeats
within a few percent on a quiet machine."""

Key = tuple[str, str, str, int, int]
"""Contender, stage, crops, clips, threads."""

Measure = Literal["times", "speed-ups"]


@dataclass(frozen=True, slots=True)
class Change:
    """One row that both reports have; `ratio` above 1 is slower, 1.1 by a tenth.

    `old` and `new` are median milliseconds, or median speed-ups over the reference contender.
    """

    key: Key
    old: float
    new: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All common rows.

    Attributes:
        measure: what the ratios are of.
        reason: why this one, a clause.
        changes: in the new report's order.
        left_out: rows that are in one report alone, or that have no speed-up where these are compared.
    """

    measure: Measure
    reason: str
    changes: tuple[Change, ...]
    left_out: int

    def slower(self, worst: float) -> list[Change]:
        """Those whose ratio is above `worst`."""
        return [change for change in self.changes if change.ratio > worst]


def compare(old: BenchReport, new: BenchReport) -> Comparison:
    """Compare two reports of one model.

    Times are compared where machines are equal and equally fast. Else speed-ups over the reference contender,
    which ran in the same rounds: they cannot tell whether the reference itself became slower.

    Raises:
        DataError: other embedding spaces, other references where speed-ups are needed, or no common row.
    """
    if old.embedding_space != new.embedding_space:
        raise DataError(
            f"the reports are of different models: embedding space {old.embedding_space[:12]} (bundle "
            f"{old.bundle}) and {new.embedding_space[:12]} (bundle {new.bundle}); compare runs of one bundle"
        )
    difference = _difference(old, new)
    if difference is None:
        return _compared(old, new, "times", "the machines are equal and equally fast", _p50)
    if old.reference != new.reference:
        raise DataError(
            f"{difference}, so speed-ups must be compared, but they count against {old.reference} in the old "
            f"report and {new.reference} in the new one; measure both with the same reference"
        )
    return _compared(old, new, "speed-ups", difference, _speedup)


def _compared(
    old: BenchReport,
    new: BenchReport,
    measure: Measure,
    reason: str,
    value_of: Callable[[StageRow], float | None],
) -> Comparison:
    before = {key_of(row): value for row in old.stages if (value := value_of(row)) is not None}
    after = {key_of(row): value for row in new.stages if (value := value_of(row)) is not None}
    common = [key for key in after if key in before]
    if not common:
        raise DataError(
            f"the reports have no {measure} of the same contender, stage, clips and threads in common; "
            "measure both with the same options"
        )
    changes = []
    for key in common:
        ratio = after[key] / before[key] if measure == "times" else before[key] / after[key]
        changes.append(Change(key, before[key], after[key], ratio))
    everything = {key_of(row) for report in (old, new) for row in report.stages}
    return Comparison(measure, reason, tuple(changes), len(everything) - len(common))


def key_of(row: StageRow) -> Key:
    """What a row is, without its numbers."""
    return row.contender, row.stage, row.crops, row.clips, row.threads


def _difference(old: BenchReport, new: BenchReport) -> str | None:
    """Why times of the two cannot be compared, None if they can."""
    for name in ("cpu", "cores", "gpu"):
        mine, theirs = getattr(old.machine, name), getattr(new.machine, name)
        if mine != theirs:
            return f"the machines differ ({name}: {mine} and {theirs})"
    rates = {ceiling.name: ceiling.gflops for ceiling in old.ceilings}
    for ceiling in new.ceilings:
        if ceiling.name in rates:
            ratio = ceiling.gflops / rates[ceiling.name]
            if not 1 / SAME_SPEED < ratio < SAME_SPEED:
                return (
                    f"the machine was not equally fast ({ceiling.name}: {rates[ceiling.name]:.0f} and "
                    f"{ceiling.gflops:.0f} GFLOPS)"
                )
    return None


def _p50(row: StageRow) -> float | None:
    # A row of 0 ms gives no ratio.
    return row.latency.p50_ms or None


def _speedup(row: StageRow) -> float | None:
    return row.speedup.median if row.speedup is not None and row.speedup.median > 0 else None


def lines(found: Comparison, worst: float) -> Iterator[str]:
    """The table, worst ratios first."""
    unit = "ms" if found.measure == "times" else "x"
    yield f"compared by {found.measure}: {found.reason}"
    yield (
        f"{'contender':<16}{'stage':<10}{'crops':>6}{'clips':>6}{'thr.':>5}{'old':>13}{'new':>12}{'ratio':>7}"
    )
    for change in sorted(found.changes, key=lambda change: -change.ratio):
        contender, stage, crops, clips, threads = change.key
        mark = "  SLOWER" if change.ratio > worst else ""
        yield (
            f"{contender:<16}{stage:<10}{crops:>6}{clips:>6}{threads:>5}"
            f"{change.old:>10.2f} {unit:<2}{change.new:>9.2f} {unit:<2}{change.ratio:>7.3f}{mark}"
        )
    if found.left_out:
        yield f"{found.left_out} rows without a partner were left out"
    yield _verdict(found.slower(worst), worst)


def _verdict(slower: Sequence[Change], worst: float) -> str:
    if not slower:
        return f"nothing is more than {worst:g} times slower"
    return f"{len(slower)} row{'s' * (len(slower) > 1)} more than {worst:g} times slower"
