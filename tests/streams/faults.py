"""The twenty faults that a run must survive.

python -m streams.faults [NUMBERS...]   runs them one after the other and prints a table; `long` adds the long
ones. Run it in the folder `tests`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from streams import camera_faults as camera
from streams import link_faults as link
from streams import machine_faults as machine
from streams.lab import write_clips
from streams.outcome import Bench, Outcome


@dataclass(frozen=True)
class Fault:
    """One of the twenty, and how to cause it."""

    number: int
    name: str
    run: Callable[[Bench], Outcome]


SHORT = (
    Fault(1, "camera absent at start", link.absent_at_start),
    Fault(2, "half-open connection", link.half_open),
    Fault(3, "camera restarts", link.restarts),
    Fault(4, "RST and FIN", link.resets),
    Fault(5, "black hole", link.black_hole),
    Fault(6, "slow link", link.slow_link),
    Fault(7, "packet loss", link.packet_loss),
    Fault(8, "jitter", link.jitter),
    Fault(9, "size and rate change", camera.new_size),
    Fault(10, "refusals", camera.refusals),
    Fault(11, "wrong time stamps", camera.wrong_time_stamps),
    Fault(12, "camera clock 90 s ahead", camera.clock_skew),
    Fault(13, "sixteen cameras", machine.sixteen),
    Fault(14, "stalled consumer", machine.stalled_consumer),
    Fault(15, "reader crashes and hangs", machine.dead_reader),
    Fault(16, "disk full", machine.full_disk),
    Fault(17, "broker down", machine.broker_down),
    Fault(18, "network gives NaN", machine.bad_network),
    Fault(19, "SIGTERM", machine.terminated),
    Fault(20, "our clock is set", machine.clock_steps),
)

LONG = (
    Fault(2, "half-open connection, 60 s", partial(link.half_open, seconds=60)),
    Fault(3, "320 reconnects, 10 min", partial(link.restarts, times=20, cameras=16)),
    Fault(3, "1,008 reconnects, 30 min", partial(link.restarts, times=63, cameras=16)),
    Fault(17, "broker down, 5 min", partial(machine.broker_down, seconds=300)),
)


def make_bench(folder: Path) -> Bench:
    """What all faults share, clips of two cameras and a bundle; each fault gets a folder by `of_one`."""
    from tiny_bundle import write_tiny_bundle

    clips = write_clips(folder / "clips", 2, other=True)
    return Bench(folder / "shared", write_tiny_bundle(folder / "bundle" / "tiny"), clips)


def of_one(bench: Bench, folder: Path) -> Bench:
    """The bench with another folder."""
    return Bench(folder, bench.bundle, bench.clips)


def main(words: list[str]) -> int:
    """Number of faults that were not survived."""
    numbers = {int(word) for word in words if word != "long"} or {fault.number for fault in SHORT}
    chosen = [fault for fault in (*SHORT, *(LONG if "long" in words else ())) if fault.number in numbers]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        bench = make_bench(Path(name))
        for index, fault in enumerate(chosen):
            start = time.monotonic()
            try:
                outcome = fault.run(of_one(bench, Path(name) / f"fault-{index}"))
            except machine.NotHere as error:
                print(f"{fault.number:3} {fault.name}: left out, {error}", flush=True)
                continue
            except Exception as error:
                outcome = Outcome(broken=[f"{type(error).__name__}: {error}"])
            failed += bool(outcome.broken)
            verdict = "FAILED" if outcome.broken else "passed"
            print(f"{fault.number:3} {fault.name}: {verdict} in {time.monotonic() - start:.0f} s", flush=True)
            for line in (*outcome.figures, *(f"missed: {one}" for one in outcome.broken)):
                print(f"      {line}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
