"""Switches that nobody measured."""

from __future__ import annotations

from datetime import UTC, datetime

from s3clip_runtime.inference.evidence import HeightBucket, Interval, Switch

POINT = Interval(value=0, low=0, high=0)


def bucket(
    low: float, high: float, change: tuple[float, float] = (-0.01, 0.01), people: int = 50
) -> HeightBucket:
    """A bucket whose gain of mAP has this interval."""
    gain = Interval(value=sum(change) / 2, low=change[0], high=change[1])
    return HeightBucket(
        low_px=low, high_px=high, tracklets=60, people=people, queries=90, rank1_with=0.5, rank1_without=0.5,
        map_with=0.5, map_without=0.5, rank1_change=POINT, map_change=gain, ms_with=9, ms_without=4,
    )  # fmt: skip


def switch(max_height_px: float | None, *buckets: HeightBucket) -> Switch:
    """A switch at this height, of these buckets or of any one."""
    return Switch(
        max_height_px=max_height_px, min_gain=0.005, data="blocks", synthetic=False, tracklets=200,
        queries=150, target="onnx-fp32", device="cpu", created=datetime(2026, 11, 25, tzinfo=UTC),
        buckets=buckets or (bucket(0, 40),),
    )  # fmt: skip
