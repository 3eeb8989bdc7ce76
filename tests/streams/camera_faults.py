"""Cameras that answer and send, but wrongly. Each fault runs the program and returns what came of it."""

from __future__ import annotations

import itertools
import time

from streams.lab import RtspServer, write_clips
from streams.link_faults import pair
from streams.outcome import Bench, Outcome
from streams.site_run import SiteRun


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
        RtspServer(write_clips(bench.clips, len(REFUSALS)), len(REFUSALS), secret=secret) as server,
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
