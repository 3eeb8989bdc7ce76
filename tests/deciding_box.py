"""A box that decides on looks at the people of a crowd, as a process of its own that can be killed.

    python deciding_box.py ADDRESS BOX SEED

It says `ready`, and then, for each line with people's numbers that it reads, one line of JSON: what it
answered. The line `free` sets it off deciding on whom it likes until it is killed.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from made_looks import SPACE, leaning, look, opened

from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.deciding import Recognised, Rules
from s3clip_runtime.gallery.recognition.recogniser import Recogniser
from s3clip_runtime.gallery.records import Seen

CROWD = 90
RULES = Rules(unknowns=True, promote_after=3)


class Box:
    """Sees people of the crowd, each time in a new track and from a little another side.

    Args:
        gallery: stays the caller's.
        name: its only camera is named like it.
    """

    def __init__(self, gallery: Gallery, name: str, seed: int) -> None:
        self.recogniser = Recogniser(gallery, RULES)
        self.longest_s = 0.0
        self._name = name
        self._rng = np.random.default_rng(seed)
        self._tracks: Iterator[int] = itertools.count()
        self._run = f"{name} {seed}"

    def decide(self, people: Sequence[int]) -> list[str | None]:
        """The names of these people, by one batch of final looks."""
        start_s = time.monotonic()
        found = self.recogniser.recognise([self._look(person) for person in people])
        self.longest_s = max(self.longest_s, time.monotonic() - start_s)
        return [_name(each) for each in found]

    def some(self) -> list[int]:
        """Whom it sees next: one to four people."""
        return [int(i) for i in self._rng.choice(CROWD, int(self._rng.integers(1, 5)), replace=False)]

    def _look(self, person: int) -> Seen:
        side = int(self._rng.integers(CROWD, SPACE.dim))
        vector = leaning({person: float(self._rng.uniform(0.85, 0.97))}, side)
        return look(vector, str(next(self._tracks)), camera=self._name, run=self._run, clock="stream")


def _name(found: Recognised) -> str | None:
    return None if found.identity is None else found.identity.name


def main(address: str, name: str, seed: str) -> None:
    with opened(address, name) as gallery:
        box = Box(gallery, name, int(seed))
        print("ready", flush=True)
        for line in sys.stdin:
            while line == "free\n":
                box.decide(box.some())
            names = box.decide(json.loads(line))
            told = {"names": names, "unwritten": box.recogniser.unwritten, "longest_s": box.longest_s}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
