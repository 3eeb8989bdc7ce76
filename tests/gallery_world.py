"""What tests of s3clip-gallery share: the command and pictures of people that the tiny bundle tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from s3clip_runtime.cli.gallery import main


def save_person(folder: Path, seed: int, count: int) -> Path:
    """Pictures of upright stripes with noise: the tiny bundle's embedding follows the stripes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    stripes = np.tile(rng.permutation([0, 0, 0, 250, 250, 125]).repeat([3, 3, 2, 3, 3, 2]), 2)
    for i in range(count):
        pixels = np.clip(stripes[None, :, None] + rng.integers(0, 9, (64, 32, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def call(*words: str | Path, env: dict[str, str] | None = None) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, [str(word) for word in words], env=env)


def told(*words: str | Path, env: dict[str, str] | None = None) -> list[str]:
    """Lines of the standard output of a command that works."""
    done = call(*words, env=env)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def refused(*words: str | Path, env: dict[str, str] | None = None) -> str:
    """The one line by which a command refuses."""
    done = call(*words, env=env)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("s3clip-gallery: error: ")]
    assert len(lines) == 1, done.output
    return lines[0]


def rows(lines: list[str]) -> list[list[str]]:
    """Cells of the lines of a list that are no comments."""
    return [line.split("\t") for line in lines if not line.startswith("#")]
