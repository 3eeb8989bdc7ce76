"""tmp"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.gallery.database import Halves
from s3clip_runtime.gallery.records import Match


def exact_scores(vectors: Halves, query: NDArray[np.float32]) -> NDArray[np.float64]:
    return (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)


class Prototypes:
    def __init__(self, dim: int) -> None:
        self._d: dict[str, tuple[Halves, Sequence[str | None]]] = {}

    @property
    def identities(self) -> list[str]:
        return list(self._d)

    def put(self, identity: str, vectors: Halves, platforms: Sequence[str | None]) -> None:
        self._d[identity] = (vectors, platforms)

    def remove(self, identity: str) -> None:
        self._d.pop(identity, None)

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
        out = []
        for q in queries:
            ms = []
            for n, (v, p) in self._d.items():
                s = exact_scores(v, q)
                i = int(np.argmax(s))
                ms.append(Match(n, float(s[i]), p[i]))
            out.append(sorted(ms, key=lambda m: (-m.score, m.identity))[:k])
        return out
