"""One camera on the page."""

from __future__ import annotations

from urllib.parse import quote

from s3clip_runtime.streams.page.board import Newest
from s3clip_runtime.streams.page.markup import Html, fill, join, tag
from s3clip_runtime.streams.page.wording import NOTHING, duration, moment, number
from s3clip_runtime.streams.status import CameraStatus, FeedStatus, PictureFault

_FAULTS: dict[PictureFault, str] = {
    "frozen": "The picture is frozen: it is the same for seconds.",
    "black": "The picture is black.",
    "grey": "The picture is partly grey: data is missing.",
}


def camera_card(camera: CameraStatus, newest: Newest | None, now_unix_s: float) -> Html:
    """The card of one camera: picture, state, warnings, numbers."""
    source = camera.source
    return fill(
        "camera.html",
        name=camera.name,
        state=source.state.value,
        platform=camera.platform,
        kind="stream" if camera.live else "file",
        since=duration(now_unix_s - source.since_unix_s),
        since_time=moment(source.since_unix_s),
        picture=_picture(camera, newest),
        warnings=join(tag("li", one) for one in _warnings(camera)),
        numbers=_numbers(camera),
    )


def _picture(camera: CameraStatus, newest: Newest | None) -> Html:
    if newest is None:
        return tag("p", "no picture yet", "placeholder")
    return fill(
        "picture.html",
        name=camera.name,
        address=quote(camera.name, safe=""),
        version=newest.version,
        age=f"{number(newest.age_s, 1)} s old" if newest.age_s < 60 else f"{duration(newest.age_s)} old",
        ratio=_ratio(camera.source.size),
    )


def _ratio(size: tuple[int, int] | None) -> Html:
    """Width and height, so that the place of the picture is there before it is loaded."""
    return Html("") if size is None else Html(f'width="{int(size[1])}" height="{int(size[0])}"')


def _warnings(camera: CameraStatus) -> list[str]:
    source = camera.source
    found = [source.reason, camera.error or ""]
    found += [_FAULTS[fault] for fault in source.faults]
    if source.clock_skew_s is not None:
        side = "ahead of" if source.clock_skew_s > 0 else "behind"
        found.append(
            f"The camera's clock is {duration(abs(source.clock_skew_s))} {side} ours and is not used; "
            "set it by NTP."
        )
    return list(dict.fromkeys(one for one in found if one))


def _numbers(camera: CameraStatus) -> Html:
    source = camera.source
    drops = ", ".join(f"{count:,} {cause}" for cause, count in source.drops.items() if count)
    size = NOTHING if source.size is None else f"{source.size[1]} × {source.size[0]}"
    short = f" ({camera.too_short:,} too short)" if camera.too_short else ""
    shed = f" ({camera.shed:,} shed)" if camera.shed else ""
    processed = "" if camera.fps is None else f" ({number(camera.fps, 1)} processed)"
    values: tuple[tuple[str, str, str], ...] = (
        ("fps", number(source.fps, 1) + processed, ""),
        ("lag", number(source.lag_s, 2, "s"), ""),
        ("size", size, ""),
        ("clock", source.clock if source.received else NOTHING, ""),
        ("received", f"{source.received:,}", ""),
        ("processed", f"{camera.frames:,}", ""),
        ("dropped", drops or "none", "warn" if drops else ""),
        ("reconnects", f"{source.reconnects:,}", ""),
        ("restarts", f"{source.restarts:,}", ""),
        ("open tracks", f"{camera.tracks_open:,}", ""),
        ("tracklets", f"{camera.tracklets:,}{short}", ""),
        ("sightings", f"{camera.events:,}{shed}", "warn" if camera.shed else ""),
    )
    values += () if camera.boxes is None else (_lines(camera.boxes),)
    return join(fill("number.html", name=name, value=value, css=css) for name, value, css in values)


def _lines(boxes: FeedStatus) -> tuple[str, str, str]:
    unused = boxes.late + boxes.unmatched
    said = f"{boxes.lines:,} lines ({boxes.late:,} late, {boxes.unmatched:,} without a frame)"
    return "boxes sent", said, "warn" if unused else ""
