"""Faults of cameras and of the network to them. Each runs the program and returns what came of it.

The camera `gate` gets the fault; `yard`, on a server of its own, must not notice.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from streams.lab import RtspServer
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


def restarts(bench: Bench, times: int = 8) -> Outcome:
    """3: the camera restarts again and again; memory, files and processes stay."""
    out = Outcome()
    with pair(bench) as both:
        run = both.run
        files, memory, back = [], [], []
        for _ in range(times):
            both.gate.kill()
            both.proxy.cut("rst")
            run.wait_state("gate", "down", 10)
            both.gate.start()
            back.append(run.wait_state("gate", "live", 60))
            files.append(run.open_files())
            memory.append(run.memory_mb())
        half = times // 2
        out.note("restarts", times)
        out.note("reconnects", run.source("gate")["reconnects"])
        out.note("s to LIVE, longest", max(back))
        out.must("always LIVE again", max(back) < 60)
        out.at_most("files more in the second half", max(files[half:]) - max(files[:half]), 2)
        growth = (max(memory[half:]) - max(memory[:half])) / (times - half)
        out.at_most("MB more a restart", growth, 0.5)
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


def new_size(bench: Bench) -> Outcome:
    """9: size and rate change in the stream (a new codec needs a new connection, which is fault 4)."""
    out = Outcome()
    with pair(bench) as both:
        run = both.run
        time.sleep(4)
        both.gate.order("scene", cam=1, name="other")
        time.sleep(9)
        out.must("the new size is told", run.source("gate")["size"] == [352, 640])
        recent = [event for event in run.events("gate") if event["box"][2] > 320 or event["height_px"] > 75]
        out.at_least("events of persons in the new size", len(recent), 1)
        heights = [event["height_px"] for event in recent if event["height_px"] > 75]
        out.note("their heights in px (88 is right)", [round(height) for height in heights[:6]])
        out.must("right", bool(heights) and all(70 < height < 106 for height in heights))
        both.gate.order("fps", cam=1, fps=5)
        time.sleep(8)
        out.at_most("fps told at 5 fps", run.source("gate")["fps"] or 99, 6.5)
        out.at_most("reader processes started again", run.source("gate")["restarts"], 0)
    return out


REFUSALS = {401: "failed", 404: "failed", 400: "failed", 500: "down", 503: "down"}
PASSWORD = "Zeb7-gLorp"


def refusals(bench: Bench) -> Outcome:
    """10: wrong password, wrong path, a camera that is broken: told apart, not hammered, nothing leaks."""
    out = Outcome()
    secret = ("admin", PASSWORD)
    with (
        RtspServer(bench.clips, len(REFUSALS), secret=secret) as server,
        RtspServer(bench.clips, secret=("admin", "other")) as wrong,
    ):
        for index, code in enumerate(REFUSALS, 1):
            server.order("status", cam=index, value=code)
        cameras = {f"c{code}": server.url(index) for index, code in enumerate(REFUSALS, 1)}
        cameras["wrong"] = wrong.url().replace("other", PASSWORD)
        with SiteRun(bench.folder, bench.bundle, cameras) as run:
            run.ready()
            time.sleep(20)
            for name, wanted in {
                **{f"c{code}": state for code, state in REFUSALS.items()},
                "wrong": "failed",
            }.items():
                out.must(f"{name} {wanted}", run.source(name)["state"] == wanted)
            tries = wrong.order("state")["requests"].get("DESCRIBE", 0)
            out.at_most("requests with the wrong password in 20 s", tries, 12)
            pages = [run.get(path) for path in ("", "status.json", "metrics", "healthz")]
            out.must("no password on the page", all(PASSWORD not in page for page in pages))
            _, code = run.stop()
            out.note("exit code", code)
            files = [path for path in bench.folder.rglob("*") if path.is_file() and path.name != "site.toml"]
            hits = [path.name for path in files if PASSWORD.encode() in path.read_bytes()]
            out.must(f"no password in {len(files)} files", not hits)
    return out


def wrong_time_stamps(bench: Bench) -> Outcome:
    """11: time stamps jump, stand, and are missing."""
    out = Outcome()
    with pair(bench) as both:
        for order, value in (("jump", 5.0), ("jump", -5.0), ("standing", 1.0)):
            both.gate.order(order, cam=1, value=value, s=5)
            time.sleep(6)
        time.sleep(3)
        now = time.time()
        events = both.run.events("gate")
        out.at_least("events", len(events), 5)
        spans = [event["last_s"] - event["first_s"] for event in events]
        out.at_most("longest tracklet in s (walkers stay 3)", max(spans), 12)
        out.must("no span is negative", min(spans) >= 0)
        errors = [event["last_s"] - now for event in events]
        out.at_most("an event's time ahead of ours in s", max(errors), 1)
        starts: dict[int, float] = {}
        for event in events:
            starts.setdefault(event["track"], event["first_s"])
        order_of_tracks = [starts[track] for track in sorted(starts)]
        steps = [b - a for a, b in itertools.pairwise(order_of_tracks)]
        out.at_least("smallest step between starts of tracks in s", min(steps, default=0.0), -0.5)
        out.note("reconnects", both.run.source("gate")["reconnects"])
    return out


def clock_skew(bench: Bench) -> Outcome:
    """12: the camera's clock is 90 s ahead."""
    out = Outcome()
    with RtspServer(bench.clips) as gate, RtspServer(bench.clips, 2) as yard:
        gate.order("skew", cam=1, value=90)
        with SiteRun(bench.folder, bench.bundle, {"gate": gate.url(), "yard": yard.url(2)}) as run:
            run.all_live()
            time.sleep(6)
            source = run.source("gate")
            out.at_most("error of the skew told, in s", abs((source["clock_skew_s"] or 0) - 90), 2)
            out.must("its clock is not used", source["clock"] == "arrival")
            out.must("the right clock is used", run.source("yard")["clock"] == "camera")
            out.must("a warning in the log", "clock" in run.log())
            events = run.events("gate")
            out.at_least("events", len(events), 1)
            errors = [abs(event["last_s"] - time.time()) for event in events]
            out.at_most("error of event times in s", max(errors, default=99.0), 15)
    return out
