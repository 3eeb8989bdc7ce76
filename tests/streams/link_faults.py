"""Connections that break, fall silent or are slow. Each runs the program and returns what came of it.

The camera `gate` gets the fault; `yard`, on a server of its own, must not notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from streams.lab import RtspServer, write_clips
from streams.outcome import Bench, Outcome
from streams.site_run import SiteRun
from streams.tcp_proxy import Link, TcpProxy

STALE_S, DOWN_S, LIVE_S = 4.0, 8.0, 5.0
"""Bounds of a half-open connection."""

RESTART_S = 10.0
"""Longest way back to LIVE for a camera that came back at once; the first waits are 0.5 to 4 s."""

FAIR_FPS = 7.0
"""Of 10: what a camera beside a broken one must still get while four of these tests share two cores."""


@dataclass
class Pair:
    """A run with both cameras, and what can be broken."""

    gate: RtspServer
    proxy: TcpProxy
    run: SiteRun


@contextmanager
def pair(bench: Bench) -> Iterator[Pair]:
    """Both cameras live; `gate` is reached through a proxy."""
    with (
        RtspServer(bench.clips) as gate,
        RtspServer(bench.clips, 2) as yard,
        TcpProxy(gate.port) as proxy,
        SiteRun(bench.folder, bench.bundle, {"gate": gate.url(port=proxy.port), "yard": yard.url(2)}) as run,
    ):
        run.all_live()
        yield Pair(gate, proxy, run)


def absent_at_start(bench: Bench) -> Outcome:
    """1: a camera is off when the program starts."""
    out = Outcome()
    with RtspServer(bench.clips) as gate, RtspServer(bench.clips, 2) as yard:
        gate.kill()
        with SiteRun(bench.folder, bench.bundle, {"gate": gate.url(), "yard": yard.url(2)}) as run:
            run.ready()
            out.at_most("s to LIVE of the other", run.wait_state("yard", "live", 30), 30)
            out.at_most("s to DOWN", run.wait_state("gate", "down", 10), 10)
            out.must("the back-off is told", "next try in" in run.source("gate")["reason"])
            out.at_least("fps of the other", run.fps("yard", 5), FAIR_FPS)
            gate.start()
            out.at_most("s to LIVE once it is on", run.wait_state("gate", "live", 40), 35)
    return out


def _silence(
    bench: Bench, begin: Callable[[Pair], None], end: Callable[[Pair], None], seconds: float
) -> Outcome:
    """A connection that stands and brings nothing."""
    out = Outcome()
    with pair(bench) as both:
        run = both.run
        begin(both)
        start = time.monotonic()
        first = run.first_times("gate", {"down"}, 15)
        out.at_most("s to STALE", min(first.get(one, inf) for one in ("stale", "down")), STALE_S)
        out.at_most("s to DOWN", first.get("down", inf), DOWN_S)
        out.at_least("fps of the other", run.fps("yard", 4), FAIR_FPS)
        time.sleep(max(0.0, seconds - (time.monotonic() - start)))
        end(both)
        out.at_most("s to LIVE again", run.wait_state("gate", "live", 40), LIVE_S)
        out.must("another epoch for new tracks", _new_epoch(run))
    return out


def _new_epoch(run: SiteRun) -> bool:
    """Whether an event of `gate` comes from a stretch after the first one; waits for a walker."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if any(event["epoch"] > 0 for event in run.events("gate")):
            return True
        time.sleep(0.3)
    return False


def half_open(bench: Bench, seconds: float = 12) -> Outcome:
    """2: the camera's process stops, its connections stand."""
    return _silence(bench, lambda both: both.gate.pause(), lambda both: both.gate.resume(), seconds)


def black_hole(bench: Bench) -> Outcome:
    """5: nothing comes from the camera any more, what we send arrives."""

    def begin(both: Pair) -> None:
        both.proxy.link = Link(hole=frozenset({"server"}))

    def end(both: Pair) -> None:
        both.proxy.link = Link()

    return _silence(bench, begin, end, 10)


