"""The full-size model with random weights and planted outliers, and a bundle of it to calibrate.

    python -m benchmarks.full_size BUNDLE

The bundle is exported as any other: float32, float16 and bfloat16 graphs, proven on people of the synthetic
world. Takes four minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from benchmarks.outliers import plant_outliers
from s3clip.config import DataSettings, SyntheticSettings, load_config
from s3clip.models.model import S3Clip, build_model
from s3clip_export.origin import Origin
from s3clip_export.tiers import BF16
from s3clip_export.write import Wanted, export

CONFIG = Path(__file__).parents[1] / "configs" / "seeded-full.toml"

WORLD = SyntheticSettings(seed=31, train_identities=140, test_identities=40, tracklets_per_view=1, frames=8)
"""360 tracklets: half of them are a pool of more than 128, so that so many can be chosen."""

PROVEN_ON = 16
"""Tracklets that the bundle is proven on; all of them stay in it."""


def full_size_model() -> S3Clip:
    """In eval mode, the same every time."""
    config = load_config(CONFIG)
    torch.manual_seed(config.seed)
    model = build_model(config).eval().requires_grad_(False)
    plant_outliers(model)
    return model


def world() -> DataSettings:
    """The synthetic world that it is proven and calibrated on; drawn when it is read."""
    return DataSettings(root=Path("data/synthetic-calibration"), synthetic=WORLD)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def main(bundle: Path) -> None:
    """Export the bundle."""
    config = load_config(CONFIG)
    origin = Origin(full_size_model(), config, {"model": "random weights, planted outliers"})
    wanted = Wanted(fp16=True, tiers=(BF16,), reference=PROVEN_ON, tracklets=PROVEN_ON)
    for proof in export(origin, bundle, data=world(), wanted=wanted):
        click.echo(f"{proof.target}: cosine min {proof.cosine_min:.7f}")


if __name__ == "__main__":
    main()
