"""The evaluation page: one HTML file that loads nothing, for people to read and to send."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from s3clip.evaluation.failures import Failure
from s3clip.evaluation.figures import bucket_name
from s3clip.evaluation.plots import cmc_plot, height_plot
from s3clip_runtime.inference.spec import CLIP_LENGTH

TEMPLATE = "page.html.j2"


def render_page(report: Mapping[str, Any], failures: Mapping[str, list[Failure]]) -> str:
    """The page of an evaluation.

    Args:
        report: what evaluation.json holds.
        failures: the worst queries by protocol.
    """
    # Names of folders and cameras are other people's text: escaping is on for all of it.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent}
    environment.globals |= {"bucket_name": bucket_name, "clip_length": CLIP_LENGTH}
    template = environment.from_string(files("s3clip.evaluation").joinpath(TEMPLATE).read_text("utf-8"))
    results = report["protocols"]
    return template.render(
        report=report, failures=failures, cmc=cmc_plot(results), heights=height_plot(results)
    )


def _percent(value: float) -> str:
    return f"{value:.1f}"
