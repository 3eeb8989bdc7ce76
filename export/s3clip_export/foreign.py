"""A super-resolver that is not ours: made by a function of the user, held to the contract by a dry run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor, nn

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.inference.spec import LR_SIZE, SR_SIZE

CONTRACT = (
    f"float32 (N, 3, {LR_SIZE[0]}, {LR_SIZE[1]}) RGB in [0, 1] to float32 (N, 3, {SR_SIZE[0]}, {SR_SIZE[1]})"
)

BATCH_TOLERANCE = 1e-4
"""Largest difference between a picture super-resolved alone and in a batch."""


def is_function(text: str) -> bool:
    """Whether `text` is MODULE:FUNCTION and not a path."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", text) is not None


def foreign_super_resolver(source: str) -> nn.Module:
    """The super-resolver that MODULE:FUNCTION makes, in eval mode and without gradients.

    The module is imported from the Python path or the working folder, and the function called without
    arguments. It returns a torch.nn.Module that maps float32 (N, 3, 64, 32) RGB in [0, 1] to
    (N, 3, 128, 64), each picture by itself, on the CPU.

    Raises:
        ConfigError: there is no such module or function, it returns something else, or a dry run breaks the
            contract.
    """
    with _working_folder():
        made = _call(source)
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"--sr {source}: the function must return a torch.nn.Module, got {type(made).__name__}; "
            "return the network itself"
        )
    module = made.eval().requires_grad_(False)
    _dry_run(module, source)
    return module


@contextmanager
def _working_folder() -> Iterator[None]:
    """A command's search path has no working folder, where a small module of the user mostly is."""
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)  # last: nothing that is installed may be hidden
    try:
        yield
    finally:
        sys.path.remove(folder)


def _call(source: str) -> object:
    name, _, function = source.partition(":")
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--sr {source}: {error.name} cannot be imported; install it, or put its file into the working "
            "folder"
        ) from error
    if not callable(make := getattr(module, function, None)):
        raise ConfigError(
            f"--sr {source}: {name} has no function {function}; name one that returns the network"
        )
    made: object = make()
    return made


def _dry_run(module: nn.Module, source: str) -> None:
    crops = torch.rand(2, 3, *LR_SIZE, generator=torch.Generator().manual_seed(0))
    whole = _output(module, crops, source)
    single = torch.cat([_output(module, crop[None], source) for crop in crops])
    difference = float((whole - single).abs().max())
    if difference > BATCH_TOLERANCE:
        raise _broken(
            source,
            f"a picture must be the same alone and in a batch to {BATCH_TOLERANCE:g}, found {difference:.3g}",
        )


@torch.no_grad()
def _output(module: nn.Module, crops: Tensor, source: str) -> Tensor:
    try:
        output: object = module(crops)
    except Exception as error:  # foreign code raises what it likes
        raise _broken(source, f"it raised {type(error).__name__} ({error})") from error
    if not isinstance(output, Tensor):
        raise _broken(source, f"it gave {type(output).__name__}, not a tensor")
    expected = (len(crops), 3, *SR_SIZE)
    if tuple(output.shape) != expected:
        raise _broken(source, f"for {len(crops)} crop(s) it gave {tuple(output.shape)}, not {expected}")
    if output.dtype != torch.float32:
        raise _broken(source, f"it gave {output.dtype}")
    if not output.isfinite().all():
        raise _broken(source, "it gave numbers that are not finite")
    return output


def _broken(source: str, found: str) -> ConfigError:
    return ConfigError(
        f"--sr {source}: must map {CONTRACT}, but in a dry run {found}; wrap it so that it does"
    )
