"""Bounds of a graph's time on a device: compute, traffic, and the roofline that both make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.roofline_peaks import DEVICES, Device, Precision
from s3clip_export.cost import GraphCost, NodeCost, OpCost
from s3clip_runtime.bench.records import Crops, Stage
from s3clip_runtime.inference.manifest import Role

IN_INT8 = frozenset({"encode"})
"""Graphs whose linear layers an int8 target runs in int8: super-resolution in int8 fails the gate."""

_WHOLE_ROWS = frozenset({"Softmax", "LayerNormalization", "RMSNormalization", "GroupNormalization"})

STAGES: tuple[tuple[Stage, Crops, tuple[Role, ...]], ...] = (
    ("enhance", "lr", ("enhance",)),
    ("patchify", "hr", ("patchify",)),
    ("encode", "lr", ("encode",)),
    ("tracklet", "lr", ("enhance", "encode")),
    ("tracklet", "hr", ("patchify", "encode")),
)
"""Stages of a report and the graphs that run in them, one after the other."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Milliseconds of a call on paper.

    Attributes:
        compute_ms: products at the device's peak; other arithmetic runs beside them and is bound by traffic.
        weights_ms: reading every weight once.
        activations_ms: each operator reading and writing its activations in memory, as if nothing were fused.
        roofline_ms: the longer of compute and the traffic of weights, inputs and outputs; no runtime is
            faster.
        fused_ms: as `unfused_ms` of products, Softmax and normalisations alone: a runtime that fuses all
            other nodes into them, but keeps each of them a kernel of its own.
        unfused_ms: sum over the nodes of the longer of compute and traffic of each: a runtime that fuses
            nothing and loses nothing else.
    """

    compute_ms: float
    weights_ms: float
    activations_ms: float
    roofline_ms: float
    fused_ms: float
    unfused_ms: float

    def __add__(self, other: Bound) -> Bound:
        """Of two graphs, one after the other."""
        return Bound(
            self.compute_ms + other.compute_ms,
            self.weights_ms + other.weights_ms,
            self.activations_ms + other.activations_ms,
            self.roofline_ms + other.roofline_ms,
            self.fused_ms + other.fused_ms,
            self.unfused_ms + other.unfused_ms,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A stage on a device: its bounds, and what was measured if it was.

    Attributes:
        contender: `paper-` and a precision, or the measured contender's name.
        measured_ms: p50 of the call's latency in the report; None on paper.
    """

    device: str
    contender: str
    stage: Stage
    crops: Crops
    clips: int
    bound: Bound
    measured_ms: float | None = None

    @property
    def reached(self) -> float | None:
        """Share of the roofline that was reached, 0 to 1."""
        return None if self.measured_ms is None else self.bound.roofline_ms / self.measured_ms


def bound(cost: GraphCost, device: Device, precision: Precision, *, int8_linears: bool = True) -> Bound:
    """Of one graph.

    Args:
        cost: of its float32 file: 16 bits halve its bytes, 8 bits quarter those of a linear layer's weights.
            Activations keep 16 bits beside int8 weights: scales are computed from them.
        device: that has this precision.
        int8_linears: whether int8 reaches this graph; else it runs in 16 bits.
    """
    rest = device.half if precision == "int8" else precision
    linear: Precision = precision if int8_linears else rest
    share = 1.0 if rest == "fp32" else 0.5

    def compute(part: OpCost) -> float:
        other = part.product_flops - part.linear_flops
        return (part.linear_flops / device.tflops[linear] + other / device.tflops[rest]) * 1e-9

    def weights(part: OpCost) -> float:
        width = 0.25 if linear == "int8" and part.linear_flops else share
        return part.weight_bytes * width / device.bandwidth_gb_s * 1e-6

    def activations(bytes_: int) -> float:
        return bytes_ * share / device.bandwidth_gb_s * 1e-6

    def alone(part: OpCost) -> float:
        return max(compute(part), weights(part) + activations(part.activation_bytes))

    compute_ms = sum(map(compute, cost.by_node))
    weights_ms = sum(map(weights, cost.by_node))
    return Bound(
        compute_ms,
        weights_ms,
        activations(cost.activation_bytes),
        max(compute_ms, weights_ms + activations(cost.boundary_bytes)),
        sum(map(alone, filter(_is_kernel, cost.by_node))),
        sum(map(alone, cost.by_node)),
    )


def _is_kernel(node: NodeCost) -> bool:
    """Whether what the node reads must be there as a whole before it writes."""
    return node.product_flops > 0 or node.op in _WHOLE_ROWS


def paper_rows(costs: Mapping[Role, GraphCost], clips: int) -> list[Row]:
    """Every stage on every device in every precision that it has.

    Args:
        costs: of the three graphs at this many clips.
        clips: of a call.
    """
    rows = []
    for device in DEVICES:
        for precision in device.tflops:
            for stage, crops, roles in STAGES:
                parts = [
                    bound(costs[role], device, precision, int8_linears=role in IN_INT8) for role in roles
                ]
                total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
                rows.append(Row(device.name, f"paper-{precision}", stage, crops, clips, total))
    return rows
