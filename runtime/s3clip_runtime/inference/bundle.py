"""The bundle: a folder of exported graphs and one `manifest.json` that proves what they are.

The exporter writes it; the reader verifies every byte before anything is loaded. A graph is one
self-contained file: weights kept beside it as external data would escape the check.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from s3clip_runtime.errors import BundleError, ConfigError
from s3clip_runtime.inference import spec

SCHEMA_VERSION: Final = 2
SWITCH_SCHEMA_VERSION: Final = 3
"""Of a manifest with a switch: a runtime that would not obey it says that it is too old."""
MANIFEST_FILE = "manifest.json"
_CURE = "export again with s3clip-export"

Role = Literal["enhance", "patchify", "encode"]
Backend = Literal["onnx", "tensorrt"]
Precision = Literal["fp32", "fp16"]
AttachmentRole = Literal["reference", "report", "range_audit"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_R = TypeVar("_R", bound="Record")


class Record(BaseModel):
    """A part of a manifest: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Target(NamedTuple):
    """What a set of three graphs is made for; `str` gives its name, like `tensorrt-fp16`."""

    backend: Backend
    precision: Precision

    def __str__(self) -> str:
        return f"{self.backend}-{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target of a name.

        Raises:
            ConfigError: the name is none.
        """
        known = {str(t): t for t in map(cls._make, product(get_args(Backend), get_args(Precision)))}
        if text not in known:
            raise ConfigError(f"target {text!r} is unknown; use one of {', '.join(known)}")
        return known[text]


PLAIN: Final = Target("onnx", "fp32")
"""The graphs that every bundle holds, and that all others are made from."""


class Engine(Record):
    """By what and for what a TensorRT engine was built: its plan runs nowhere else.

    `profile` is the smallest, usual and largest batch; `inputs` and `outputs` name every tensor with its type
    and shape as `backends.TensorInfo` prints them.
    """

    tensorrt: str
    compute_capability: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
    gpu: str
    driver: str
    onnx_sha256: Sha256
    profile: tuple[PositiveInt, PositiveInt, PositiveInt]
    inputs: dict[str, str]
    outputs: dict[str, str]


class Artefact(Record):
    """One file of the bundle. `file` is relative to the folder; `bytes` is its size.

    `opset` of an engine is that of the ONNX graph it was built from. `engine` is there for TensorRT alone.
    """

    role: Role
    file: Annotated[str, StringConstraints(min_length=1)]
    precision: Precision
    backend: Backend
    opset: PositiveInt
    sha256: Sha256
    bytes: NonNegativeInt
    engine: Engine | None = None

    @model_validator(mode="after")
    def _engine_fits_backend(self) -> Artefact:
        if (self.engine is None) != (self.backend == "onnx"):
            raise ValueError(f"{self.file}: an engine entry belongs to backend tensorrt, and to it alone")
        return self

    @property
    def target(self) -> Target:
        """The set that it belongs to."""
        return Target(self.backend, self.precision)


class Contract(Record):
    """The numbers of `inference.spec` that the graphs were built for. Sizes are (height, width)."""

    lr_size: tuple[int, int]
    sr_size: tuple[int, int]
    frame_size: tuple[int, int]
    patches: int
    clip_length: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    hr_min_size: tuple[int, int]
    platforms: tuple[str, ...]
    token_width: PositiveInt
    embedding_dim: PositiveInt

    @classmethod
    def current(cls, token_width: int, embedding_dim: int, patches: int = spec.PATCHES) -> Contract:
        """The contract of this runtime for a model of the given widths and patch tokens of a frame."""
        return cls(
            lr_size=spec.LR_SIZE,
            sr_size=spec.SR_SIZE,
            frame_size=spec.FRAME_SIZE,
            patches=patches,
            clip_length=spec.CLIP_LENGTH,
            pixel_mean=spec.PIXEL_MEAN,
            pixel_std=spec.PIXEL_STD,
            hr_min_size=spec.HR_MIN_SIZE,
            platforms=spec.PLATFORMS,
            token_width=token_width,
            embedding_dim=embedding_dim,
        )


class Interval(Record):
    """A measured value and the ends of its 95 % confidence interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Proof(Record):
    """How close the graphs of one target came to the PyTorch model, and the bounds they had to hold.

    Attributes:
        target: name of the `Target`.
        device: where it was measured, with the GPU's name.
        stages: stage to its error when it is fed with the reference's own input. `frames`: share of clips
            whose frames the runtime would choose otherwise; `pixels`: largest difference of resized crops,
            of 1; the graphs: largest error as a share of the output's largest absolute value.
        cosine_mean: of PyTorch's and the graphs' embeddings; also their 1st percentile and minimum.
        max_abs_error: of embedding elements.
        top1_agreement: share of tracklets whose nearest neighbour is the same one; for `top10_agreement`
            the share of the ten nearest that both have.
        kendall_tau: mean rank correlation of all other tracklets' similarities, tau-b.
        rank1_change: the graphs' Rank-1 minus PyTorch's in [-1, 1], None where the data has no protocol.
        map_change: as `rank1_change` for mAP.
        bounds: figure to the value that it had to reach or stay below.
    """

    target: str
    device: str
    tracklets: PositiveInt
    crops: PositiveInt
    stages: dict[str, FiniteFloat]
    cosine_mean: FiniteFloat
    cosine_p1: FiniteFloat
    cosine_min: FiniteFloat
    max_abs_error: FiniteFloat
    top1_agreement: FiniteFloat
    top10_agreement: FiniteFloat
    kendall_tau: FiniteFloat
    rank1_change: Interval | None
    map_change: Interval | None
    bounds: dict[str, FiniteFloat]


