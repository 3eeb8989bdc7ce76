"""Calibration of a bundle: tracklets are chosen, 8-bit graphs found and proven, and only then put into it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from s3clip_calib.candidates import BASES, OPENVINO, TARGETS, Trial, Verdict, bits_of
from s3clip_calib.choose import check_pool, choose, split
from s3clip_calib.methods import prepare
from s3clip_calib.notebook import Notebook
from s3clip_calib.ranges import Bits
from s3clip_calib.report import Evidence, check_report, render
from s3clip_calib.samples import Plain, Sample, as_reference, embeddings, labels
from s3clip_calib.statistics import describe
from s3clip_calib.study import Study, study
from s3clip_calib.tracklets import Tracklet, read_clip, read_tracklets
from s3clip_calib.workshop import Workshop
from s3clip_runtime.errors import BundleError, ConfigError, DataError
from s3clip_runtime.inference.backends.openvino import openvino_problem
from s3clip_runtime.inference.bundle import Bundle, attachment_of, write_manifest
from s3clip_runtime.inference.cpus import cpu_model
from s3clip_runtime.inference.manifest import PLAIN, Calibration, Manifest, Target
from s3clip_runtime.inference.reference import write_reference
from s3clip_runtime.inference.replace import replaced_bundle
from s3clip_runtime.inference.spec import PLATFORMS

LEAST_COUNT: Final = 8
"""Calibration tracklets; fewer gave ranges that later clips passed."""

LEAST_HELD: Final = 4
"""Tracklets to choose methods by, and as many to prove the choice on."""

POOL_FACTOR: Final = 4
"""So many times the wanted tracklets are embedded to choose from: 1 to 2 s each at full size."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be made, and from how much.

    Attributes:
        targets: of `candidates.TARGETS`; None: all that the bundle and this machine allow.
        count: calibration tracklets.
        held: tracklets that methods are chosen by, and as many that the choice is proven on, at most.
        seed: of every choice.
    """

    targets: tuple[Target, ...] | None = None
    count: int = 32
    held: int = 16
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: too few tracklets, or a target that is none of calibration's.
        """
        if self.count < LEAST_COUNT:
            raise ConfigError(
                f"--tracklets {self.count}: must be at least {LEAST_COUNT}; ranges need examples"
            )
        if self.held < LEAST_HELD:
            raise ConfigError(
                f"--held {self.held}: must be at least {LEAST_HELD}; a ranking needs neighbours"
            )
        for target in self.targets or ():
            if target not in TARGETS:
                raise ConfigError(
                    f"target {target} is not made by calibration; use {', '.join(map(str, TARGETS))}"
                )


@dataclass(frozen=True, slots=True)
class Chosen:
    """Clips by their use; no person is in two of them."""

    calibration: Sequence[Sample]
    tune: Sequence[Sample]
    held: Sequence[Sample]


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
        chosen = _choose(plain, tracklets, wanted)
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


def _choose(plain: Plain, tracklets: Sequence[Tracklet], wanted: Wanted) -> Chosen:
    """Calibration tracklets by k-centre, and people apart from them to choose and to prove by."""
    pool, others = split(tracklets, wanted.seed)
    check_pool(pool, wanted.count)
    tune, held = split(others, wanted.seed)
    for name, part in (("choose methods by", tune), ("prove them on", held)):
        if len(part) < LEAST_HELD:
            raise DataError(
                f"{len(tracklets)} tracklets leave {len(part)} to {name}, must be at least {LEAST_HELD}; "
                "add tracklets of other people"
            )
    statistics = np.stack([describe(read_clip(tracklet)) for tracklet in pool])
    few = _picked(
        np.zeros((len(pool), 1), np.float32), statistics, pool, POOL_FACTOR * wanted.count, wanted.seed
    )
    seen = plain.samples([pool[i] for i in few], "embed pool")
    order = _picked(embeddings(seen), statistics[few], [s.tracklet for s in seen], wanted.count, wanted.seed)
    return Chosen(
        [seen[i] for i in order],
        plain.samples(_some(tune, wanted), "embed tune"),
        plain.samples(_some(held, wanted), "embed held out"),
    )


def _picked(
    vectors: NDArray[np.float32],
    statistics: NDArray[np.float32],
    tracklets: Sequence[Tracklet],
    count: int,
    seed: int,
) -> list[int]:
    groups = [f"{PLATFORMS[tracklet.platform]} {tracklet.camera}" for tracklet in tracklets]
    return choose(vectors, statistics, groups, min(count, len(tracklets)), seed)


def _some(tracklets: Sequence[Tracklet], wanted: Wanted) -> list[Tracklet]:
    """At most `held` of them, of whole identities, so that there is something to find."""
    people: dict[str, list[Tracklet]] = {}
    for tracklet in tracklets:
        people.setdefault(tracklet.identity or tracklet.name, []).append(tracklet)
    order = np.random.default_rng(wanted.seed).permutation(len(people))
    groups = list(people.values())
    taken: list[Tracklet] = []
    for place in order:
        if len(taken) + len(groups[place]) <= wanted.held:
            taken += groups[place]
    return taken if len(taken) >= LEAST_HELD else list(tracklets[: wanted.held])


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
    """Remove graphs of candidates that were not taken."""
    known = {artefact.file for artefact in manifest.artefacts}
    for path in folder.glob("*.onnx"):
        if path.name not in known:
            path.unlink()
