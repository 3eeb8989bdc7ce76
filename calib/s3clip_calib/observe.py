"""What goes through a graph's layers on real clips: statistics that add up, clip by clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from s3clip_calib.layers import Layer
from s3clip_calib.run import open_graph
from s3clip_runtime.errors import BackendError

_SHIFT = 18
"""Bits of a float32 that are dropped to get the number of its bin: 32 bins an octave, 3 % wide."""

BINS = 1 << (31 - _SHIFT)

_INFINITY = 0x7F800000
"""Bits of the float32."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Absolute values of one activation tensor.

    Attributes:
        counts: int64 (BINS,), how many fell into each bin; see `edges`.
        channel_max: float32 (C,), the largest of each channel.
    """

    counts: NDArray[np.int64]
    channel_max: NDArray[np.float32]

    @property
    def largest(self) -> float:
        """The largest of all."""
        return float(self.channel_max.max(initial=0.0))

    def __add__(self, other: Observed) -> Observed:
        """What both saw together: the order of clips does not matter."""
        return Observed(self.counts + other.counts, np.maximum(self.channel_max, other.channel_max))


def edges() -> NDArray[np.float64]:
    """Lower edges of the bins and the upper one of the last, float64 (BINS + 1,); bin 0 begins at 0."""
    bits = np.arange(BINS + 1, dtype=np.uint64) << np.uint64(_SHIFT)
    # Bits behind those of infinity are no sizes: their bins are never filled.
    bits = np.asarray(np.minimum(bits, np.uint64(_INFINITY)), np.uint32)
    return np.asarray(bits.view(np.float32), np.float64)


def of_values(values: NDArray[np.float32], *, channel_axis: int) -> Observed:
    """Statistics of one array of finite numbers."""
    size = np.abs(values)
    bins = np.ascontiguousarray(size).reshape(-1).view(np.uint32) >> np.uint32(_SHIFT)
    others = tuple(axis for axis in range(size.ndim) if axis != channel_axis % size.ndim)
    return Observed(np.bincount(bins, minlength=BINS), size.max(axis=others))


def observe(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    threads: int | None = None,
) -> list[dict[str, Observed]]:
    """Run a float32 graph and look at what its layers read.

    Args:
        model: the graph; it is left as it is.
        layers: of `find_layers`.
        feeds: inputs by name, one for each clip.
        threads: of one operator; None takes all CPUs that this process may use.

    Returns:
        For each feed, activation tensor to its statistics. Those of several clips add up.

    Raises:
        BackendError: the graph does not run, or an activation is not finite.
    """
    axes = {layer.activation: -1 if layer.channels_last else 1 for layer in layers}
    inputs = {value.name for value in model.graph.input}
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in axes if name not in inputs)
    found = []
    with open_graph(probed, threads=threads) as run:
        for feed in feeds:
            values = {**feed, **run(feed)}
            found.append({name: _checked(name, values[name], axis) for name, axis in axes.items()})
    return found


def total(observed: Iterable[Mapping[str, Observed]]) -> dict[str, Observed]:
    """Statistics of several clips together; at least one."""
    first, *others = observed
    result = dict(first)
    for one in others:
        for name, statistics in one.items():
            result[name] = result[name] + statistics
    return result


def _checked(name: str, values: NDArray[np.float32], axis: int) -> Observed:
    if not np.isfinite(values).all():
        raise BackendError(
            f"activation {name} must be finite, found NaN or infinity; check the crops and the bundle with "
            "s3clip-doctor"
        )
    return of_values(values, channel_axis=axis)
