"""What a benchmark found, as it lies in its JSON file. Times are milliseconds, `clips` are tracklets."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
)

from s3clip_runtime.inference.records import Record

SCHEMA_VERSION: Final = 1

Stage = Literal["tracklet", "prepare", "enhance", "patchify", "encode", "match", "loop"]
"""What was timed. "tracklet": from crops to embedding, which is "prepare" (resizing crops to graph inputs),
"enhance" or "patchify", and "encode"; "match": the search in a gallery; "loop": what surrounds the model."""

Crops = Literal["lr", "hr"]
"""Whether the clips are super-resolved ("lr") or not ("hr")."""

Name = Annotated[str, StringConstraints(min_length=1)]


class Machine(Record):
    """The fingerprint of a machine: two reports with the same one may be compared by their times.

    Attributes:
        cpu: the processor's name, a board's where the processor has none.
        cores: that this process may use.
        isa: extensions of the instruction set that matter to inference, such as avx512_vnni.
        memory_bytes: of the whole machine; None where it cannot be read.
        system: operating system and architecture.
        versions: of what is installed of numpy, opencv, onnxruntime, openvino, torch and tensorrt.
        gpu, driver: name of the first NVIDIA GPU and version of its driver, None without one.
    """

    cpu: Name
    cores: PositiveInt
    isa: tuple[str, ...]
    memory_bytes: PositiveInt | None
    system: str
    python: str
    versions: dict[str, str]
    gpu: str | None
    driver: str | None


class Latency(Record):
    """Wall time of a call. `first_ms` is the first call of all, apart from the `samples` others."""

    first_ms: NonNegativeFloat
    p50_ms: NonNegativeFloat
    p95_ms: NonNegativeFloat
    p99_ms: NonNegativeFloat
    samples: PositiveInt


class Spread(Record):
    """Median and quartiles."""

    median: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class StageRow(Record):
    """One stage of one contender in one setting.

    Attributes:
        contender: a `Target`'s name such as onnx-fp32, or an opponent's such as torch-eager.
        clips: tracklets of one call.
        threads: CPU threads that it was allowed.
        latency: of the whole call, not of one tracklet.
        cpu_ms: median CPU time that all threads of this process took for a call.
        tracklets_per_s: of the median call.
        speedup: how many times faster than the report's reference contender in the same round; None for
            itself and where it did not run.
        foreign_load: share of the usable cores, 0 to 1, that other processes took while it was measured.
        crops: kind of the clips.
    """

    contender: Name
    stage: Stage
    clips: PositiveInt
    threads: PositiveInt
    latency: Latency
    cpu_ms: NonNegativeFloat
    tracklets_per_s: PositiveFloat
    speedup: Spread | None
    foreign_load: Annotated[float, Field(ge=0, le=1)]
    crops: Crops = "lr"


class ContenderRow(Record):
    """What there is once of each contender.

    Attributes:
        device: where it ran, "cpu" or "cuda".
        file_bytes: size of its graphs.
        cold_start_ms: from opening the bundle to the first embedding, in a process of its own.
        peak_memory_bytes: the most that this process ever had in memory (VmHWM).
        energy_j: joules a tracklet, idle share included; None where the device does not tell.
        energy_source: what told it, or why nothing does.
        cosine_mean, cosine_min: of its embeddings and PyTorch's; None without a reference.
        top1_agreement: share of the tracklets whose nearest neighbour is PyTorch's; None without one.
    """

    contender: Name
    device: str
    file_bytes: NonNegativeInt
    cold_start_ms: NonNegativeFloat | None
    peak_memory_bytes: NonNegativeInt | None
    energy_j: NonNegativeFloat | None
    energy_source: str
    cosine_mean: FiniteFloat | None
    cosine_min: FiniteFloat | None
    top1_agreement: FiniteFloat | None


class GalleryRow(Record):
    """The search of one embedding among the prototypes of so many people; `top` matches are given."""

    people: PositiveInt
    prototypes: PositiveInt
    top: PositiveInt
    latency: Latency


class CamerasRow(Record):
    """So many file cameras at once, read as fast as they are processed.

    Attributes:
        frame_rate: frames a second that each camera would send.
        frames_per_s: of all cameras together.
        sustained: whether that is at least `cameras` times `frame_rate`.
        cores_used: CPU seconds a second of the run with its decoders.
        dropped: frames and looks that were left out.
    """

    contender: Name
    cameras: PositiveInt
    frame_rate: PositiveFloat
    frames_per_s: NonNegativeFloat
    sustained: bool
    cores_used: NonNegativeFloat
    dropped: NonNegativeInt


class Ceiling(Record):
    """What the machine itself reaches, in 10^9 operations a second."""

    name: Name
    gflops: PositiveFloat


class CostRow(Record):
    """What a graph takes on paper, per tracklet: operations (2 a multiply-add) and bytes moved."""

    graph: Name
    nodes: NonNegativeInt
    flops: NonNegativeFloat
    weight_bytes: NonNegativeFloat
    activation_bytes: NonNegativeFloat


class BenchReport(Record):
    """Content of a benchmark's JSON file.

    Attributes:
        bundle: its name; `embedding_space`: its `Manifest.embedding_space`.
        reference: the contender that `StageRow.speedup` counts against.
        data: what the clips were, a clause.
        synthetic: whether they were drawn or made up.
        refused: target to the reason why it could not run here.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    created: AwareDatetime
    machine: Machine
    bundle: str
    embedding_space: str
    reference: str
    data: str = ""
    synthetic: bool = False
    refused: dict[str, str] = Field(default_factory=dict)
    stages: tuple[StageRow, ...] = ()
    contenders: tuple[ContenderRow, ...] = ()
    galleries: tuple[GalleryRow, ...] = ()
    cameras: tuple[CamerasRow, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    costs: tuple[CostRow, ...] = ()
