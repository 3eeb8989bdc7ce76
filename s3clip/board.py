"""Metrics for TensorBoard, where the extra is installed and the configuration asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s3clip_runtime.errors import ConfigError

FOLDER = "tensorboard"


class Board:
    """Event files below a run folder.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ConfigError(
                'watch.tensorboard is set, but it is not installed: pip install "s3clip[tensorboard]"'
            ) from error
        self._writer = SummaryWriter(str(run / FOLDER))

    def add(self, record: Mapping[str, object]) -> None:
        """Write the numbers of one step as STAGE/NAME and hand them to the disk."""
        for key, value in record.items():
            if key != "step" and isinstance(value, float):
                self._writer.add_scalar(f"{record['stage']}/{key}", value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
