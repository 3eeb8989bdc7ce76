"""What a bundle's manifest says: graphs, engines, their contract and their proofs."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference import spec
from s3clip_runtime.inference.records import Record

SCHEMA_VERSION: Final = 2
SWITCH_SCHEMA_VERSION: Final = 3
"""Of a manifest with a switch: a runtime that would not obey it says that it is too old."""

TIERS_SCHEMA_VERSION: Final = 4
"""Of a manifest with OpenVINO's targets, or with a switch that tells the interval of its cost."""

SCHEMA_VERSIONS: Final = (SCHEMA_VERSION, SWITCH_SCHEMA_VERSION, TIERS_SCHEMA_VERSION)
"""All that are read here."""

Role = Literal["enhance", "patchify", "encode"]
Backend = Literal["onnx", "tensorrt", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
AttachmentRole = Literal["reference", "report", "range_audit"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


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
        known = {str(target): target for target in TARGETS}
        if text not in known:
            raise ConfigError(f"target {text!r} is unknown; use one of {', '.join(known)}")
        return known[text]


PLAIN: Final = Target("onnx", "fp32")
"""The graphs that every bundle holds, and that all others are made from."""

TARGETS: Final = (
    PLAIN,
    Target("onnx", "fp16"),
    Target("tensorrt", "fp32"),
    Target("tensorrt", "fp16"),
    Target("openvino", "bf16"),
    Target("openvino", "int8"),
)
"""All that a bundle may hold. OpenVINO's share files with `PLAIN`: they say what computes them, and in which
precision."""


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
        if (self.engine is None) == (self.backend == "tensorrt"):
            raise ValueError(f"{self.file}: an engine entry belongs to backend tensorrt, and to it alone")
        if self.target not in TARGETS:
            raise ValueError(
                f"{self.file}: target {self.target} must be one of {', '.join(map(str, TARGETS))}"
            )
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
        ms_change: with minus without, with its bootstrap interval over batches; None in a bundle that was
            measured before there was one.
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
    ms_change: Interval | None = None


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

    schema_version: Literal[2, 3, 4] = SCHEMA_VERSION
    name: str
    created: AwareDatetime
    s3clip_version: str
    embedding_space: Sha256
    contract: Contract
    artefacts: tuple[Artefact, ...]
    training: dict[str, JsonValue]
    proofs: tuple[Proof, ...]
    attachments: dict[AttachmentRole, Attachment] = Field(default_factory=dict)
    switch: Switch | None = None

    @model_validator(mode="after")
    def _version_fits_content(self) -> Manifest:
        needed = self._needed_version()
        if self.schema_version != needed:
            raise ValueError(
                f"schema_version must be {needed} for what it holds, found {self.schema_version}"
            )
        return self

    def changed(self, **fields: object) -> Manifest:
        """The manifest with other fields, and the schema version that they need."""
        drafted = self.model_copy(update=fields)
        return drafted.model_copy(update={"schema_version": drafted._needed_version()})

    def _needed_version(self) -> int:
        """The oldest schema that can tell all of it: older runtimes read what they can obey."""
        buckets = () if self.switch is None else self.switch.buckets
        tiers = any(artefact.backend == "openvino" for artefact in self.artefacts)
        if tiers or any(bucket.ms_change is not None for bucket in buckets):
            return TIERS_SCHEMA_VERSION
        return SCHEMA_VERSION if self.switch is None else SWITCH_SCHEMA_VERSION

    def with_switch(self, switch: Switch) -> Manifest:
        """The manifest with this switch in the place of any that it had."""
        return self.changed(switch=switch)
