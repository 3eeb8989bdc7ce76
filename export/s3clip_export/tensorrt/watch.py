"""What is seen of TensorRT while it builds: its log and its progress; and how it is stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tqdm import tqdm

if TYPE_CHECKING:
    import tensorrt

_TAIL = 8
"""Log lines that an error quotes: the reason stood in the last five of every refusal that was tried."""

_POLL_S = 0.5
"""Longest that Ctrl-C may go unseen, in seconds."""

_Made = TypeVar("_Made")


class BuildLog:
    """A logger that keeps what an error or the report needs: the whole log of one build has megabytes."""

    def __init__(self) -> None:
        super().__init__()  # the base that is mixed in is C++ and must be initialised
        self.warnings: list[str] = []
        self.layers = ""
        self.numbers: dict[str, int] = {}
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, also from its own threads."""
        if msg.startswith("Layers:"):
            self.layers = msg
            return
        name, _, rest = msg.partition(":")
        if name in ("Total Activation Memory", "Total Weights Memory"):
            self.numbers[name] = int(rest.split()[0])
        if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            self.warnings.append(" ".join(msg.split()))
        if msg.strip(" -"):
            self._tail.append(" ".join(msg.split()))

    def tail(self) -> str:
        """The errors and the last lines, joined to one."""
        return " | ".join(dict.fromkeys([*self.warnings[-3:], *self._tail])) or "its log is empty"


class Progress:
    """A progress monitor on the console. Each phase of the builder adds its steps to the one bar."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self._left: dict[str, int] = {}
        self._cancelled = False

    def cancel(self) -> None:
        """Let the builder stop at its next step."""
        self._cancelled = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT."""
        self._left[phase_name] = num_steps
        if self.bar is not None:
            self.bar.total = (self.bar.total or 0) + num_steps
            self.bar.set_postfix_str(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False stops the build."""
        self._advance(phase_name, 1)
        return not self._cancelled

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT. Phases end early where there is nothing to do."""
        self._advance(phase_name, self._left.get(phase_name, 0))

    def _advance(self, phase: str, steps: int) -> None:
        self._left[phase] = self._left.get(phase, 0) - steps
        if self.bar is not None:
            self.bar.update(steps)


_Own = TypeVar("_Own", BuildLog, Progress)


def derived(own: type[_Own], base: type[object]) -> _Own:
    """Our class made a subclass of TensorRT's, which is known only now: the module is an argument."""
    made: _Own = type(own.__name__, (own, base), {})()
    return made


@contextmanager
def progress_of(
    config: tensorrt.IBuilderConfig, monitor: type[tensorrt.IProgressMonitor], name: str
) -> Iterator[Progress]:
    """Show the builds of a config on the console; `monitor` is the base class of TensorRT's module."""
    progress = derived(Progress, monitor)
    config.progress_monitor = cast("tensorrt.IProgressMonitor", progress)
    with tqdm(desc=f"engine of {name}", unit="step", disable=None) as bar:
        progress.bar = bar
        yield progress


def interruptible(work: Callable[[], _Made], cancel: Callable[[], None]) -> _Made:
    """Run the builder in a thread of its own, so that Ctrl-C reaches this one.

    Raised inside TensorRT's callbacks, a KeyboardInterrupt would pass through C++ that does not expect it.
    """
    with ThreadPoolExecutor(1, "tensorrt") as pool:
        pool.submit(int).result()  # a pool does not wait for a thread that was interrupted while it started
        try:
            running = pool.submit(work)
            while not wait([running], _POLL_S).done:
                pass  # a signal that comes just before a wait does not end it, so none may be endless
            return running.result()
        except KeyboardInterrupt:
            cancel()
            raise  # the pool waits for the builder's next step first
