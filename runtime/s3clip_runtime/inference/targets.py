"""Which graphs of a bundle are run, and on which device: decided once, and said with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends.cuda import driver_problem
from s3clip_runtime.inference.backends.onnxruntime import choose_device
from s3clip_runtime.inference.backends.openvino import openvino_problem
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.manifest import PLAIN, Backend, Target
from s3clip_runtime.inference.speeds import speeds_here

FIRST_CHOICES: Final[Mapping[str, tuple[Target, ...]]] = {
    "cpu": (Target("openvino", "bf16"), PLAIN, Target("onnx", "fp16")),
    "cuda": (Target("tensorrt", "fp16"), Target("tensorrt", "fp32"), Target("onnx", "fp16"), PLAIN),
}
"""By device, the targets that are not quantised, in the order of choice where nothing was measured.

Quantised ones have to win a measurement on the machine first: on one machine int8 took 544 ms a tracklet and
bfloat16 750 at full size, and 25 against 21 for the demo's tiny model.
"""


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
        target: None leaves the choice to the device, among the bundle's targets that run there: the first of
            `FIRST_CHOICES` if that one was not measured on this machine (`speeds.speeds_here`), or else the
            one of all, quantised ones included, that was measured as the fastest. On "cuda" ONNX Runtime's
            graphs are left out if there is an engine that is not quantised. "auto" is "cuda" if the bundle
            holds such an engine and there is a driver, even if the engine then turns out to be built for
            another machine: that is an error to be told and not to be hidden. Else it is where ONNX Runtime
            can compute.

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
        return _on_cuda(bundle, _of_backend(bundle, "tensorrt"), "as asked")
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
    engines = _of_backend(bundle, "tensorrt")
    problem = driver_problem() if engines else None
    if problem is None and not all(engine.quantised for engine in engines):
        return _on_cuda(bundle, engines, "there is a GPU")
    device, reason = choose_device("auto")
    if problem is None and device == "cuda":
        return _on_cuda(bundle, engines, reason)
    reason += _left_unused(engines, problem or "what it could be compared with does not run on the GPU")
    return _on_cuda(bundle, [], reason) if device == "cuda" else _on_cpu(bundle, reason)


def _on_cpu(bundle: Bundle, reason: str) -> Choice:
    able = _of_backend(bundle, "onnx")
    for target in _of_backend(bundle, "openvino"):
        problem = openvino_problem(target.precision)
        if problem is None:
            able.append(target)
        else:
            reason += _left_unused([target], problem)
    return _fastest(bundle, "cpu", able, reason)


def _on_cuda(bundle: Bundle, engines: Sequence[Target], reason: str) -> Choice:
    graphs = _of_backend(bundle, "onnx") if all(engine.quantised for engine in engines) else []
    return _fastest(bundle, "cuda", [*engines, *graphs], reason)


def _fastest(bundle: Bundle, device: str, able: Collection[Target], reason: str) -> Choice:
    """The choice among targets that run on a device; at least one of its `FIRST_CHOICES` is among them."""
    quantised = [target for target in able if target.quantised]
    ordered = [target for target in FIRST_CHOICES[device] if target in able] + quantised
    first, took = ordered[0], speeds_here(bundle.manifest, device)
    compared = [one for one in ordered if str(one) in took] if str(first) in took else []
    compared.sort(key=lambda one: took[str(one)])
    chosen, why = first, f"{first} is the first choice on {device}"
    if compared:
        chosen = compared[0]
        times = ", ".join(f"{one} took {took[str(one)]:.1f} ms" for one in compared)
        why = f"{times} for an LR and an HR tracklet here"
    untried = _left_unused(
        [one for one in quantised if one not in compared],
        f"not measured beside {first} on this machine, which s3clip-bench run does",
    )
    return Choice(chosen, device, f"{reason}; {why}{untried}")


def _of_backend(bundle: Bundle, backend: Backend) -> list[Target]:
    return [target for target in bundle.targets if target.backend == backend]


def _left_unused(left: Sequence[Target], why: str) -> str:
    """A clause that names what is not run, if there is any."""
    names = " and ".join(map(str, left))
    return f"; {names} {'is' if len(left) == 1 else 'are'} left unused: {why}" if left else ""
