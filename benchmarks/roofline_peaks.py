"""What devices can do at most: dense products, and memory. One table, each figure with its source.

NVIDIA prints the rates of newer tensor cores with sparsity, which doubles them; these networks are not
sparse, so halves are taken. Jetson's headline figures add two DLA accelerators, which run no transformer:
GPU alone. All of them are peaks at the highest clock, which a power limit may never allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class Device:
    """A machine on paper.

    Attributes:
        name: for people.
        tflops: precision to 10^12 operations a second of dense products, a multiply-accumulate being two;
            has "int8" and one of "fp16" and "bf16".
        bandwidth_gb_s: 10^9 bytes a second of its memory.
        words: one of them is in the name of the machine's GPU or CPU in a report.
        threads: CPU threads that the figures are for; None of a GPU.
        source: the document.
        doubt: what that document does not say, or what copies of it disagree on; empty when nothing.
    """

    name: str
    tflops: Mapping[Precision, float]
    bandwidth_gb_s: float
    words: tuple[str, ...]
    threads: int | None
    source: str
    doubt: str = ""

    @property
    def half(self) -> Precision:
        """Its type of 16 bits."""
        return "fp16" if "fp16" in self.tflops else "bf16"


DEVICES = (
    Device(
        "Orin NX 16GB",
        {"fp16": 15.0, "int8": 30.0},
        102,
        ("Orin NX",),
        None,
        "NVIDIA Jetson Orin NX Series Data Sheet DS-10712-001: 32 tensor cores at 918 MHz, 102 GB/s; of its "
        "100 sparse TOPS the two DLAs are 40",
        "GPU alone is a subtraction (60 sparse), confirmed by AGX Orin's rate a core and clock; FP16 as half "
        "of INT8 is not printed; the later 40 W mode clocks higher",
    ),
    Device(
        "AGX Orin 64GB",
        {"fp16": 42.5, "int8": 85.0},
        204.8,
        ("AGX Orin",),
        None,
        "NVIDIA Jetson AGX Orin Series Data Sheet DS-10662-001 v1.8, pages 7 and 12: GPU 170 sparse TOPS "
        "INT8 at 1.3 GHz, 204.8 GB/s",
        "FP16 as half of INT8 is not printed there",
    ),
    Device(
        "T4",
        {"fp16": 65.0, "int8": 130.0},
        320,
        ("Tesla T4", "NVIDIA T4"),
        None,
        "NVIDIA T4 data sheet: 65 TFLOPS mixed precision, 130 TOPS INT8; 256 bit at 10 Gb/s",
        "copies print 300 or 320 GB/s; at its 70 W the peak clock does not hold",
    ),
    Device(
        "L4",
        {"fp16": 121.0, "int8": 242.5},
        300,
        ("NVIDIA L4 ",),
        None,
        "NVIDIA L4 data sheet: 242 TFLOPS FP16 and 485 TOPS INT8 with sparsity, 300 GB/s",
        "at its 72 W the peak clock does not hold",
    ),
    Device(
        "H100 SXM",
        {"fp16": 989.4, "int8": 1978.9},
        3350,
        ("H100 80GB HBM3", "H100 SXM"),
        None,
        "NVIDIA H100 data sheet: 1,979 TFLOPS FP16 and 3,958 TOPS INT8 with sparsity, 3.35 TB/s",
    ),
    Device(
        "EPYC Zen 4, 2 cores",
        {"fp32": 0.226, "bf16": 0.456, "int8": 0.900},
        22,
        ("AMD EPYC",),
        2,
        "measured on the development machine: loops on registers, 113, 228 and 450 GFLOPS a core; searching "
        "a gallery of 100,000 streams 11 GB/s a core",
        "that two cores stream twice as much was not measured; other EPYCs differ",
    ),
)
