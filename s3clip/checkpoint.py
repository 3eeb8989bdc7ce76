"""Run folders: resolved config, metrics, atomic checkpoints. Weights are safetensors, the rest is JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s3clip.config import TrainConfig, parse_config
from s3clip.model import S3Clip, build_model
from s3clip.weights import load_strict
from s3clip_runtime.errors import ConfigError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
RESULTS = "results.json"
CHECKPOINT = "checkpoint"


class RunFolder:
    """One training run on disk.

    Raises:
        ConfigError: the folder holds a run with another configuration.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        text = config.model_dump_json(indent=2)
        file = path / CONFIG
        if not file.exists():
            write_atomic(file, text)
        elif json.loads(file.read_text("utf-8")) != json.loads(text):
            raise ConfigError(
                f"run {path}: its {CONFIG} is of another configuration; choose a new folder or delete it"
            )

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(
        self,
        stage: str,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        """Replace the checkpoint by the state after `step` steps of `stage`; a kill leaves the old one."""
        folder = self.path / f"{CHECKPOINT}.new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            tensors |= {f"{name}/{key}": value.contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, folder / "modules.safetensors")
        save_file(_optimizer_tensors(optimizers), folder / "optimizers.safetensors")
        (folder / "state.json").write_text(json.dumps({"stage": stage, "step": step}), "utf-8")
        _sync_folder(folder)
        old, final = self.path / f"{CHECKPOINT}.old", self.path / CHECKPOINT
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        folder.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def position(self) -> tuple[str, int] | None:
        """(stage, finished steps) of the last checkpoint, or None for a new run."""
        final, old = self.path / CHECKPOINT, self.path / f"{CHECKPOINT}.old"
        if not final.exists() and old.exists():  # killed between the two renames of `save`
            old.rename(final)
        if not final.exists():
            return None
        state = json.loads((final / "state.json").read_text("utf-8"))
        return str(state["stage"]), int(state["step"])

    def load_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Restore the modules from the checkpoint, strictly."""
        tensors = load_file(self.path / CHECKPOINT / "modules.safetensors")
        for name, module in modules.items():
            state = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
            load_strict(module, state, f"{self.path / CHECKPOINT}:{name}")

    def load_optimizers(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Restore the optimizers' moments and step counts."""
        tensors = load_file(self.path / CHECKPOINT / "optimizers.safetensors")
        for name, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, index, moment = key.split("/")
                if owner == name:
                    state.setdefault(int(index), {})[moment] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


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
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def read_run(path: Path) -> tuple[TrainConfig, S3Clip, dict[str, Any]]:
    """Configuration, trained model (in eval mode, without gradients) and results of a finished run.

    Raises:
        ConfigError: no run there, or it is not finished.
        WeightsError: its weights do not fit its configuration.
    """
    for name in (CONFIG, MODEL, RESULTS):
        if not (path / name).exists():
            raise ConfigError(
                f"run {path}: {name} is missing; finish it with s3clip-train CONFIG --out {path}"
            )
    tree = cast(dict[str, Any], json.loads((path / CONFIG).read_text("utf-8")))
    results = cast(dict[str, Any], json.loads((path / RESULTS).read_text("utf-8")))
    config = parse_config(tree, str(path / CONFIG))
    model = build_model(config)
    load_strict(model, load_file(path / MODEL), str(path / MODEL))
    return config, model.eval().requires_grad_(False), results
