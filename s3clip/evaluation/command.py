"""A finished run to an evaluation folder: figures, the queries' values, the page, the challenge's CSV."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from s3clip.checkpoint import CONFIG, MODEL, read_run, write_atomic
from s3clip.config import DataSettings
from s3clip.datasets import Tracklet
from s3clip.datasets.catalog import is_synthetic, protocol_tracklets, read_protocols
from s3clip.evaluation.compare import EVALUATION, QUERIES, query_values, write_queries
from s3clip.evaluation.evaluate import EvaluationSettings, embed_tracklets, pair_protocols, ranked
from s3clip.evaluation.failures import Photographer, worst_failures
from s3clip.evaluation.figures import overall, protocol_result, results_table
from s3clip.evaluation.page import render_page
from s3clip.evaluation.submission import SubmissionWriter, challenge_cases
from s3clip.parallel import check_device
from s3clip_runtime.inference.records import sha256_file

PAGE = "index.html"
SUBMISSION = "submission.csv"

FAILURES_SHOWN = 5
"""Worst queries of a protocol on the page; about 150 KB each."""


def evaluate_run(
    run: Path,
    out: Path,
    settings: EvaluationSettings,
    *,
    data: Path | None,
    csv: bool,
    stop: threading.Event,
) -> dict[str, Any]:
    """Evaluate a finished run and write evaluation.json, queries.npz and index.html to `out`.

    Files of an earlier evaluation are replaced, each as a whole; evaluation.json is the last one.

    Args:
        run: folder of a finished s3clip-train.
        out: made if needed.
        data: root of a data set whose test split is used; None takes the run's own.
        csv: also write submission.csv.
        stop: ends the embedding before its next batch.

    Returns:
        What evaluation.json holds.

    Raises:
        Interrupted: `stop` was set; nothing was written.
        ConfigError, DataError, WeightsError: see their messages.
    """
    config, model, _ = read_run(run)
    device = settings.device or config.device
    check_device(device)
    source = config.data.at(data)
    protocols = read_protocols(source)
    pairs = pair_protocols(protocols, settings.pairs)
    challenge = challenge_cases(protocols) if csv else []
    tracklets = protocol_tracklets(protocols)
    model.to(device)
    rows = embed_tracklets(
        model, tracklets, device=device, clips=settings.clips, hr_rule=settings.hr_rule, stop=stop
    )
    vectors = dict(zip((t.name for t in tracklets), rows, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    photographer = Photographer(model, device)
    results, queries, failures = {}, {}, {}
    with SubmissionWriter(out / SUBMISSION) if csv else nullcontext() as submission:
        for protocol in (*protocols, *pairs):
            one = ranked(protocol, vectors, settings.rerank)  # held for one protocol only: it may be large
            results[protocol.name] = protocol_result(protocol.query, len(protocol.gallery), one.result)
            queries[protocol.name] = query_values(protocol.query, one.result)
            failures[protocol.name] = worst_failures(one, photographer, FAILURES_SHOWN)
            if submission is not None and protocol.name in challenge:
                submission.add(one)
    report = {
        **_origin(run, source),
        "settings": asdict(replace(settings, device=device)),
        "tracklets": len(tracklets),
        "protocols": results,
        "pairs": [protocol.name for protocol in pairs],
        "overall": overall({protocol.name: results[protocol.name] for protocol in protocols}),
        "gallery_sha256": {protocol.name: _sha256(protocol.gallery) for protocol in (*protocols, *pairs)},
    }
    write_queries(out / QUERIES, queries)
    write_atomic(out / PAGE, render_page(report, failures))
    write_atomic(out / EVALUATION, json.dumps(report, indent=2))
    return report


def report_table(report: dict[str, Any]) -> str:
    """The protocols' figures as a plain table."""
    results, pairs = report["protocols"], report["pairs"]
    return results_table(
        {name: row for name, row in results.items() if name not in pairs},
        {name: results[name] for name in pairs},
    )


def _origin(run: Path, source: DataSettings) -> dict[str, Any]:
    """What was evaluated, by what, and when."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "s3clip_version": version("s3clip"),
        "run": run.resolve().name,
        "config_sha256": sha256_file(run / CONFIG),
        "model_sha256": sha256_file(run / MODEL),
        "data": str(source.root),
        "synthetic": is_synthetic(source),
    }


def _sha256(tracklets: Sequence[Tracklet]) -> str:
    """Over names, identities and cameras in order: whether two evaluations ranked the same gallery."""
    lines = [f"{tracklet.name}\t{tracklet.identity}\t{tracklet.camera}\n" for tracklet in tracklets]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
