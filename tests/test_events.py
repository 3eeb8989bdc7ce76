"""Events as JSON: their documentation, their values, and what is never written."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3clip_runtime.gallery.open_set.decision import Decision
from s3clip_runtime.gallery.recognition.deciding import Recognised
from s3clip_runtime.gallery.records import Identity, Kind, Match
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.streams.events import (
    SCHEMA,
    STEPS,
    EventMaker,
    SightingEvent,
    Unasked,
    Verdict,
    new_run_id,
    utc_text,
)
from s3clip_runtime.streams.frames import Clock
from s3clip_runtime.streams.looks import Chosen, CropQuality, Look, Reason, Stage, Tracklet

PAGE = Path(__file__).parents[1] / "docs" / "events.md"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| (.+) \|$", re.MULTILINE)
EMBEDDING = np.array([0.6, 0.8], np.float32)


LATENCY_MS = {step: float(2**i) for i, step in enumerate(STEPS)}


def look(
    stage: Stage = "final", reason: Reason = "gone", *, clock: Clock = "camera", hr: bool = False
) -> Look:
    boxes = np.array([[0, 0, 10, 30], [5, 0, 15, 40], [10, 0, 20, 32.04]], np.float32)
    crops = tuple(np.zeros((int(box[3]), 10, 3), np.uint8) for box in boxes)
    times = np.array([1e9, 1e9 + 0.5, 1e9 + 2.25])
    quality = CropQuality(value=0.25, size=0.5, sharp=0.75, score=1.0, covered=0.1, cut=True)
    tracklet = Tracklet("gate", 1, clock, 2, 4, 1, 1e9, 1e9 + 2.25, 7, crops, (quality,) * 3, times, boxes)
    chosen = tuple(Chosen(min(i, 2), 0.125) for i in range(8))
    return Look(
        tracklet, stage, reason, Clip(tuple(crops[one.position] for one in chosen), 1, hr), chosen, live=True
    )


def make(
    found: Recognised | Unasked,
    given: Look | None = None,
    *,
    with_embedding: bool = False,
    explain: bool = False,
) -> dict[str, Any]:
    maker = EventMaker("run", "tiny", "ab" * 32, with_embedding=with_embedding, explain=explain)
    event = maker.make(given or look(), "used", EMBEDDING, found, LATENCY_MS, now_unix_s=0)
    parsed: dict[str, Any] = json.loads(event.line())
    return parsed


def person(name: str, kind: Kind) -> Identity:
    return Identity("00ff", name, kind, "", 0.0, None)


MATCH = Recognised(
    Decision("match", "anna", "anna", 0.91234, 0.612345, 0.98765, Match("bert", 0.5)),
    person("anna", "known"),
    (),
)
UNKNOWN = Recognised(Decision("unknown", None, "anna", 0.3, 0.6, 0.02, None), None, ())
UNCALIBRATED = Recognised(
    Decision("uncalibrated", None, "anna", 0.91234, None, None, Match("bert", 0.5)), None, ()
)


def test_page_lists_exactly_the_fields_in_order() -> None:
    documented = [name for name, _, _ in ROW.findall(PAGE.read_text())]
    assert documented == [field.name for field in fields(SightingEvent)]
    assert documented == list(make(MATCH))


@pytest.mark.parametrize(
    "event",
    [
        make(MATCH, with_embedding=True, explain=True),
        make(UNKNOWN, look("first", "growing", clock="stream")),
        make(UNCALIBRATED),
        make("no_gallery"),
        json.loads(re.findall(r"```json\n(.+?)\n```", PAGE.read_text(), re.DOTALL)[0]),
    ],
    ids=["match", "unknown", "uncalibrated", "no gallery", "example of the page"],
)
def test_values_have_the_documented_types(event: dict[str, Any]) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "number": (int, float),
        "integer": (int,),
        "boolean": (bool,),
        "array": (list,),
        "object": (dict,),
        "null": (type(None),),
    }
    table = {name: text for name, text, _ in ROW.findall(PAGE.read_text())}
    assert event.keys() == table.keys()
    for name, value in event.items():
        allowed = [
            kinds[word]
            for word in re.findall(r"string|number\b|integer|boolean|array|object|null", table[name])
        ]
        assert type(value) in {kind for group in allowed for kind in group}, name
    assert event["schema"] == SCHEMA


def test_facts_of_the_tracklet() -> None:
    event = make(MATCH)
    assert event["event_id"] == "run-000001"
    assert (event["camera"], event["platform"], event["track"]) == ("gate", "aerial", 4)
    assert (event["first_s"], event["last_s"], event["clock"]) == (1e9, 1e9 + 2.25, "camera")
    assert event["first_time"] == "2001-09-09T01:46:40.000Z"
    assert event["last_time"] == "2001-09-09T01:46:42.250Z"
    assert (event["frames"], event["height_px"], event["box"]) == (7, 32.0, [10.0, 0.0, 20.0, 32.0])
    assert (event["tracklet"], event["epoch"], event["part"]) == ("gate-4-1", 2, 1)
    assert (event["resolution"], event["enhanced"], event["enhancement"]) == ("lr", True, "used")
    assert (event["look"], event["reason"], event["partial"]) == ("final", "gone", False)
    assert event["latency_ms"] == {**LATENCY_MS, "total": 127.0}
    assert (event["decision"], event["identity"], event["score"]) == ("match", "anna", 0.9123)
    assert (event["person"], event["nearest"]) == ("known", "anna")
    assert (event["threshold"], event["probability"]) == (0.6123, 0.9877)
    assert event["runner_up"] == {"identity": "bert", "score": 0.5}
    assert event["embedding"] is None
    assert event["chosen"] is None


def test_only_a_person_whose_end_was_not_seen_is_partial() -> None:
    reasons: tuple[Reason, ...] = ("gone", "long", "end", "stop", "lost")
    partial = [make("no_gallery", look("final", reason))["partial"] for reason in reasons]
    assert partial == [False] * 3 + [True] * 2


def test_the_choice_is_explained_on_request() -> None:
    chosen = make(MATCH, explain=True)["chosen"]
    assert len(chosen) == 8
    assert [one["time_s"] for one in chosen[:3]] == [1e9, 1e9 + 0.5, 1e9 + 2.25]
    assert sum(one["weight"] for one in chosen) == pytest.approx(1)
    assert chosen[2]["box"] == [10.0, 0.0, 20.0, 32.0]
    assert (chosen[0]["quality"], chosen[0]["covered"], chosen[0]["cut"]) == (0.25, 0.1, True)


def test_what_could_not_be_embedded_is_still_told() -> None:
    maker = EventMaker("run", "tiny", "ab" * 32, with_embedding=True)
    event = maker.make(look("final", "stop"), "off", None, "not_embedded", LATENCY_MS, now_unix_s=0)
    assert (event.decision, event.embedding, event.enhanced, event.frames) == ("not_embedded", None, False, 7)
    assert json.loads(event.line())["partial"] is True


def test_unknown_and_file_times() -> None:
    unknown = make(UNKNOWN, look("refined", "growing", clock="stream"))
    assert (unknown["decision"], unknown["identity"], unknown["score"]) == ("unknown", None, 0.3)
    assert (unknown["runner_up"], unknown["look"]) == (None, "refined")
    assert (unknown["clock"], unknown["first_time"], unknown["last_time"]) == ("stream", None, None)
    assert (unknown["nearest"], unknown["threshold"], unknown["probability"]) == ("anna", 0.6, 0.02)


@pytest.mark.parametrize("why", ["no_gallery", "not_matched"])
def test_a_gallery_that_was_not_asked_leaves_its_fields_empty(why: Unasked) -> None:
    event = make(why, with_embedding=True)
    assert event["decision"] == why
    fields_of_it = ("identity", "person", "nearest", "score", "threshold", "probability", "runner_up")
    assert [event[name] for name in fields_of_it] == [None] * 7
    assert event["embedding"] is not None


def test_uncalibrated_names_nobody_and_shows_what_it_found() -> None:
    event = make(UNCALIBRATED)
    assert (event["decision"], event["identity"], event["person"]) == ("uncalibrated", None, None)
    assert (event["nearest"], event["score"], event["runner_up"]["identity"]) == ("anna", 0.9123, "bert")
    assert (event["threshold"], event["probability"]) == (None, None)


@pytest.mark.parametrize(
    ("kind", "decision"), [("known", "match"), ("unknown", "unknown"), ("candidate", "unknown")]
)
def test_only_people_whom_somebody_named_are_matches(kind: Kind, decision: Verdict) -> None:
    """Unknown people match their own earlier views, and an operator must not be told that they are known."""
    own = Decision("match", "unknown-1a2b3c4d", "unknown-1a2b3c4d", 0.9, 0.6, None, None)
    event = make(Recognised(own, person("unknown-1a2b3c4d", kind), ()))
    assert (event["decision"], event["person"]) == (decision, kind)
    assert (event["identity"], event["nearest"]) == ("unknown-1a2b3c4d", "unknown-1a2b3c4d")


def test_a_new_person_has_an_id_and_somebody_else_is_nearest() -> None:
    event = make(Recognised(UNKNOWN.decision, person("unknown-5e6f7a8b", "candidate"), ()))
    assert (event["decision"], event["identity"]) == ("unknown", "unknown-5e6f7a8b")
    assert (event["nearest"], event["score"]) == ("anna", 0.3)


def test_embedding_survives_the_text_exactly() -> None:
    np.testing.assert_array_equal(np.float32(make(MATCH, with_embedding=True)["embedding"]), EMBEDDING)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_never_written(bad: float) -> None:
    maker = EventMaker("run", "tiny", "ab", with_embedding=True)
    embedding = np.array([bad, 0], np.float32)
    event = maker.make(look(hr=True), "hr", embedding, "no_gallery", LATENCY_MS, now_unix_s=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        event.line()


def test_run_ids_differ_and_times_are_utc() -> None:
    assert new_run_id() != new_run_id()
    assert utc_text(0) == "1970-01-01T00:00:00.000Z"