class HeightBucket(Record):
    """LR tracklets whose clip's median crop height lies above `low_px` and at or below `high_px`.

    `with` and `without` compare two rules that differ in this bucket alone: super-resolution up to
    `high_px`, and up to `low_px`. Both hold for queries and gallery alike.

    Attributes:
        tracklets: LR ones of this height.
        people: identities with a query that the bucket touches: it or a right answer of it has this height.
        queries: those queries, of all protocols.
        rank1_with, rank1_without, map_with, map_without: means over these people, each the mean over the
            queries of one, in [0, 1].
        rank1_change, map_change: with minus without, with its bootstrap interval over people.
        ms_with, ms_without: time a tracklet takes, from its crops to its embedding.
    """

    low_px: NonNegativeFloat
    high_px: PositiveFloat
    tracklets: PositiveInt
    people: PositiveInt
    queries: PositiveInt
    rank1_with: FiniteFloat
    rank1_without: FiniteFloat
    map_with: FiniteFloat
    map_without: FiniteFloat
    rank1_change: Interval
    map_change: Interval
    ms_with: PositiveFloat
    ms_without: PositiveFloat


class Switch(Record):
    """Up to which height of a person super-resolution is worth its time, and how that was measured.

    Attributes:
        max_height_px: LR clips whose median crop height is above are not enhanced; 0: none is, None: all are.
        min_gain: gain of mAP in [0, 1] that had to be possible for super-resolution to stay on.
        data: name of the data set. `synthetic`: its crops were drawn by s3clip itself.
        tracklets, queries: of the whole measurement, HR ones included.
        target: name of the `Target` that ran. `device`: where, with the GPU's name.
        buckets: from the smallest heights to the tallest, without gaps.
    """

    max_height_px: NonNegativeFloat | None
    min_gain: FiniteFloat
    data: str
    synthetic: bool
    tracklets: PositiveInt
    queries: PositiveInt
    target: str
    device: str
    created: AwareDatetime
    buckets: Annotated[tuple[HeightBucket, ...], Field(min_length=1)]

    @property
    def rule(self) -> str:
        """Which LR clips are super-resolved, a clause for a sentence."""
        if self.max_height_px is None:
            return "LR clips of every height are super-resolved"
        if self.max_height_px == 0:
            return "no clip is super-resolved"
        return f"LR clips up to {self.max_height_px:g} px are super-resolved"


