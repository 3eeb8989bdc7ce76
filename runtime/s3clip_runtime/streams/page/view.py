"""The page as HTML: one document without scripts of its own; page.js only fetches it again."""

from __future__ import annotations

import time
from collections.abc import Mapping

from s3clip_runtime.streams.events import STEPS
from s3clip_runtime.streams.page.board import Board
from s3clip_runtime.streams.page.camera_view import camera_card
from s3clip_runtime.streams.page.health import troubles
from s3clip_runtime.streams.page.markup import Html, fill, join, tag
from s3clip_runtime.streams.page.sighting_view import sighting_row
from s3clip_runtime.streams.page.wording import duration, moment, number
from s3clip_runtime.streams.status import GalleryStatus, OutputStatus, Quantiles, RunStatus

FIRST_SIGHTINGS = 12
"""Sightings on the page before `?sightings=all`: a browser without scripts loads their pictures every 5 s."""


def page(status: RunStatus, board: Board, *, all_sightings: bool) -> bytes:
    """The whole document in UTF-8.

    Args:
        status: of the run, now.
        board: newest frames and sightings.
        all_sightings: show all that the board keeps, not only the newest `FIRST_SIGHTINGS`.
    """
    now = time.time()
    wrong = troubles(status)
    seen = board.sightings()
    shown = seen if all_sightings else seen[:FIRST_SIGHTINGS]
    document = fill(
        "page.html",
        title=status.bundle,
        health="bad" if wrong else "good",
        health_word="degraded" if wrong else "ok",
        troubles=join(tag("li", one) for one in wrong),
        facts=_facts(status, now),
        cameras=join(camera_card(one, board.newest(one.name), now) for one in status.cameras)
        or tag("p", "No camera is configured.", "empty"),
        sightings=join(sighting_row(one) for one in shown) or tag("p", "Nobody has been seen yet.", "empty"),
        more=_more(len(shown), len(seen), all_sightings),
        latency=_latency(status.latency_ms),
        outputs=join(_output(one) for one in status.outputs)
        or Html('<tr><td colspan="5" class="empty">No output is configured.</td></tr>'),
        now=moment(now),
    )
    return document.encode("utf-8", "replace")


def _facts(status: RunStatus, now: float) -> Html:
    shed = ", ".join(f"{count} {stage}" for stage, count in status.shed.items() if count)
    enhancing = "on" if status.enhancing else "off"
    facts: tuple[tuple[str, object, object], ...] = (
        ("run", status.run_id, ""),
        ("bundle", status.bundle, ""),
        ("device", status.device, ""),
        ("up", duration(now - status.started_unix_s), f"since {moment(status.started_unix_s)} UTC"),
        ("queue", f"{status.queue} of {status.queue_limit}", f"shed: {shed}" if shed else "nothing shed"),
        ("super-resolution", tag("span", enhancing, f"switch {enhancing}"), status.enhance_reason),
        ("gallery", *_gallery(status.gallery)),
    )
    return join(fill("fact.html", name=name, value=value, note=note) for name, value, note in facts)


def _gallery(gallery: GalleryStatus | None) -> tuple[str, str]:
    """How many people, and in the note what their thresholds are and what the run did."""
    if gallery is None:
        return "none", ""
    if gallery.threshold is not None:
        notes = [f"threshold {number(gallery.threshold, 2)} as set"]
    elif gallery.calibrated_unix_s is not None:
        notes = [f"calibrated on {gallery.calibration}, {moment(gallery.calibrated_unix_s)} UTC"]
    else:
        notes = ["uncalibrated: nobody is named"]
    counts = {
        "unknown people met": gallery.met,
        "views grown": gallery.grown,
        "matches vetoed by time": gallery.vetoed,
        "looks not written": gallery.unwritten,
    }
    notes += [f"{count:,} {what}" for what, count in counts.items() if count]
    return f"{gallery.identities:,} identities", "; ".join(notes)


def _more(shown: int, kept: int, all_sightings: bool) -> Html:
    if all_sightings:
        return Html('<a href="./">only the newest</a>')
    if shown == kept:
        return Html("")
    return Html(f'<a href="?sightings=all">all {kept} that are kept</a>')


def _latency(latency_ms: Mapping[str, Quantiles]) -> Html:
    steps = [step for step in (*STEPS, "total") if step in latency_ms]
    if not steps:
        return Html('<tr><td colspan="5" class="empty">No look has been taken yet.</td></tr>')
    # All bars share one scale, so that the step that costs the time is seen at once.
    longest = max((latency_ms[step].p99 for step in steps), default=0.0) or 1.0
    return join(_step(step, latency_ms[step], longest) for step in steps)


def _step(step: str, values: Quantiles, longest_ms: float) -> Html:
    return fill(
        "step.html",
        step=step,
        css="total" if step == "total" else "",
        middle=number(100 * values.p50 / longest_ms, 1),
        high=number(100 * values.p95 / longest_ms, 1),
        p50=number(values.p50, 1),
        p95=number(values.p95, 1),
        p99=number(values.p99, 1),
    )


def _output(output: OutputStatus) -> Html:
    return fill(
        "output.html",
        name=output.name,
        delivered=f"{output.delivered:,}",
        waiting=f"{output.waiting:,}",
        waiting_css="warn" if output.waiting else "",
        lost=f"{output.lost:,}",
        lost_css="bad" if output.lost else "",
        state=output.error or "ok",
        state_css="bad" if output.error else "good",
    )
