"""What a bundle's manifest says: graphs, engines, their contract and their proofs."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference import spec
from s3clip_runtime.inference.evidence import Proof, Speed, Switch
from s3clip_runtime.inference.records import Record

SCHEMA_VERSION: Final = 2
SWITCH_SCHEMA_VERSION: Final = 3
"""Of a manifest with a switch: a runtime that would not obey it says that it is too old."""

TIERS_SCHEMA_VERSION: Final = 4
"""Of a manifest with OpenVINO's targets, or with a switch that tells the interval of its cost."""

EIGHT_BIT_SCHEMA_VERSION: Final = 5
"""Of a manifest with a target of `EIGHT_BIT_TARGETS`, a calibration or a speed."""

SCHEMA_VERSIONS: Final = (
    SCHEMA_VERSION,
    SWITCH_SCHEMA_VERSION,
    TIERS_SCHEMA_VERSION,
    EIGHT_BIT_SCHEMA_VERSION,
)
"""All that are read here."""

Role = Literal["enhance", "patchify", "encode"]
Backend = Literal["onnx", "tensorrt", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8-fp16"]
"""Of the arithmetic. Those with a hyphen name the 8 bits of what is quantised, and what all else is in."""

QUANTISED: Final[frozenset[Precision]] = frozenset({"int8", "int8-fp16", "fp8-fp16"})
"""Precisions of 8 bits: smaller, but faster only where a machine has been seen to be."""

CalibrationMethod = Literal["dynamic", "max", "percentile", "mse", "entropy"]
AttachmentRole = Literal["reference", "report", "range_audit", "calibration"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Target(NamedTuple):
    """What a set of three graphs is made for; `str` gives its name, like `tensorrt-fp16`."""

    backend: Backend
    precision: Precision

    def __str__(self) -> str:
        return f"{self.backend}-{self.precision}"

    @property
    def quantised(self) -> bool:
        """Whether its precision is one of `QUANTISED`."""
        return self.precision in QUANTISED

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

EIGHT_BIT_TARGETS: Final = (
    Target("onnx", "int8"),
    Target("onnx", "int8-fp16"),
    Target("onnx", "fp8-fp16"),
    Target("tensorrt", "int8-fp16"),
    Target("tensorrt", "fp8-fp16"),
)
"""Graphs with explicit QuantizeLinear and DequantizeLinear, made with a `Calibration`, and their engines."""

TARGETS: Final = (
    PLAIN,
    Target("onnx", "fp16"),
    Target("tensorrt", "fp32"),
    Target("tensorrt", "fp16"),
    Target("openvino", "bf16"),
    Target("openvino", "int8"),
    *EIGHT_BIT_TARGETS,
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


class Calibration(Record):
    """How the graphs of one 8-bit target were made.

    Attributes:
        target: name of the `Target`.
        data: name of the data set's folder.
        seed: of the choice of tracklets.
        tracklets: names of those that the ranges came from, in the order of choice.
        method: how a range was taken from what was observed; "dynamic": not at all, it is found in every run.
        smoothing: exponent of the migration of scales from activations to weights; None: none was done.
        kept: layers that stay in the higher precision, by graph.
    """

    target: str
    data: str
    seed: NonNegativeInt
    tracklets: tuple[str, ...]
    method: CalibrationMethod
    smoothing: FiniteFloat | None
    kept: dict[Role, tuple[str, ...]]


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
    `with_switch`. `calibrations` has one entry an 8-bit target that was made with data, `speeds` one for each
    target on each machine that measured it.
    """

    schema_version: Literal[2, 3, 4, 5] = SCHEMA_VERSION
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
    calibrations: tuple[Calibration, ...] = ()
    speeds: tuple[Speed, ...] = ()

    @model_validator(mode="after")
    def _version_fits_content(self) -> Manifest:
        needed = self._needed_version()
        if self.schema_version != needed:
            raise ValueError(
                f"schema_version must be {needed} for what it holds, found {self.schema_version}"
            )
        return self

    def changed(self, **fields: object) -> Manifest:
        """The manifest with other fields, and the schema version that they need.

        A target whose graphs become other ones loses its speeds, unless `speeds` are given.
        """
        drafted = self.model_copy(update=fields)
        if "speeds" not in fields:
            valid = [one for one in self.speeds if self._graphs(one.target) == drafted._graphs(one.target)]
            drafted = drafted.model_copy(update={"speeds": tuple(valid)})
        return drafted.model_copy(update={"schema_version": drafted._needed_version()})

    def _graphs(self, target: str) -> dict[Role, Artefact]:
        return {artefact.role: artefact for artefact in self.artefacts if str(artefact.target) == target}

    def _needed_version(self) -> int:
        """The oldest schema that can tell all of it: older runtimes read what they can obey."""
        eight_bits = any(artefact.target in EIGHT_BIT_TARGETS for artefact in self.artefacts)
        if eight_bits or self.calibrations or self.speeds:
            return EIGHT_BIT_SCHEMA_VERSION
        buckets = () if self.switch is None else self.switch.buckets
        tiers = any(artefact.backend == "openvino" for artefact in self.artefacts)
        if tiers or any(bucket.ms_change is not None for bucket in buckets):
            return TIERS_SCHEMA_VERSION
        return SCHEMA_VERSION if self.switch is None else SWITCH_SCHEMA_VERSION

    def with_switch(self, switch: Switch) -> Manifest:
        """The manifest with this switch in the place of any that it had."""
        return self.changed(switch=switch)
