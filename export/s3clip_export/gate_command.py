"""s3clip-bench gate: measures the switch point of super-resolution on data, and writes it into the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from s3clip.config import DataKind
from s3clip_runtime.cli.errors import needs_extra
from s3clip_runtime.errors import ConfigError

_PATH = click.Path(path_type=Path)


@click.command
@click.argument("bundle", type=_PATH)
@click.argument("data", type=_PATH)
@click.option("--data-kind", type=click.Choice(get_args(DataKind)), help="Layout of DATA; default the run's.")
@click.option(
    "--buckets", metavar="PX,...", help="Rising heights between the buckets; default quantiles of DATA."
)
@click.option("--tracklets", type=click.IntRange(2), help="About how many to measure on; default all.")
@click.option(
    "--min-gain",
    type=click.FloatRange(-1, 1),
    default=0.005,  # half a point: super-resolution is most of what a full-size look takes
    show_default=True,
    metavar="X",
    help="Gain of mAP, of 1, that must be possible for super-resolution to stay on.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--target", metavar="NAME", help="Which graphs of the bundle; chosen by the device else.")
@click.option(
    "--plot", type=_PATH, metavar="FILE", help="Picture, PNG, SVG or PDF; default BUNDLE-switch.png."
)
def gate(
    bundle: Path,
    data: Path,
    data_kind: DataKind | None,
    buckets: str | None,
    tracklets: int | None,
    min_gain: float,
    device: str,
    target: str | None,
    plot: Path | None,
) -> None:
    """Measure on the test split of DATA up to which height of a person super-resolution is worth its time,
    write that into BUNDLE, and draw it."""
    edges = _heights(buckets)
    with needs_extra("export"):
        from s3clip_export.switch.measure import data_of, measure_switch, write_switch
        from s3clip_export.switch.picture import check_picture, write_picture
        from s3clip_export.switch.table import describe
        from s3clip_runtime.inference.bundle import Bundle
        from s3clip_runtime.inference.manifest import Target

    folder = bundle.resolve()
    picture = plot or folder.with_name(f"{folder.name}-switch.png")
    check_picture(picture)
    opened = Bundle.open(bundle)
    found = measure_switch(
        opened,
        data_of(opened, data, data_kind),
        device=device,
        target=None if target is None else Target.parse(target),
        edges_px=edges,
        count=tracklets,
        min_gain=min_gain,
    )
    write_switch(opened, found)
    click.echo(describe(found))
    write_picture(found, picture)
    click.echo(f"bundle {bundle}: the switch is in its manifest, its picture in {picture}")


def _heights(text: str | None) -> list[float]:
    try:
        return [] if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--buckets {text}: heights in pixels are numbers, like 24,32,48") from None
