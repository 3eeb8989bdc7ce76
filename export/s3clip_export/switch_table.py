"""A measured switch in words: the table of its buckets, and what was decided and why."""

from __future__ import annotations

from s3clip_export.switch import MIN_PEOPLE, is_useless
from s3clip_runtime.inference.manifest import HeightBucket, Switch


def describe(switch: Switch) -> str:
    """Table and decision, for people."""
    lines = [
        f"{switch.target} on {switch.device}, data {switch.data}: {switch.tracklets} tracklets, "
        f"{switch.queries} queries; with / without super-resolution",
        "LR height, px  tracklets  people       Rank-1, %          mAP, %   change of mAP (95 %)"
        "    ms a tracklet",
    ]
    for bucket in switch.buckets:
        span, change = f"{bucket.low_px:g} to {bucket.high_px:g}", bucket.map_change
        between = f"{change.value * 100:+.1f} ({change.low * 100:+.1f} to {change.high * 100:+.1f})"
        lines.append(
            f"{span:>13}  {bucket.tracklets:>9}  {bucket.people:>6}  "
            f"{bucket.rank1_with * 100:6.1f} /{bucket.rank1_without * 100:6.1f}  "
            f"{bucket.map_with * 100:6.1f} /{bucket.map_without * 100:6.1f}  {between:>21}  "
            f"{bucket.ms_with:6.1f} /{bucket.ms_without:6.1f}  {_verdict(bucket, switch)}"
        )
    lines.append(f"decided: {switch.rule}; {_reason(switch)}")
    if switch.synthetic:
        lines.append("The data is synthetic, so is the decision: measure again on crops of your own cameras.")
    return "\n".join(lines)


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