def restarts(bench: Bench, times: int = 6, cameras: int = 1) -> Outcome:
    """3: cameras restart again and again; memory, files and processes stay."""
    out = Outcome()
    clips = write_clips(bench.clips, max(cameras, 2))
    with RtspServer(clips, cameras) as gates, RtspServer(clips, 2) as yard:
        urls = {f"gate{index}": gates.url(index) for index in range(1, cameras + 1)}
        with SiteRun(bench.folder, bench.bundle, {**urls, "yard": yard.url(2)}) as run:
            run.all_live()
            files, memory, back = [], [], []
            for _ in range(times):
                gates.kill()
                for name in urls:
                    run.wait_state(name, "down", 10)
                gates.start()
                back.append(max(run.wait_state(name, "live", 60) for name in urls))
                files.append(run.open_files())
                memory.append(run.readers_mb())
            half = times // 2
            out.note("restarts of the server", times)
            out.note("reconnects", sum(run.source(name)["reconnects"] for name in urls))
            out.note("s to LIVE, longest", max(back))
            out.must("always LIVE again", max(back) < 60)
            out.at_most("files more in the second half", max(files[half:]) - max(files[:half]), 2)
            growth = (max(memory[half:]) - max(memory[:half])) / ((times - half) * cameras)
            out.at_most("MB more of readers a reconnect", growth, 0.1)
            # It fills its rings of sightings and pictures in the first minutes.
            out.note("MB of the main process at the end", run.memory_mb())
            out.at_most("zombies", run.zombies(), 0)
            out.at_least("fps of the other", run.fps("yard", 3), FAIR_FPS)
    return out


def resets(bench: Bench) -> Outcome:
    """4: the connection is reset, or closed in order: both are a disconnect, neither an end."""
    out = Outcome()
    with pair(bench) as both:
        for count, how in enumerate(("rst", "fin"), 1):
            both.proxy.cut("rst" if how == "rst" else "fin")
            start, states = time.monotonic(), set()
            while time.monotonic() - start < 30:
                source = both.run.source("gate")
                states.add(source["state"])
                if source["reconnects"] == count and source["state"] == "live":
                    break
                time.sleep(0.1)
            out.at_most(f"s to LIVE after {how.upper()}", time.monotonic() - start, RESTART_S + 6)
            out.must(f"{how.upper()} is no end", not states & {"ended", "failed"})
        out.note("reader processes started again", both.run.source("gate")["restarts"])
    return out


def slow_link(bench: Bench) -> Outcome:
    """6: the link carries half of the stream; only the lag tells."""
    out = Outcome()
    with pair(bench) as both:
        both.proxy.link = Link(rate=20_000)
        lags = [both.run.source("gate")["lag_s"] or 0.0 for _ in _every(1, 12)]
        out.note("lag in s, by seconds", " ".join(f"{lag:.1f}" for lag in lags))
        out.at_least("largest lag in s", max(lags), 2)
        both.proxy.link = Link()
        time.sleep(8)
        out.at_most("lag in s once it is fast again", both.run.source("gate")["lag_s"] or 99.0, 1)
        total = both.run.status()["latency_ms"].get("total", {}).get("p95", 0.0)
        out.at_most("latency of looks, p95 in ms", total, 1500)
        out.at_least("fps of the other", both.run.fps("yard", 3), FAIR_FPS)
    return out


def packet_loss(bench: Bench) -> Outcome:
    """7: 1, 5 and 20 % of RTP packets are lost."""
    out = Outcome()
    with pair(bench) as both:
        for share in (0.01, 0.05, 0.2):
            before, tracks = both.run.source("gate"), _tracks(both.run)
            both.gate.order("drop", cam=1, value=share, s=8)
            time.sleep(8)
            after = both.run.source("gate")
            lost = sum(after["drops"][cause] - before["drops"][cause] for cause in ("corrupt", "undecodable"))
            out.note(f"at {share:.0%}: frames left out as damaged", lost)
            out.note("tracks", _tracks(both.run) - tracks)
            if share > 0.01:
                out.at_least(f"damaged at {share:.0%}", lost, 5)
        # Walkers enter every 2 s; one that is lost and found again may count three times.
        out.at_most("tracks in all", _tracks(both.run), 3 * 30 / 2)
        out.at_most("reader processes started again", both.run.source("gate")["restarts"], 0)
        time.sleep(4)
        out.must("LIVE and whole after that", _whole(both.run))
    return out


def _tracks(run: SiteRun) -> int:
    return len({event["track"] for event in run.events("gate")})


def _whole(run: SiteRun) -> bool:
    before = run.source("gate")["drops"]["corrupt"]
    time.sleep(2)
    after = run.source("gate")
    return bool(after["state"] == "live" and after["drops"]["corrupt"] == before)


def _every(seconds: float, times: int) -> Iterator[int]:
    for index in range(times):
        time.sleep(seconds)
        yield index


def jitter(bench: Bench) -> Outcome:
    """8: frames come in bursts."""
    out = Outcome()
    with pair(bench) as both:
        time.sleep(3)
        before = both.run.camera("gate")
        both.proxy.link = Link(delay_s=0.06)
        fps = both.run.fps("gate", 10)
        after = both.run.camera("gate")
        out.at_least("fps", fps, FAIR_FPS)
        out.note("overrun", after["source"]["drops"]["overrun"] - before["source"]["drops"]["overrun"])
        out.must("LIVE", after["source"]["state"] == "live")
        out.at_least("events", len(both.run.events("gate")), 3)
        out.at_least("fps of the other", both.run.fps("yard", 3), FAIR_FPS)
    return out
