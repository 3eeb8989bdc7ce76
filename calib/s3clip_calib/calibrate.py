"""Calibration of a bundle: tracklets are chosen, 8-bit graphs found and proven, and only then put into it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

from s3clip_calib.candidates import BASES, OPENVINO, TARGETS, Trial, Verdict, bits_of
from s3clip_calib.methods import prepare
from s3clip_calib.notebook import Notebook
from s3clip_calib.ranges import Bits
from s3clip_calib.report import Evidence, check_report, render
from s3clip_calib.samples import Plain, as_reference, embeddings, labels
from s3clip_calib.selection import Chosen, Wanted, choose_clips
from s3clip_calib.study import Study, study
from s3clip_calib.workshop import Workshop
from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference.backends.openvino import openvino_problem
from s3clip_runtime.inference.bundle import Bundle, attachment_of, write_manifest
from s3clip_runtime.inference.cpus import cpu_model
from s3clip_runtime.inference.manifest import PLAIN, Calibration, Manifest, Target
from s3clip_runtime.inference.reference import write_reference
from s3clip_runtime.inference.replace import replaced_bundle
from s3clip_runtime.inference.tracklets import read_tracklets


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each target, what was left out and why, and the name of the report in the bundle."""

    verdicts: tuple[Verdict, ...]
    left_out: Mapping[Target, str]
    report: str


def calibrate(folder: Path, data: Path, wanted: Wanted) -> Outcome:
    """Give a bundle 8-bit graphs that pass the gate. Needs no PyTorch; resumes where a killed one was.

    The bundle is replaced when all is done; whatever fails before leaves it as it was. A target that no
    setting brings within its bounds is left out, and the report says what was tried.

    Args:
        folder: of a bundle with a reference.
        data: folder of tracklets, see `tracklets.read_tracklets`.
        wanted: checked.

    Raises:
        BundleError: the bundle has no reference, or holds calibrated graphs already.
        DataError: the data cannot be used: too few tracklets, one camera, unreadable pictures.
        BackendError: a graph failed.
        ConfigError: a target that was asked for cannot be made here, or the report needs missing packages.
    """
    wanted.check()
    check_report()
    bundle = Bundle.open(folder)
    targets, left_out = _targets(bundle, wanted.targets)
    tracklets = read_tracklets(data)
    with Plain(bundle) as plain:
        chosen = choose_clips(plain, tracklets, wanted)
    with tempfile.TemporaryDirectory(prefix="s3clip-calib-") as scratch:
        key = _key(bundle, data, wanted, chosen)
        with Notebook(folder.resolve().with_name(f"{folder.resolve().name}-calibration.jsonl"), key) as notes:
            studies = _studies(bundle, chosen, {bits_of(target) for target in targets}, notes)
            with replaced_bundle(folder) as staging:
                outcome = _fill(
                    staging, bundle.manifest, chosen, studies, targets, left_out, data, wanted, Path(scratch)
                )
            notes.finish()
    return outcome


def _targets(
    bundle: Bundle, asked: tuple[Target, ...] | None
) -> tuple[tuple[Target, ...], dict[Target, str]]:
    """What is made, and what is left out with the reason.

    Raises:
        BundleError, ConfigError: what was asked for cannot be made of this bundle.
    """
    manifest = bundle.manifest
    if "reference" not in manifest.attachments:
        raise BundleError(
            f"bundle {bundle.folder}: holds no reference to prove 8-bit graphs with; export it with "
            "--reference"
        )
    done = {calibration.target for calibration in manifest.calibrations}
    again = [t for t in (asked or TARGETS) if str(t) in done]
    if again:
        first = next(c for c in manifest.calibrations if c.target == str(again[0]))
        raise BundleError(
            f"bundle {bundle.folder}: is quantised already, its {first.target} was calibrated on "
            f"{first.data} with seed {first.seed}; export it again for another calibration"
        )
    quantised = any(
        node.op_type == "QuantizeLinear"
        for node in onnx.load(bundle.file("encode", PLAIN), load_external_data=False).graph.node
    )
    if quantised:
        raise BundleError(
            f"bundle {bundle.folder}: its {PLAIN} encoder is quantised already, it holds QuantizeLinear; "
            "calibrate the bundle of the float32 model"
        )
    left_out = {target: why for target in asked or TARGETS if (why := _hindrance(bundle, target)) is not None}
    if asked and left_out:
        raise ConfigError(
            "; ".join(f"target {target} cannot be made: {why}" for target, why in left_out.items())
        )
    return tuple(target for target in asked or TARGETS if target not in left_out), left_out


