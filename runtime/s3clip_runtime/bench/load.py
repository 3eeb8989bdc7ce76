"""Whose the cores were while something was measured: this program's, or other processes'."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds between two moments.

    Attributes:
        wall_s: between them.
        own_s: CPU seconds of this process, all its threads and its descendants.
        busy_s: CPU seconds that the usable cores were not idle, time stolen by the host's other guests
            included.
        cores: usable ones.
    """

    wall_s: float
    own_s: float
    busy_s: float
    cores: int

    @property
    def foreign(self) -> float:
        """Share of the usable cores that others took, in [0, 1]. The kernel counts in steps of 10 ms a core:
        below a second it is only a hint."""
        total_s = self.wall_s * self.cores
        return min(max((self.busy_s - self.own_s) / total_s, 0.0), 1.0) if total_s > 0 else 0.0

    @property
    def cores_used(self) -> float:
        """CPU seconds a second of this program."""
        return self.own_s / self.wall_s if self.wall_s > 0 else 0.0


class LoadMeter:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._start = self._now()

    def read(self) -> Usage:
        """What was used since the meter was made."""
        wall_s, own_s, busy_s = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return Usage(wall_s, own_s, busy_s, len(self._cores))

    def _now(self) -> tuple[float, float, float]:
        return time.monotonic(), own_cpu_s(), busy_cpu_s(Path("/proc/stat").read_text(), self._cores)


def busy_cpu_s(stat: str, cores: list[int]) -> float:
    """Seconds since the start that these cores were not idle, by the text of /proc/stat.

    Columns: user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in user already.
    """
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name in wanted:
            numbers = [int(field) for field in fields[:8]]
            ticks += sum(numbers[:3]) + sum(numbers[5:])
    return ticks / _TICKS_A_SECOND


def own_cpu_s() -> float:
    """CPU seconds of this process, of children that have ended, and of all descendants that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(map(_cpu_s, descendants(os.getpid())))
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


def descendants(pid: int) -> list[int]:
    """Processes that a process and its children have started and that still live."""
    found: list[int] = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    """Children of all threads; threads and processes come and go meanwhile."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    """User and system time of a process and of those children of it that have ended; 0 if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # The name of a program may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS_A_SECOND
    return 0.0
