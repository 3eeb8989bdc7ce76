"""Run folders: resolved config, metrics, atomic checkpoints. Weights are safetensors, the rest is JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s3clip.board import Board
from s3clip.config import TrainConfig, parse_config
from s3clip.models.model import S3Clip, build_model
from s3clip.models.weights import load_strict
from s3clip_runtime.errors import ConfigError, SinkError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
RESULTS = "results.json"
ORIGINS = "weights.json"
STRIPS = "strips"
CHECKPOINT = "checkpoint"


class RunFolder:
    """One training run on disk. Only one process of a run may write.

    Raises:
        ConfigError: the folder holds a run with another configuration.
    """

    def __init__(self, path: Path, config: TrainConfig, *, writer: bool = True) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        text = config.model_dump_json(indent=2)
        file = path / CONFIG
        if writer and not file.exists():
            write_atomic(file, text)
        if json.loads(file.read_text("utf-8")) != json.loads(text):
            raise ConfigError(
                f"run {path}: its {CONFIG} is of another configuration; choose a new folder or delete it"
            )
        if writer:
            self._recover()
        self._board = Board(path) if writer and config.watch.tensorboard else None

    def _recover(self) -> None:
        """Finish a `save` that was killed between its two renames."""
        final, old = self.path / CHECKPOINT, self.path / f"{CHECKPOINT}.old"
        if not final.exists() and old.exists():
            old.rename(final)

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl, and the numbers to TensorBoard where that is wanted.

        Raises:
            SinkError: it cannot be written.
        """
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SinkError(f"{self.path / METRICS}: {error}; {self._resume_hint()}") from error
        if self._board is not None:
            self._board.add(record)

    def save(
        self,
        stage: str,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        scalers: Mapping[str, torch.amp.GradScaler],
    ) -> None:
        """Replace the checkpoint by the state after `step` steps of `stage`; a kill leaves the old one.

        Raises:
            SinkError: it cannot be written, as on a full disk; the old checkpoint is kept.
        """
        folder = self.path / f"{CHECKPOINT}.new"
        state = {
            "stage": stage,
            "step": step,
            "scalers": {name: scaler.state_dict() for name, scaler in scalers.items()},
            "metrics_bytes": self._metrics_bytes(),
        }
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            save_file(_module_tensors(modules), folder / "modules.safetensors")
            save_file(_optimizer_tensors(optimizers), folder / "optimizers.safetensors")
            (folder / "state.json").write_text(json.dumps(state), "utf-8")
            _sync_folder(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SinkError(
                f"run {self.path}: the checkpoint after step {step} of stage {stage} could not be written "
                f"({error}); {self._resume_hint()}"
            ) from error
        old, final = self.path / f"{CHECKPOINT}.old", self.path / CHECKPOINT
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        folder.rename(final)
        _sync(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _resume_hint(self) -> str:
        kept = (
            "the last good checkpoint is kept" if (self.path / CHECKPOINT).exists() else "none was there yet"
        )
        return f"{kept}; free space and start again with the same command"

    def _metrics_bytes(self) -> int:
        file = self.path / METRICS
        return file.stat().st_size if file.exists() else 0

    def save_model(self, model: nn.Module) -> None:
        """Write the final weights, atomically.

        Raises:
            SinkError: they cannot be written.
        """
        part = self.path / (MODEL + ".part")
        try:
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, part)
            _sync(part)
            part.replace(self.path / MODEL)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise SinkError(
                f"{self.path / MODEL}: could not be written ({error}); {self._resume_hint()}"
            ) from error

    def position(self) -> tuple[str, int] | None:
        """(stage, finished steps) of the last checkpoint, or None for a new run."""
        if not (self.path / CHECKPOINT).exists():
            return None
        state = self._state()
        return str(state["stage"]), int(state["step"])

    def rewind_metrics(self) -> None:
        """Cut metrics.jsonl to what the checkpoint knows: steps after it will be done, and logged, again."""
        known = int(self._state()["metrics_bytes"]) if (self.path / CHECKPOINT).exists() else 0
        if self._metrics_bytes() > known:
            os.truncate(self.path / METRICS, known)

    def _state(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self.path / CHECKPOINT / "state.json").read_text("utf-8")))

    def load_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Restore the modules from the checkpoint, strictly."""
        load_modules(self.path, modules)

    def load_optimizers(
        self, optimizers: Mapping[str, torch.optim.Optimizer], scalers: Mapping[str, torch.amp.GradScaler]
    ) -> None:
        """Restore the optimizers' moments and step counts, and the loss scales."""
        for name, saved in self._state()["scalers"].items():
            if saved:  # a scaler that does nothing has no state
                scalers[name].load_state_dict(saved)
        tensors = load_file(self.path / CHECKPOINT / "optimizers.safetensors")
        for name, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, index, moment = key.split("/")
                if owner == name:
                    state.setdefault(int(index), {})[moment] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def load_modules(run: Path, modules: Mapping[str, nn.Module], *, ignore: tuple[str, ...] = ()) -> Path:
    """Fill modules from the checkpoint of a run, strictly, and return the file.

    Args:
        run: its folder.
        modules: by the names that the checkpoint uses.
        ignore: beginnings of keys (`model/sr.`) that are left out.

    Raises:
        ConfigError: the run has no checkpoint.
        WeightsError: it does not fit.
    """
    file = run / CHECKPOINT / "modules.safetensors"
    if not file.exists():
        raise ConfigError(f"run {run}: {file} is missing; name a run that s3clip-train has begun")
    tensors = {key: value for key, value in load_file(file).items() if not key.startswith(ignore)}
    for name, module in modules.items():
        state = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
        load_strict(module, state, f"{file}:{name}")
    return file


def _module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def _optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    tensors = {}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for moment, value in moments.items():
                tensors[f"{name}/{index}/{moment}"] = value.contiguous()
    return tensors


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _sync_folder(folder: Path) -> None:
    for file in folder.iterdir():
        _sync(file)


def _sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
        ConfigError: no run there, or one of another version.
    """
    file = run / CONFIG
    if not file.exists():
        raise ConfigError(f"run {run}: {CONFIG} is missing; name a folder that s3clip-train has written")
    return parse_config(cast(dict[str, Any], json.loads(file.read_text("utf-8"))), str(file))


def read_origins(run: Path) -> dict[str, str]:
    """SHA-256 of every file that the run's starting weights came from, by its path."""
    return cast(dict[str, str], json.loads((run / ORIGINS).read_text("utf-8")))


def read_run(path: Path) -> tuple[TrainConfig, S3Clip, dict[str, Any]]:
    """Configuration, trained model (in eval mode, without gradients) and results of a finished run.

    Raises:
        ConfigError: no run there, or it is not finished.
        WeightsError: its weights do not fit its configuration.
    """
    for name in (CONFIG, ORIGINS, MODEL, RESULTS):
        if not (path / name).exists():
            raise ConfigError(
                f"run {path}: {name} is missing; finish it with s3clip-train CONFIG --out {path}"
            )
    results = cast(dict[str, Any], json.loads((path / RESULTS).read_text("utf-8")))
    config = read_config(path)
    model = build_model(config)
    load_strict(model, load_file(path / MODEL), str(path / MODEL))
    return config, model.eval().requires_grad_(False), results
