"""Memory of a stage-2 step: activation checkpoints, and an estimate before the first step.

The estimate runs one micro-batch of the real networks on fake tensors, which have shapes and no numbers, and
counts the bytes of all storages alive. So it follows every switch of the configuration by itself.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from s3clip.config import TrainConfig
from s3clip.models.model import IdentityHeads, S3Clip, build_model
from s3clip.models.swinir import SwinIR
from s3clip.phases import Phases
from s3clip.precision import Precision
from s3clip.triplets import MicroBatch
from s3clip_runtime.inference.spec import FRAME_SIZE, LR_SIZE

CARD_GIB = 24.0
"""The paper's recipe must fit on a card of this size."""

LIBRARIES_GIB = 1.0
"""CUDA's context, cuDNN's and cuBLAS' workspaces and fragmentation, which the estimate cannot see."""


def checkpoint_activations(model: S3Clip) -> None:
    """From now on keep only the inputs of both networks' blocks for the backward pass."""
    blocks: list[nn.Module] = list(model.visual.transformer.resblocks.children())
    if isinstance(model.sr, SwinIR):
        blocks += [
            block
            for layer in model.sr.layers
            for block in layer.get_submodule("residual_group.blocks").children()
        ]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts the bytes of all storages that operations made and that are still alive.

    Args:
        known: tensors that were there before; an operation that returns a view of one makes nothing.

    Attributes:
        now: bytes alive.
        peak: the most there ever were.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run one operation and note what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def estimate_bytes(config: TrainConfig, identities: int) -> int:
    """Peak bytes of one update of stage 2: weights, gradients, Adam's moments and activations.

    Args:
        config: of the run.
        identities: N_id of the training split.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        model = copy.deepcopy(build_model(config))
        heads = copy.deepcopy(IdentityHeads(config.visual.width, config.visual.out_dim, identities))
    weights = sum(p.numel() * p.element_size() for net in (model, heads) for p in net.parameters())
    # float16 and bfloat16 are of one size, and the processor's kernels know the latter better.
    half = config.compute.precision != "fp32"
    precision = Precision("bf16" if half else "fp32", "cpu")
    with mode, LiveBytes([*model.parameters(), *heads.parameters()]) as live:
        if config.compute.checkpoint_activations:
            checkpoint_activations(model)
        text = torch.zeros(identities, config.visual.out_dim)
        phases = Phases(model, heads, text, None, config.reid, precision)
        scalers = {"sr": precision.scaler(), "visual": precision.scaler()}
        phases.accumulate(_fake_batch(config), 1.0, np.random.default_rng(0), scalers)
    trained = sum(p.numel() for p in [*phases.sr, *phases.visual.values()])
    return int(live.peak) + weights + 2 * 4 * trained  # Adam has two float32 moments


def _fake_batch(config: TrainConfig) -> MicroBatch:
    count, length = config.reid.identities * config.reid.triplets, config.reid.clip_length
    frames = torch.zeros(count, length, 3, *FRAME_SIZE, dtype=torch.uint8)
    small = torch.zeros(count, length, 3, *LR_SIZE, dtype=torch.uint8)
    zeros = torch.zeros(count, dtype=torch.int64)
    return MicroBatch(
        hr=frames,
        h2l=small,
        lr=frames if config.sr.kind == "none" else small,
        labels=zeros,
        platform_hr=zeros,
        platform_h2l=zeros,
        platform_lr=zeros,
        paired=torch.ones(count, dtype=torch.bool),
    )


def memory_report(config: TrainConfig, identities: int) -> str:
    """The estimate in a sentence, with a cure where it is beyond a 24 GB card."""
    settings = config.reid
    total = estimate_bytes(config, identities) / 2**30 + LIBRARIES_GIB
    text = (
        f"stage 2, P={settings.identities} K={settings.triplets} T={settings.clip_length}, "
        f"{config.compute.precision}: about {total:.1f} GiB of memory per process"
    )
    if total > CARD_GIB and not config.compute.checkpoint_activations:
        text += "; compute.checkpoint_activations = true needs less"
    return text
