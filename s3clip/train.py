"""A training run from configuration to results: data, pretraining, prompts, ReID, evaluation."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from s3clip import prompts as prompt_stage
from s3clip.batching import TripletSampler
from s3clip.checkpoint import ORIGINS, RESULTS, STRIPS, RunFolder, write_atomic
from s3clip.config import TrainConfig
from s3clip.datasets import Tracklet
from s3clip.datasets.catalog import read_protocols, read_train
from s3clip.evaluation.evaluate import evaluate
from s3clip.evaluation.figures import ProtocolResult, results_table
from s3clip.loop import Stage, run_stage
from s3clip.memory import checkpoint_activations, memory_report
from s3clip.models.swinir import SwinIR
from s3clip.networks import Networks, build_networks
from s3clip.parallel import World, join_world
from s3clip.phases import Phases
from s3clip.precision import Precision
from s3clip.pretrain import SuperResolutionPretraining, VisualPretraining
from s3clip.prompts import PromptStage
from s3clip.reid import ReidStage
from s3clip.triplets import TripletDataset
from s3clip.watch import SuperResolutionWatch


@dataclass(frozen=True)
class Run:
    """What the stages of one run share in this process."""

    config: TrainConfig
    folder: RunFolder
    networks: Networks
    tracklets: list[Tracklet]
    world: World
    device: str

    @property
    def labels(self) -> dict[int, int]:
        """Class of each identity of the training split, in sorted order."""
        return {identity: i for i, identity in enumerate(sorted({t.identity for t in self.tracklets}))}


def train(config: TrainConfig, out: Path, stop: threading.Event) -> dict[str, ProtocolResult]:
    """Run or resume `out` to its end: weights, results.json and a table on standard output.

    Under torchrun every process calls this; only the first one writes, evaluates and gets results.

    Raises:
        Interrupted: `stop` was set; the same call resumes.
        ConfigError, DataError, WeightsError, SinkError: see their messages.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with join_world(config.device) as (world, device):
        if device.startswith("cuda") and config.compute.tf32:
            torch.set_float32_matmul_precision("high")
        with world.main_first():
            folder = RunFolder(out, config, writer=world.main)
            tracklets = read_train(config.data)
            networks = build_networks(config, len({t.identity for t in tracklets}))
        with closing(folder):
            for module in networks.modules().values():
                module.to(device)
            if world.main and not (out / ORIGINS).exists():
                write_atomic(out / ORIGINS, json.dumps(networks.origins, indent=2) + "\n")
            _run_stages(Run(config, folder, networks, tracklets, world, device), stop)
    if not world.main:
        return {}
    folder.save_model(networks.model)
    results = evaluate(networks.model, read_protocols(config.data), device=device, stop=stop)
    write_atomic(out / RESULTS, json.dumps(results, indent=2))
    print(results_table(results))
    return results


def stage_makers(run: Run) -> dict[str, Callable[[], Stage]]:
    """The stages in their order; each is made when its turn comes, for it may read what came before."""
    config, networks, tracklets, labels = run.config, run.networks, run.tracklets, run.labels
    model, seed, device = networks.model, config.seed, run.device
    precision = Precision(config.compute.precision, device)

    def prompts() -> Stage:
        features = prompt_stage.cache_features(model, tracklets, precision, run.world)
        rows = torch.tensor([labels[t.identity] for t in tracklets], device=device)
        return PromptStage(networks.prompts, networks.text, features, rows, config.prompts, seed=seed)

    makers: dict[str, Callable[[], Stage]] = {}
    if config.start is None:
        if config.pretrain.sr_steps and isinstance(model.sr, SwinIR):
            makers["pretrain_sr"] = lambda: SuperResolutionPretraining(
                model, tracklets, config.pretrain, seed=seed, device=device
            )
        if config.pretrain.visual_steps:
            makers["pretrain_visual"] = lambda: VisualPretraining(
                model, networks.heads, tracklets, labels, config.pretrain, seed=seed, device=device
            )
        if config.prompts.epochs:
            makers["prompts"] = prompts
    if config.reid.epochs:
        makers["reid"] = lambda: reid_stage(run)
    return makers


def reid_stage(run: Run) -> ReidStage:
    """Stage 2 with the text features of the learnt prompts."""
    config, networks, settings = run.config, run.networks, run.config.reid
    precision = Precision(config.compute.precision, run.device)
    everyone = torch.arange(len(run.labels), device=run.device)
    with torch.no_grad():
        text = prompt_stage.text_features(networks.prompts, networks.text, everyone)
    phases = Phases(networks.model, networks.heads, text, networks.smoothing, settings, precision)
    dataset = TripletDataset(
        TripletSampler(run.tracklets, settings.identities, settings.triplets, config.seed),
        settings.epochs,
        run.labels,
        clip_length=settings.clip_length,
        flip=settings.flip,
        antialias=settings.antialias,
        direct=networks.model.direct,
        seed=config.seed,
    )
    return ReidStage(
        phases,
        dataset,
        settings,
        precision,
        smoothing=networks.smoothing,
        watch=_watch(run),
        world=run.world,
        seed=config.seed,
        workers=config.data.workers,
    )


def _watch(run: Run) -> SuperResolutionWatch | None:
    settings = run.config.watch
    if not settings.every_epochs or not run.world.main or not isinstance(run.networks.model.sr, SwinIR):
        return None
    return SuperResolutionWatch(
        run.networks.model,
        run.tracklets,
        run.folder.path / STRIPS,
        every=settings.every_epochs,
        count=settings.tracklets,
        device=run.device,
    )


def _run_stages(run: Run, stop: threading.Event) -> None:
    config, folder, modules = run.config, run.folder, run.networks.modules()
    makers = stage_makers(run)
    names = list(makers)
    position = folder.position()
    first, start = 0, 0
    if position is not None:
        folder.load_modules(modules)
        first, start = names.index(position[0]), position[1]
    if run.world.main:
        folder.rewind_metrics()
        if config.reid.epochs:
            print(memory_report(config, len(run.labels)), file=sys.stderr)
    prepare_modules(run)
    for name in names[first:]:
        run.world.share(modules.values())
        stage = makers[name]()
        if start:
            folder.load_optimizers(stage.optimizers, stage.scalers)
        if start < stage.steps:
            run_stage(
                stage,
                folder,
                modules,
                run.world,
                start=start,
                seed=config.seed,
                checkpoint_every_s=config.checkpoint_every_s,
                stop=stop,
            )
        start = 0


def prepare_modules(run: Run) -> None:
    """Activation checkpoints and compilation, which change how modules run and not what they hold."""
    model, compute = run.networks.model, run.config.compute
    if compute.checkpoint_activations:
        checkpoint_activations(model)
    if compute.compile:
        model.visual.compile()
        model.sr.compile()
