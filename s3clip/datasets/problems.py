"""What is wrong with a data set, gathered so that one error tells all of it."""

from __future__ import annotations

from pathlib import Path

from s3clip_runtime.errors import DataError

SHOWN_PROBLEMS = 10
"""Problems that one error message lists; the others are only counted."""


class Problems:
    """A growing list of problems, each a sentence with the thing, the rule, the value and the cure.

    Only those that will be shown are kept: a data set of millions of frames may have as many problems.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.count = 0
        self._shown: list[str] = []

    def add(self, problem: str) -> None:
        """Note one more."""
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            self._shown.append(problem)

    def raise_if_any(self, top: Path, layout: str) -> None:
        """End the reading of `top` if there are problems.

        Raises:
            DataError: the first `SHOWN_PROBLEMS` of them, one a line, and the number of all.
        """
        if not self.count:
            return
        lines = [f"{top}: {self.count} problem(s) with the {layout} layout", *self._shown]
        if self.count > SHOWN_PROBLEMS:
            lines.append(f"and {self.count - SHOWN_PROBLEMS} more")
        raise DataError("\n  ".join(lines))
