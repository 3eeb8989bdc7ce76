"""Faults of the machine that the program runs on, of its processes, and of what it writes to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streams.broker import Broker
from streams.lab import RtspServer, wait_until, write_clips
from streams.link_faults import FAIR_FPS, RESTART_S, pair
from streams.outcome import Bench, Outcome
from streams.site_run import SiteRun
from streams.tcp_proxy import TcpProxy

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class NotHere(Exception):
    """This machine lacks what the fault needs."""


def sixteen(bench: Bench) -> Outcome:
    """13: sixteen cameras on two cores."""
    out = Outcome()
    with RtspServer(write_clips(bench.clips, 16), 16) as server:
        cameras = {f"c{index:02}": server.url(index) for index in range(1, 17)}
        with SiteRun(bench.folder, bench.bundle, cameras) as run:
            run.all_live()
            before = {one["name"]: one["frames"] for one in run.status()["cameras"]}
            seconds = 20.0
            time.sleep(seconds)
            status = run.status()
            rates = [(one["frames"] - before[one["name"]]) / seconds for one in status["cameras"]]
            out.note("fps of each, least to most", f"{min(rates):.1f} to {max(rates):.1f}")
            out.at_least("least over most", min(rates) / max(rates), 0.5)
            out.note("overrun", sum(one["source"]["drops"]["overrun"] for one in status["cameras"]))
            out.at_least("cameras with events", len({event["camera"] for event in run.events()}), 16)
            out.note("MB of the main process", run.memory_mb())
            out.note("MB of a reader", run.readers_mb() / 16)
    return out


def stalled_consumer(bench: Bench) -> Outcome:
    """14: the main process stands for 10 s, its readers go on."""
    out = Outcome()
    with pair(bench) as both:
        run = both.run
        time.sleep(2)
        memory, before = run.memory_mb(), run.camera("gate")
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(10)
        run.process.send_signal(signal.SIGCONT)
        time.sleep(2)
        after = run.camera("gate")
        out.note("overrun", after["source"]["drops"]["overrun"] - before["source"]["drops"]["overrun"])
        out.at_most("lag in s after 2 s", after["source"]["lag_s"] or 0.0, 1)
        out.at_most("MB more", run.memory_mb() - memory, 40)
        out.at_most("reconnects", after["source"]["reconnects"], 0)
        out.at_least("fps after that", run.fps("gate", 4), FAIR_FPS)
    return out


def dead_reader(bench: Bench) -> Outcome:
    """15: one reader crashes, then hangs: its camera alone starts again."""
    out = Outcome()
    with pair(bench) as both:
        run = both.run
        for index, one in enumerate((signal.SIGSEGV, signal.SIGSTOP), 1):
            before = {name: run.camera(name) for name in ("gate", "yard")}
            os.kill(max(run.children()), one)
            limit = RESTART_S if one is signal.SIGSEGV else RESTART_S + 8
            start = time.monotonic()
            victim = _restarted(
                run, {name: value["source"]["restarts"] for name, value in before.items()}, 20
            )
            out.must(f"{one.name}: a reader was started again", victim != "")
            if not victim:
                continue
            run.wait_state(victim, "live", 20)
            out.at_most(f"{one.name}: s to LIVE", time.monotonic() - start, limit)
            other = "yard" if victim == "gate" else "gate"
            now = run.camera(other)
            rate = (now["frames"] - before[other]["frames"]) / (time.monotonic() - start)
            out.at_least(f"{one.name}: fps of the other", rate, FAIR_FPS)
            out.at_most(f"{one.name}: restarts in all", _restarts(run), index)
        out.at_most("zombies", run.zombies(), 0)
    return out


def _restarts(run: SiteRun) -> int:
    return sum(one["source"]["restarts"] for one in run.status()["cameras"])


def _restarted(run: SiteRun, before: dict[str, int], timeout_s: float) -> str:
    """The camera whose reader was replaced; empty if none was."""
    start = time.monotonic()
    while time.monotonic() - start < timeout_s:
        for name, count in before.items():
            if run.source(name)["restarts"] > count:
                return name
        time.sleep(0.1)
    return ""


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise NotHere("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def full_disk(bench: Bench) -> Outcome:
    """16: the disk of the events is full for some seconds; then the program is killed."""
    out = Outcome()
    bench.folder.mkdir(parents=True, exist_ok=True)
    with _small_disk(bench.folder / "disk") as disk, RtspServer(bench.clips) as gate:
        path = disk / "events.jsonl"
        with SiteRun(bench.folder / "run", bench.bundle, {"gate": gate.url()}, events=path) as run:
            run.all_live()
            wait_until("an event", lambda: len(run.events()) > 1, 20)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(b"x" * 512):
                        pass
                except OSError:
                    pass
            told = _within(lambda: bool(_output(run, "events")["error"]), 15)
            out.must("the page tells", told)
            out.at_least("fps meanwhile", run.fps("gate", 3), FAIR_FPS)
            out.note("lost", _output(run, "events")["lost"])
            filler.unlink()
            seen = len(run.events())
            out.must("events go on", _within(lambda: len(run.events()) > seen + 1, 20))
            out.must("the page is well", _within(lambda: not _output(run, "events")["error"], 10))
            delivered = _output(run, "events")["delivered"]
            run.process.kill()
            run.process.wait(10)
            ids = [event["event_id"] for event in run.events()]
            out.must("every event that counts as delivered is in the file", len(ids) >= delivered)
            out.must("no event twice", len(ids) == len(set(ids)))
    return out


def _output(run: SiteRun, word: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in run.status()["outputs"] if word in one["name"])
    return found


def _within(true: Any, timeout_s: float) -> bool:  # noqa: ANN401
    try:
        wait_until("", true, timeout_s, 0.1)
    except TimeoutError:
        return False
    return True


def broker_down(bench: Bench, seconds: float = 10) -> Outcome:
    """17: the broker is away; nothing is lost, all comes in order."""
    out = Outcome()
    bench.folder.mkdir(parents=True, exist_ok=True)
    broker = Broker(bench.folder)
    try:
        with RtspServer(bench.clips) as gate, TcpProxy(broker.start().port) as way:
            more = f'[outputs.mqtt]\nhost = "127.0.0.1"\nport = {way.port}'
            with SiteRun(bench.folder, bench.bundle, {"gate": gate.url()}, more=more) as run:
                run.all_live()
                wait_until("events at the broker", lambda: len(broker.ids) > 1, 40)
                way.shut()
                way.cut("rst")
                broker.stop()
                time.sleep(seconds)
                out.at_least("waiting", _output(run, "mqtt")["waiting"], 1)
                out.at_least("fps meanwhile", run.fps("gate", 3), FAIR_FPS)
                broker.start()  # its subscriber is there before the way is open
                way.open()
                drained = _within(lambda: _output(run, "mqtt")["waiting"] == 0, 60)
                out.must("all resent", drained)
                out.at_most("lost", _output(run, "mqtt")["lost"], 0)
                _, code = run.stop()
                out.note("exit code", code)
                time.sleep(1)
                written = [event["event_id"] for event in run.events()]
                first = list(dict.fromkeys(broker.ids))
                out.note("sent twice", len(broker.ids) - len(first))
                out.at_most("missing at the broker", len(set(written) - set(first)), 0)
                out.must("in order", first == [one for one in written if one in set(first)])
    finally:
        broker.stop()
    return out


def bad_network(bench: Bench) -> Outcome:
    """18: the network gives NaN: the program ends and says so."""
    from tiny_bundle import write_tiny_bundle

    out = Outcome()
    bundle = write_tiny_bundle(bench.folder / "nan", encode_weight=float("nan"))
    with (
        RtspServer(bench.clips) as gate,
        SiteRun(bench.folder / "run", bundle, {"gate": gate.url()}) as run,
    ):
        try:
            code: int | None = run.process.wait(60)
        except subprocess.TimeoutExpired:
            code = None
        out.must(f"exit code {code} is not 0", code not in (0, None))
        out.must("says why", "finite" in run.log() or "NaN" in run.log())
        named = [event for event in run.events() if event["decision"] != "not_embedded"]
        out.note("events", len(run.events()))
        out.at_most("events that decide something", len(named), 0)
    return out


def terminated(bench: Bench) -> Outcome:
    """19: SIGTERM while persons are in view."""
    out = Outcome()
    with pair(bench) as both:
        wait_until("events", lambda: len(both.run.events()) > 3, 30)
        seconds, code = both.run.stop()
        out.at_most("s to the end", seconds, 5)
        out.at_most("exit code", code, 0)
        last = [event for event in both.run.events() if event["reason"] == "stop"]
        out.at_least("events of persons in view", len(last), 1)
        out.must("marked as partial", bool(last) and all(event["partial"] for event in last))
    return out


def clock_steps(bench: Bench) -> Outcome:
    """20: our clock is set, an hour forward and two hours back."""
    if not FAKETIME.exists():
        raise NotHere("needs libfaketime")
    out = Outcome()
    bench.folder.mkdir(parents=True, exist_ok=True)
    offset = bench.folder / "offset"
    offset.write_text("+0\n")
    fake = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with (
        RtspServer(bench.clips) as gate,
        SiteRun(bench.folder / "run", bench.bundle, {"gate": gate.url()}, environment=fake) as run,
    ):
        run.all_live()
        time.sleep(4)
        lags = []
        for step in ("+3600", "-3600"):
            offset.with_suffix(".new").write_text(step + "\n")
            shutil.move(offset.with_suffix(".new"), offset)
            for _ in range(12):
                time.sleep(0.5)
                lags.append(run.source("gate")["lag_s"] or 0.0)
        events = run.events()
        out.at_least("events", len(events), 5)
        out.at_least("smallest lag in s", min(lags), 0)
        out.at_most("largest lag in s", max(lags), 5)
        times = [value for event in events for value in event["latency_ms"].values()]
        out.at_least("smallest latency in ms", min(times), 0)
        spans = [event["last_s"] - event["first_s"] for event in events]
        out.at_least("shortest tracklet in s", min(spans), 0)
        out.must("LIVE", run.source("gate")["state"] == "live")
        out.at_most("reconnects", run.source("gate")["reconnects"], 0)
    return out
