"""What a fault did: figures, and whether they meet the criterion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Bench:
    """What a fault needs: an empty folder of its own, a bundle, and clips of at least two cameras."""

    folder: Path
    bundle: Path
    clips: Path


@dataclass
class Outcome:
    """Figures of one fault.

    Attributes:
        figures: what was measured, as text, in order.
        broken: criteria that were missed.
    """

    figures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def note(self, what: str, value: object) -> None:
        """A figure without a bound."""
        self.figures.append(f"{what} {value:.2f}" if isinstance(value, float) else f"{what} {value}")

    def at_most(self, what: str, value: float, limit: float) -> None:
        """A figure that must not be larger."""
        self._bound(what, value, "<=", limit, value <= limit)

    def at_least(self, what: str, value: float, limit: float) -> None:
        """A figure that must not be smaller."""
        self._bound(what, value, ">=", limit, value >= limit)

    def must(self, what: str, holds: bool) -> None:
        """A fact."""
        self.figures.append(f"{what}: {'yes' if holds else 'NO'}")
        if not holds:
            self.broken.append(what)

    def _bound(self, what: str, value: float, sign: str, limit: float, holds: bool) -> None:
        self.figures.append(f"{what} {value:.4g} ({sign} {limit:g}){'' if holds else ' MISSED'}")
        if not holds:
            self.broken.append(f"{what} {value:.4g}, not {sign} {limit:g}")
