"""Cameras for minutes or hours: rates, drops, latency, and whether memory or descriptors grow.

    python -m benchmarks.streams BUNDLE --minutes 30 gate=rtsp://127.0.0.1:8554/cam1@ground ...

Runs s3clip-run as its users do and reads its status page. What the reader processes received is the reference
for what was processed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.streams.reading.addresses import SourceSpec, parse_source
from s3clip_runtime.streams.recognition.latency import KEPT

WARM_UP_S = 60.0
"""Not counted for growth: queues, galleries and allocators fill up."""

_PATH = click.Path(path_type=Path, exists=True)


@dataclass(frozen=True)
class Sample:
    """The program at one moment: the main process and all its children together."""

    seconds: float
    memory_mb: float
    main_mb: float
    files: int
    threads: int
    cpu_s: float
    status: dict[str, Any]


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("sources", nargs=-1, required=True, metavar="NAME=URL@PLATFORM...")
@click.option("--minutes", type=click.FloatRange(0.5), default=30.0, show_default=True)
@click.option("--detector", default="background", show_default=True)
@click.option("--gallery", type=_PATH)
@click.option("--every", "every_s", type=click.FloatRange(1), default=10.0, show_default=True)
def main(
    bundle: Path,
    sources: tuple[str, ...],
    minutes: float,
    detector: str,
    gallery: Path | None,
    every_s: float,
) -> None:
    """Run, sample, print."""
    specs = [parse_source(text) for text in sources]
    with tempfile.TemporaryDirectory() as name:
        site, port = write_site(Path(name), bundle, specs, detector, gallery)
        command = "from s3clip_runtime.cli.run import main; main(prog_name='s3clip-run')"
        with (Path(name) / "log").open("w+") as log:
            process = subprocess.Popen([sys.executable, "-c", command, "--site", str(site)], stderr=log)
            try:
                samples = watch(process, port, minutes * 60, every_s)
            finally:
                process.terminate()
                stopped_s = time.monotonic()
                code = process.wait(30)
                stopped_s = time.monotonic() - stopped_s
        events = [json.loads(line) for line in (Path(name) / "events.jsonl").read_text().splitlines()]
        report(samples, events, stopped_s, code)


def write_site(
    folder: Path, bundle: Path, specs: Sequence[SourceSpec], detector: str, gallery: Path | None
) -> tuple[Path, int]:
    """The site file, and the port of its page. Addresses may hold passwords: the file is the user's alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = [f'bundle = "{bundle.resolve()}"', "threads = 1"]
    if gallery is not None:
        lines += [f'gallery = "{gallery.resolve()}"', "threshold = 0.6"]
    lines += ["[page]", f'listen = "127.0.0.1:{port}"', "[outputs.events]", 'path = "events.jsonl"']
    for spec in specs:
        lines += ["[[cameras]]", f'name = "{spec.name}"', f"url = {json.dumps(spec.url)}"]
        choice = detector if detector == "background" else str(Path(detector).resolve())
        lines += [f'platform = "{spec.platform}"', f"detector = {json.dumps(choice)}"]
    path = folder / "site.toml"
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n")
    return path, port


def watch(process: subprocess.Popen[bytes], port: int, seconds: float, every_s: float) -> list[Sample]:
    """Samples until the time is over."""
    start_s, samples = time.monotonic(), list[Sample]()
    while (passed_s := time.monotonic() - start_s) < seconds:
        time.sleep(min(every_s, seconds - passed_s))
        if process.poll() is not None:
            raise click.ClickException(f"s3clip-run ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=10) as answer:
                status = json.load(answer)
        except OSError:
            if samples:
                raise
            continue  # it still loads
        samples.append(sample(process.pid, time.monotonic() - start_s, status))
        if len(samples) % 6 == 1:
            print_sample(samples[-1])
    return samples


def sample(pid: int, seconds: float, status: dict[str, Any]) -> Sample:
    """Memory is what the processes have for themselves, with their share of what they share (PSS)."""
    pids = [pid, *_children(pid)]
    memory = [_memory_mb(one) for one in pids]
    return Sample(
        seconds,
        sum(memory),
        memory[0],
        sum(len(os.listdir(f"/proc/{one}/fd")) for one in pids),
        sum(len(os.listdir(f"/proc/{one}/task")) for one in pids),
        sum(_cpu_s(one) for one in pids),
        status,
    )


def print_sample(one: Sample) -> None:
    """A line a minute."""
    cameras = " ".join(f"{c['name']} {c['source']['state']} {c['frames']}" for c in one.status["cameras"])
    total = one.status["latency_ms"].get("total", {}).get("p95", float("nan"))
    print(
        f"{one.seconds / 60:5.1f} min {one.memory_mb:6.0f} MB {one.files:4} files "
        f"p95 {total:6.0f} ms {cameras}",
        flush=True,
    )


def report(samples: Sequence[Sample], events: Sequence[dict[str, Any]], stopped_s: float, code: int) -> None:
    """The tables."""
    first, last = samples[0], samples[-1]
    passed_s = last.seconds - first.seconds
    print(f"\n{cpu_name()}; {passed_s / 60:.1f} min, {len(samples)} samples")
    print(f"{'camera':<12}{'received':>9}{'fps':>7}{'processed':>11}{'fps':>7}  drops")
    for before, after in zip(first.status["cameras"], last.status["cameras"], strict=True):
        received = after["source"]["received"] - before["source"]["received"]
        frames = after["frames"] - before["frames"]
        drops = {cause: count for cause, count in after["source"]["drops"].items() if count}
        rates = f"{received:>9}{received / passed_s:>7.2f}{frames:>11}{frames / passed_s:>7.2f}"
        reconnects = after["source"]["reconnects"]
        print(
            f"{after['name']:<12}{rates}  {drops or 'none'}, {after['shed']} looks shed, "
            f"{reconnects} reconnects"
        )
    print(f"\n{'ms':<10}{'p50':>9}{'p95':>9}{'p99':>9}   of the last {KEPT} looks")
    for step, q in last.status["latency_ms"].items():
        print(f"{step:<10}{q['p50']:>9.1f}{q['p95']:>9.1f}{q['p99']:>9.1f}")
    looks = {look: sum(event["look"] == look for event in events) for look in ("first", "refined", "final")}
    bare = sum(event["decision"] == "not_embedded" for event in events)
    plain = sum(event["enhancement"] == "budget" for event in events)
    print(f"\nevents {len(events)}: {looks}; {bare} not embedded, {plain} without super-resolution (budget)")
    print(f"CPU {(last.cpu_s - first.cpu_s) / passed_s:.2f} cores; stop {stopped_s:.2f} s, exit {code}")
    grown = [one for one in samples if one.seconds >= WARM_UP_S]
    for name in ("memory_mb", "main_mb", "files", "threads"):
        values = [float(getattr(one, name)) for one in grown]
        slope = float(np.polyfit([one.seconds for one in grown], values, 1)[0]) * 3600
        print(f"{name:<10} {values[0]:8.1f} -> {values[-1]:8.1f}   {slope:+8.2f} an hour")


def _children(pid: int) -> list[int]:
    """Those of all threads; threads come and go meanwhile."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