class Attachment(Record):
    """A file that belongs to the bundle and is no graph. `file` is relative to the folder."""

    file: Annotated[str, StringConstraints(min_length=1)]
    sha256: Sha256
    bytes: NonNegativeInt


class Manifest(Record):
    """Content of `manifest.json`.

    `embedding_space` is the SHA-256 of the encode graph's weights: galleries refuse to mix two of them.
    `training` holds the resolved config of the training run and its id. `proofs` has one entry a target; only
    while the exporter is still measuring one may be missing: `Bundle.open` refuses such a manifest.
    `attachments` are found by their role, like `report`. `switch` is missing where none was measured: see
    `with_switch`.
    """

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    name: str
    created: AwareDatetime
    s3clip_version: str
    embedding_space: Sha256
    contract: Contract
    artefacts: tuple[Artefact, ...]
    training: dict[str, JsonValue]
    proofs: tuple[Proof, ...]
    attachments: dict[AttachmentRole, Attachment] = {}
    switch: Switch | None = None

    @model_validator(mode="after")
    def _version_fits_switch(self) -> Manifest:
        if (self.switch is None) != (self.schema_version == SCHEMA_VERSION):
            raise ValueError(
                f"a switch belongs to schema_version {SWITCH_SCHEMA_VERSION}, and to it alone, "
                f"found {self.schema_version}"
            )
        return self

    def with_switch(self, switch: Switch) -> Manifest:
        """The manifest with this switch in the place of any that it had, and the schema version of such."""
        return self.model_copy(update={"switch": switch, "schema_version": SWITCH_SCHEMA_VERSION})


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle, made by `open`, or by `draft` while it is being proven."""

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> Bundle:
        """Read the manifest and verify every file, every rule and every number against this runtime.

        Raises:
            BundleError: names the file, the rule, both values and the cure.
        """
        bundle = Bundle.draft(path)
        _check_proofs(path, bundle.manifest)
        return bundle

    @staticmethod
    def draft(path: Path) -> Bundle:
        """As `open`, but proofs may be missing: for those who make them.

        Raises:
            BundleError: as `open`.
        """
        if not path.is_dir():
            raise BundleError(f"bundle {path}: the folder does not exist; give the folder of s3clip-export")
        manifest = read_record(path / MANIFEST_FILE, Manifest, SCHEMA_VERSION, SWITCH_SCHEMA_VERSION)
        _check_contract(path, manifest.contract)
        _check_roles(path, manifest.artefacts)
        for artefact in manifest.artefacts:
            check_file(path, artefact.role, artefact)
        for role, attachment in manifest.attachments.items():
            check_file(path, role, attachment)
        return Bundle(path, manifest)

    def enhances(self, height_px: float) -> bool:
        """Whether an LR clip of this height (`Clip.height_px`) is to be super-resolved; an HR clip never is.

        Without a switch all heights are.
        """
        switch = self.manifest.switch
        return switch is None or switch.max_height_px is None or height_px <= switch.max_height_px

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the bundle holds graphs for, in the manifest's order."""
        return tuple(dict.fromkeys(a.target for a in self.manifest.artefacts))

    def artefact(self, role: Role, target: Target) -> Artefact:
        """The manifest's entry of one graph.

        Raises:
            BundleError: the bundle holds no graphs for this target.
        """
        for artefact in self.manifest.artefacts:
            if artefact.role == role and artefact.target == target:
                return artefact
        raise BundleError(
            f"bundle {self.folder}: holds no {target} graphs, only {', '.join(map(str, self.targets))}; "
            "choose one of these or export again with s3clip-export"
        )

    def file(self, role: Role, target: Target) -> Path:
        """Path of one graph.

        Raises:
            BundleError: as in `artefact`.
        """
        return self.folder / self.artefact(role, target).file


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def attachment_of(path: Path) -> Attachment:
    """The manifest's entry of a file that lies in the bundle's folder."""
    return Attachment(file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`. Raises as `write_record`."""
    # Runtimes of schema 2 refuse the key, also where it holds nothing.
    write_record(folder / MANIFEST_FILE, manifest, without={"switch"} if manifest.switch is None else ())


def write_record(path: Path, record: Record, without: Collection[str] = ()) -> None:
    """Write a manifest, but for some keys: after a crash there is the old file or the new one, never half.

    Raises:
        BundleError: the folder is missing or cannot be written.
    """
    text = record.model_dump_json(indent=2, exclude=set(without)) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
    finally:
        if path.parent.is_dir():
            draft.unlink(missing_ok=True)


def read_record(path: Path, kind: type[_R], *versions: int) -> _R:
    """Read a manifest that `write_record` wrote.

    Args:
        path: of the file.
        kind: what it holds; has a field `schema_version`.
        versions: the schemas that are read here.

    Raises:
        BundleError: it is missing, cannot be read, or has another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: the manifest is missing; {_CURE}") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}); {_CURE}") from error
    # The version first: a later schema would otherwise fail with a list of unknown keys.
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found not in versions:
        raise BundleError(
            f"{path}: schema_version must be {' or '.join(map(str, versions))}, found {found!r}; "
            f"{_CURE} of this version or update this runtime"
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise BundleError(f"{path}: {'; '.join(faults)}; {_CURE}") from error


def _check_contract(folder: Path, built: Contract) -> None:
    current = Contract.current(built.token_width, built.embedding_dim, built.patches)
    pairs = {name: (getattr(built, name), getattr(current, name)) for name in Contract.model_fields}
    faults = [f"{name} is {ours!r} here, {its!r} in it" for name, (its, ours) in pairs.items() if its != ours]
    if faults:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: the bundle was built for other numbers of inference: "
            f"{'; '.join(faults)}; {_CURE} of this version"
        )


def _check_roles(folder: Path, artefacts: tuple[Artefact, ...]) -> None:
    found = Counter((a.role, a.target) for a in artefacts)
    for target in {PLAIN, *(a.target for a in artefacts)}:
        for role in get_args(Role):
            count = found[role, target]
            if count != 1:
                raise BundleError(
                    f"{folder / MANIFEST_FILE}: role {role} ({target}) must be there "
                    f"exactly once, found {count} times; {_CURE}"
                )


def _check_proofs(folder: Path, manifest: Manifest) -> None:
    unproven = {str(a.target) for a in manifest.artefacts} - {proof.target for proof in manifest.proofs}
    if unproven:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: the proof of {', '.join(sorted(unproven))} is missing; "
            f"s3clip-export verify writes it, or {_CURE}"
        )


def check_file(folder: Path, role: str, artefact: Artefact | Attachment) -> None:
    """Hold a file to its entry.

    Raises:
        BundleError: it is missing, lies outside of the folder, or has another size or SHA-256.
    """
    path = folder / artefact.file
    # resolve() follows links too: a link out of the folder points at bytes nobody exported.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"{folder}: file {artefact.file!r} must lie in the bundle's folder, "
            f"it points to {path.resolve()}; {_CURE}"
        )
    if not path.is_file():
        raise BundleError(f"{path}: the file of role {role} is missing; {_CURE}")
    try:
        size = path.stat().st_size
        if size != artefact.bytes:
            raise BundleError(f"{path}: size must be {artefact.bytes} bytes, found {size}; {_CURE}")
        digest = sha256_file(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if digest != artefact.sha256:
        raise BundleError(f"{path}: SHA-256 must be {artefact.sha256}, found {digest}; {_CURE}")
