"""Several processes on one run, started by torchrun on one machine or many.

Every process holds all weights and takes its share of an update's micro-batches; gradients are summed once
an update. `DistributedDataParallel` is not used on purpose: hard mining acts inside a micro-batch (A26), the
two phases train different parameters, and an update communicates some 54 MB after seconds of work, so there
is nothing to overlap. What it buys: the number of processes changes a run's speed, never what it computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from s3clip_runtime.errors import ConfigError

TIMEOUT = timedelta(hours=2)
"""Longest wait for the other processes: the first one indexes a data set of millions of files alone."""


@dataclass(frozen=True)
class World:
    """This process among those of the run. All methods do nothing for a single one."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes: logs, checkpoints, results."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them get the same answer."""
        if self.size == 1:
            return flag
        total = torch.tensor([float(flag)])
        dist.all_reduce(total)
        return bool(total.item())

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace float32 tensors of one device by their sums over all processes, in one message."""
        chosen = list(tensors)
        if self.size == 1 or not chosen:
            return
        flat = torch.cat([tensor.flatten() for tensor in chosen])
        dist.all_reduce(flat)
        for tensor, part in zip(
            chosen, torch.split(flat, [tensor.numel() for tensor in chosen]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes; one that had no micro-batch counts as zero."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.sum(gradients)

    def share(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the block alone, then the others: they find its files."""
        if self.size > 1 and not self.main:
            dist.barrier()
        yield
        if self.size > 1 and self.main:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[tuple[World, str]]:
    """The processes that torchrun started, or one alone, and the device of this one.

    Args:
        device: of the configuration; "cuda" becomes this process' own GPU.

    Raises:
        ConfigError: a CUDA device is asked for that this machine does not have.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(device)
    if size == 1:
        yield World(), device
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), size), device
    finally:
        dist.destroy_process_group()


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: the name is none of PyTorch's, or there is no such device.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA asserts
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"device {device!r} cannot be used here ({first}); use 'cpu', or start fewer processes than GPUs"
        ) from None
