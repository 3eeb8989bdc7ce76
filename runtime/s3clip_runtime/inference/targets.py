"""Which graphs of a bundle are run, and on which device: decided once, and said with its reason."""

from __future__ import annotations

from typing import Final, NamedTuple

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends.cuda import driver_problem
from s3clip_runtime.inference.backends.onnxruntime import choose_device
from s3clip_runtime.inference.backends.openvino import openvino_problem
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import PLAIN, Target

ENGINES: Final = (Target("tensorrt", "fp16"), Target("tensorrt", "fp32"))
"""TensorRT's targets, the preferred one first."""

TIERS_ON_CPU: Final = (Target("openvino", "int8"), Target("openvino", "bf16"))
"""OpenVINO's targets, the preferred one first; the plain graphs come after them.

At full size int8 is the faster one, 544 ms a tracklet against 750. For the demo's tiny model it is not, 25
against 21: s3clip-bench shows it.
"""

GRAPHS_ON_CUDA: Final = (Target("onnx", "fp16"), PLAIN)
"""ONNX Runtime's targets on a GPU, the preferred one first."""


class Choice(NamedTuple):
    """What is run where; `reason` is a clause for the log."""

    target: Target
    device: str
    reason: str


def choose_target(bundle: Bundle, device: str, target: Target | None) -> Choice:
    """Decide what an embedder runs. What was asked is obeyed or refused, never replaced.

    Args:
        bundle: offers the targets.
        device: "auto", "cpu" or "cuda".
        target: None leaves the choice to the device: "cpu" takes the first that the bundle holds and this
            CPU can compute of `TIERS_ON_CPU`, or else the plain graphs; "cuda" the first that the bundle
            holds of `ENGINES` and `GRAPHS_ON_CUDA`. "auto" takes an engine if the bundle holds one and
            there is a driver, even if the engine then turns out to be built for another machine: that is an
            error to be told and not to be hidden.

    Raises:
        BackendError: the device is unknown or cannot run the target, or onnxruntime is needed and missing.
        BundleError: the bundle holds no graphs for the target.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BackendError(f"device {device!r} is unknown; use auto, cpu or cuda")
    if target is not None:
        return _as_asked(bundle, device, target)
    if device == "cpu":
        return _on_cpu(bundle, "as asked")
    if device == "cuda":
        found = _first(bundle, *ENGINES, *GRAPHS_ON_CUDA)
        return Choice(found, device, f"as asked; {found} is the fastest that the bundle holds for it")
    return _automatic(bundle)


def _as_asked(bundle: Bundle, device: str, target: Target) -> Choice:
    bundle.artefact("encode", target)
    if target.backend == "onnx":
        chosen, reason = choose_device(device)
        return Choice(target, chosen, f"{reason}; {target} as asked")
    if target.backend == "openvino":
        if device == "cuda":
            raise BackendError(
                f"target {target} runs on cpu, not on cuda; ask for --device cpu or another target"
            )
        return Choice(target, "cpu", f"{target} as asked, which runs on cpu alone")
    if device == "cpu":
        raise BackendError(
            f"target {target} runs on cuda, not on cpu; ask for --device cuda or another target"
        )
    return Choice(target, "cuda", f"{target} as asked, which runs on cuda alone")


def _automatic(bundle: Bundle) -> Choice:
    engine = next((target for target in ENGINES if target in bundle.targets), None)
    problem = None if engine is None else driver_problem()
    if engine is not None and problem is None:
        return Choice(engine, "cuda", f"the bundle holds {engine} and there is a GPU")
    device, reason = choose_device("auto")
    unused = "" if problem is None else f"; {engine} is left unused: {problem}"
    if device == "cpu":
        return _on_cpu(bundle, f"{reason}{unused}")
    found = _first(bundle, *GRAPHS_ON_CUDA)
    return Choice(found, device, f"{reason}; {found}{unused}")


def _on_cpu(bundle: Bundle, reason: str) -> Choice:
    unused = ""
    for tier in (tier for tier in TIERS_ON_CPU if tier in bundle.targets):
        problem = openvino_problem(tier.precision)
        if problem is None:
            return Choice(tier, "cpu", f"{reason}; {tier} comes before the bundle's others{unused}")
        unused += f"; {tier} is left unused: {problem}"
    return Choice(PLAIN, "cpu", f"{reason}; {PLAIN} is what every CPU runs{unused}")


def _first(bundle: Bundle, *targets: Target) -> Target:
    return next(target for target in targets if target in bundle.targets)
