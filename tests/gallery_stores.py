"""Galleries in both stores, and what tests of them share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import SPACE

from s3clip_runtime.gallery.gallery import Gallery
from s3clip_runtime.gallery.records import Match, Space

DIM = 32
Vectors = NDArray[np.float32]
Place = str | Path


def units(rng: np.random.Generator, count: int, dim: int = DIM) -> Vectors:
    raw = rng.normal(size=(count, dim))
    vectors: Vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return vectors


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a new gallery may be made."""
    return tmp_path / "g" if request.param == "sqlite" else str(request.getfixturevalue("dsn"))


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """As many places of one store as a test wants, by name."""
    if request.param == "sqlite":
        return lambda name: tmp_path / name
    server = request.getfixturevalue("postgres")
    made: dict[str, str] = {}
    return lambda name: made.setdefault(name, server.dsn())


def opened(place: Place | None, space: str = SPACE, dim: int = DIM, key_file: Path | None = None) -> Gallery:
    return Gallery.open(place, Space(space, dim), key_file=key_file)


def filled(place: Place | None, people: int = 3) -> tuple[Gallery, dict[str, Vectors]]:
    """Person i has i + 1 prototypes."""
    rng = np.random.default_rng(1)
    truth = {f"person {i}": units(rng, i + 1) for i in range(people)}
    gallery = opened(place)
    for name, vectors in truth.items():
        gallery.enrol(name, vectors, platform="ground", source="camera 1")
    return gallery, truth


def brute_force(truth: dict[str, Vectors], query: Vectors, k: int) -> list[Match]:
    """The slow obvious search, of prototypes as they are kept."""
    scores = [
        Match(
            name, float((vectors.astype(np.float16).astype(np.float64) * query).sum(axis=1).max()), "ground"
        )
        for name, vectors in truth.items()
    ]
    return sorted(scores, key=lambda match: (-match.score, match.identity))[:k]
