"""A run of the smallest networks on the block world, for tests of training and what comes after it."""

from __future__ import annotations

from pathlib import Path

from s3clip.checkpoint import RunFolder
from s3clip.config import TrainConfig, parse_config
from s3clip.datasets.catalog import read_train
from s3clip.networks import build_networks
from s3clip.parallel import World
from s3clip.train import Run


def tiny_tree(root: Path, **reid: object) -> dict[str, object]:
    """Settings of a run that takes seconds; `reid` changes those of stage 2."""
    return {
        "data": {"root": str(root)},
        "clip": {"weights": "random"},
        "sr": {"embed_dim": 8, "depths": [2], "num_heads": [2]},
        "visual": {
            "width": 32,
            "layers": 2,
            "heads": 2,
            "out_dim": 16,
            "adapter_width": 8,
            "adapter_heads": 2,
            "platform_prompt_depth": 1,
        },
        "text": {"width": 16, "layers": 1, "heads": 2},
        "pretrain": {"sr_steps": 2, "sr_batch": 2, "visual_steps": 2, "visual_identities": 3},
        "prompts": {"epochs": 2, "batch": 4},
        "reid": {"epochs": 2, "identities": 2, "triplets": 1, "clip_length": 2, "accumulation": 2, **reid},
    }


def tiny_config(root: Path, **reid: object) -> TrainConfig:
    """`tiny_tree`, parsed."""
    return parse_config(tiny_tree(root, **reid), "test")


def begin_run(config: TrainConfig, folder: Path) -> Run:
    """A new run in this process, before its first stage."""
    tracklets = read_train(config.data)
    networks = build_networks(config, len({t.identity for t in tracklets}))
    return Run(config, RunFolder(folder, config), networks, tracklets, World(), config.device)
