"""A measured switch in words: the table of its buckets, and what was decided and why."""

from __future__ import annotations

from s3clip_export.switch.buckets import MIN_PEOPLE, is_useless
from s3clip_runtime.inference.evidence import HeightBucket, Interval, Switch


def describe(switch: Switch) -> str:
    """Table and decision, for people."""
    lines = [
        f"{switch.target} on {switch.device}, data {switch.data}: {switch.tracklets} tracklets, "
        f"{switch.queries} queries; with / without super-resolution, changes with 95 % intervals",
        _line(
            "LR height, px", "tracklets", "people", "Rank-1, %", "change", "mAP, %", "change",
            "ms a tracklet", "change", "",
        ),
    ]  # fmt: skip
    for bucket in switch.buckets:
        lines.append(
            _line(
                f"{bucket.low_px:g} to {bucket.high_px:g}",
                str(bucket.tracklets),
                str(bucket.people),
                f"{bucket.rank1_with * 100:.1f} /{bucket.rank1_without * 100:6.1f}",
                _between(bucket.rank1_change, 100),
                f"{bucket.map_with * 100:.1f} /{bucket.map_without * 100:6.1f}",
                _between(bucket.map_change, 100),
                f"{bucket.ms_with:.1f} /{bucket.ms_without:7.1f}",
                "-" if bucket.ms_change is None else _between(bucket.ms_change, 1),
                _verdict(bucket, switch),
            )
        )
    lines.append(f"decided: {switch.rule}; {_reason(switch)}")
    if switch.synthetic:
        lines.append("The data is synthetic, so is the decision: measure again on crops of your own cameras.")
    return "\n".join(lines)


_WIDTHS = (13, 9, 6, 14, 21, 14, 21, 16, 24, 0)


def _line(*cells: str) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _between(change: Interval, factor: float) -> str:
    value, low, high = (part * factor for part in (change.value, change.low, change.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _verdict(bucket: HeightBucket, switch: Switch) -> str:
    if switch.max_height_px is not None and bucket.high_px > switch.max_height_px:
        return "off"
    if bucket.people < MIN_PEOPLE:
        return f"on (fewer than {MIN_PEOPLE} people)"
    if is_useless(bucket, switch.min_gain):
        return "on (a taller one is)"
    return "on (a gain is measured)" if bucket.map_change.low > 0 else "on"


def _reason(switch: Switch) -> str:
    gain = f"a gain of {switch.min_gain * 100:g} points of mAP"
    if switch.max_height_px is not None:
        return f"{'above, ' if switch.max_height_px else ''}{gain} is ruled out"
    if switch.buckets[-1].people < MIN_PEOPLE:
        return "the tallest bucket has too few people to tell, give wider --buckets"
    return f"in the tallest bucket {gain} is not ruled out"
