"""How long the search in a gallery takes as it grows, by the gallery that runs use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.bench.records import GalleryRow
from s3clip_runtime.bench.rounds import interleave
from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.recognition.recogniser import MATCHES
from s3clip_runtime.gallery.records import Space

PROTOTYPES_A_PERSON: Final = 10
"""A person who was enrolled from a few tracklets."""


def measure_gallery(
    prototypes: int, dim: int, rounds: int, *, tick: Callable[[str], None] | None = None
) -> GalleryRow:
    """Time the search of one random unit vector among random ones: the worst case of nearness, no cluster.

    Args:
        prototypes: rows of the gallery, at least 1.
        dim: numbers of an embedding.
        rounds: searches.
        tick: as of `rounds.interleave`.
    """
    name = f"gallery of {prototypes}"
    with made_gallery(prototypes, dim) as gallery:
        queries = iter(unit_vectors(rounds + 1, dim, seed=1))
        samples = interleave(
            {name: lambda: gallery.search(next(queries)[None], MATCHES)}, rounds, tick=tick, rest_s=0
        ).samples[name]
        return GalleryRow(
            people=gallery.identities, prototypes=prototypes, top=MATCHES, latency=samples.latency
        )


def made_gallery(prototypes: int, dim: int) -> Gallery:
    """A gallery in memory of made-up people with `PROTOTYPES_A_PERSON` each; the caller closes it."""
    gallery = Gallery.open(None, Space("0" * 64, dim))
    try:
        vectors = unit_vectors(prototypes, dim, seed=0)
        for first in range(0, prototypes, PROTOTYPES_A_PERSON):
            rows = vectors[first : first + PROTOTYPES_A_PERSON]
            gallery.enrol(f"person-{first}", rows, platform=None, source="made up")
    except BaseException:
        gallery.close()
        raise
    return gallery


def unit_vectors(count: int, dim: int, *, seed: int) -> NDArray[np.float32]:
    """Random directions, float32 (count, dim)."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
