"""s3clip-bench as it is installed: the runtime's command, and the gate, which needs data sets."""

from __future__ import annotations

from s3clip_export.gate_command import gate
from s3clip_runtime.cli.bench import main

main.add_command(gate)
