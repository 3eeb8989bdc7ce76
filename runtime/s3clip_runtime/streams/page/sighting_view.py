"""One sighting on the page."""

from __future__ import annotations

from urllib.parse import quote

from s3clip_runtime.gallery.records import Match
from s3clip_runtime.streams.events import Enhancement, SightingEvent, Verdict
from s3clip_runtime.streams.looks import Reason
from s3clip_runtime.streams.page.board import Seen
from s3clip_runtime.streams.page.markup import Html, fill, join, tag
from s3clip_runtime.streams.page.wording import number

_ENHANCEMENTS: dict[Enhancement, str] = {
    "used": "super-resolved, no picture kept",
    "hr": "high resolution: super-resolution is not needed",
    "switch": "taller than the bundle's switch point: not super-resolved",
    "budget": "not super-resolved: the latency budget was missed",
    "off": "super-resolution is turned off",
}
_REASONS: dict[Reason, str] = {
    "growing": "more frames came",
    "gone": "the person left",
    "long": "the tracklet was cut",
    "end": "the source ended",
    "stop": "the program was stopped",
    "lost": "the camera was lost",
}
_NO_MATCHES: dict[Verdict, str] = {
    "match": "its matches are not kept",
    "unknown": "the gallery is empty",
    "uncalibrated": "the gallery is uncalibrated",
    "no_gallery": "no gallery",
    "not_matched": "the gallery could not be asked",
    "not_embedded": "the program was stopped before there was time to embed it",
}


def sighting_row(seen: Seen) -> Html:
    """Crops before and after super-resolution, where and when, the decision, the best matches."""
    event = seen.event
    steps = ", ".join(f"{step} {number(value, 1)}" for step, value in event.latency_ms.items())
    return fill(
        "sighting.html",
        before=_strip(event, "before", "as the camera saw it", len(seen.before)),
        after=_strip(event, "after", "super-resolved", len(seen.after))
        if seen.after
        else tag("p", _ENHANCEMENTS[event.enhancement], "placeholder"),
        css=event.decision,
        decision=event.decision.replace("_", " "),
        name=_name(event),
        camera=event.camera,
        track=event.track,
        when=_when(event),
        frames=event.frames,
        height=number(event.height_px, 0),
        resolution=event.resolution.upper(),
        look=event.look,
        reason=_REASONS[event.reason] + (", still in view" if event.partial else ""),
        latency=number(event.latency_ms.get("total"), 0),
        steps=steps,
        matches=_matches(event, seen.matches),
    )


def _strip(event: SightingEvent, what: str, caption: str, count: int) -> Html:
    return fill(
        "strip.html", address=quote(event.event_id, safe=""), what=what, caption=caption, width=66 * count - 2
    )


def _when(event: SightingEvent) -> str:
    if event.first_time is None or event.last_time is None:
        return f"{number(event.first_s, 1)} to {number(event.last_s, 1)} s"
    # Both look like 2026-11-25T09:12:34.125Z: the day once, the times to the second.
    return f"{event.first_time[:10]} {event.first_time[11:19]} to {event.last_time[11:19]} UTC"


def _name(event: SightingEvent) -> str:
    if event.identity is None:
        return ""
    return f"{event.identity} (candidate)" if event.person == "candidate" else event.identity


def _matches(event: SightingEvent, matches: tuple[Match, ...]) -> Html:
    if not matches:
        return tag("p", _NO_MATCHES[event.decision], "placeholder")
    bars = join(_bar(match, event.threshold, match.identity == event.identity) for match in matches)
    return join((tag("ol", bars, "matches"), tag("p", _threshold(event), "threshold")))


def _threshold(event: SightingEvent) -> str:
    if event.threshold is None:
        return "no threshold: the gallery is uncalibrated"
    chance = "" if event.probability is None else f", right with probability {number(event.probability, 2)}"
    return f"threshold {number(event.threshold, 2)}{chance}"


def _bar(match: Match, threshold: float | None, chosen: bool) -> Html:
    """A cosine as a bar from 0 to 1 with a mark at the threshold; below 0 it is empty."""
    return fill(
        "match.html",
        css="chosen" if chosen else "other",
        name=match.identity,
        score=number(match.score, 3),
        value=f"{_percent(match.score):.1f}",
        limit=Html("")
        if threshold is None
        else Html(f'<rect class="limit" x="{_percent(threshold) - 0.5:.1f}" width="1" height="8"/>'),
    )


def _percent(cosine: float) -> float:
    return 100 * min(1.0, max(0.0, cosine))