def _hindrance(bundle: Bundle, target: Target) -> str | None:
    if BASES[target] not in bundle.targets:
        return f"the bundle holds no {BASES[target]} graphs; export it with --fp16"
    if target == OPENVINO:
        return openvino_problem("int8")
    return None


def _key(bundle: Bundle, data: Path, wanted: Wanted, chosen: Chosen) -> str:
    """Tells everything that layers' measurements depend on."""
    names = [[s.tracklet.name for s in part] for part in (chosen.calibration, chosen.tune)]
    graph = bundle.artefact("encode", PLAIN).sha256
    said = json.dumps(
        [graph, str(data.resolve()), wanted.seed, names, version("s3clip"), version("onnxruntime")]
    )
    return hashlib.sha256(said.encode()).hexdigest()


def _studies(bundle: Bundle, chosen: Chosen, wanted: Collection[Bits], notes: Notebook) -> dict[Bits, Study]:
    model = onnx.load(bundle.file("encode", PLAIN))
    prepared = prepare(model, [sample.feed for sample in chosen.calibration])
    feeds, expected = [sample.feed for sample in chosen.tune], embeddings(chosen.tune)
    return {
        bits: study(prepared, bits, feeds, expected, len(chosen.calibration), notes)
        for bits in sorted(wanted)
    }


def _fill(
    folder: Path,
    manifest: Manifest,
    chosen: Chosen,
    studies: Mapping[Bits, Study],
    targets: Sequence[Target],
    left_out: Mapping[Target, str],
    data: Path,
    wanted: Wanted,
    scratch: Path,
) -> Outcome:
    """Write, prove and describe the 8-bit graphs in a draft of the bundle."""
    truth = as_reference(chosen.held)
    write_reference(scratch / "held.npz", truth)
    trial = Trial(folder, manifest, chosen.tune, truth, scratch / "held.npz", labels(chosen.held))
    shop = Workshop(trial, chosen.calibration, studies, scratch)
    verdicts = [shop.make(target) for target in targets]
    taken = [verdict for verdict in verdicts if verdict.artefacts]
    names = {str(verdict.target) for verdict in taken}
    evidence = Evidence(
        bundle=manifest.name,
        data=data.name,
        seed=wanted.seed,
        cpu=cpu_model(),
        calibration=chosen.calibration,
        tune=len(chosen.tune),
        held=len(chosen.held),
        studies=studies,
        timed=shop.timed,
        encoders=shop.encoders,
        pictures=shop.pictures,
        forms=shop.forms,
        verdicts=verdicts,
        left_out=left_out,
    )
    page = render(evidence).encode()
    file = folder / f"calibration-{hashlib.sha256(page).hexdigest()[:8]}.html"
    file.write_bytes(page)
    finished = manifest.changed(
        artefacts=(
            *(a for a in manifest.artefacts if str(a.target) not in names),
            *(artefact for verdict in taken for artefact in verdict.artefacts),
        ),
        proofs=(
            *(proof for proof in manifest.proofs if proof.target not in names),
            *(verdict.proof for verdict in taken),
        ),
        calibrations=(
            *manifest.calibrations,
            *(_record(verdict, studies, chosen, data, wanted) for verdict in taken),
        ),
        attachments={**manifest.attachments, "calibration": attachment_of(file)},
    )
    write_manifest(folder, finished)
    _tidy(folder, finished)
    Bundle.open(folder)
    return Outcome(tuple(verdicts), left_out, file.name)


def _record(
    verdict: Verdict, studies: Mapping[Bits, Study], chosen: Chosen, data: Path, wanted: Wanted
) -> Calibration:
    found = studies[bits_of(verdict.target)]
    assert verdict.point is not None
    assert verdict.method is not None
    kept = tuple(o.name for o in found.prepared.layers if o.name not in verdict.point.layers)
    return Calibration(
        target=str(verdict.target),
        data=data.name,
        seed=wanted.seed,
        tracklets=tuple(sample.tracklet.name for sample in chosen.calibration),
        method=verdict.method,
        smoothing=None if verdict.method == "dynamic" else found.prepared.smoothing,
        kept={"encode": kept},
    )


def _tidy(folder: Path, manifest: Manifest) -> None:
    """Remove graphs of candidates that were not taken, and what the new ones took the place of."""
    known = {entry.file for entry in manifest.artefacts}
    known |= {entry.file for entry in manifest.attachments.values()}
    for path in (*folder.glob("*.onnx"), *folder.glob("calibration-*.html")):
        if path.name not in known:
            path.unlink()
