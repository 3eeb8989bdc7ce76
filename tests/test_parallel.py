"""Two real processes on one run, started by torchrun over gloo: the same losses and weights as one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import begin_run, tiny_config

from s3clip.checkpoint import MODEL
from s3clip.config import TrainConfig
from s3clip.parallel import World
from s3clip.train import reid_stage, train
from s3clip_runtime.errors import ConfigError

TOLERANCE = 1e-5
BIN = Path(sys.executable).parent

Record = dict[str, float | str]


def torchrun(config: TrainConfig, folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """`torchrun ... s3clip-train CONFIG --out folder`."""
    file = folder.with_suffix(".toml")
    file.write_text(
        "".join(f"[{name}]\n{_toml(part)}" for name, part in _sections(config).items()), encoding="utf-8"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--no-python", str(BIN / "s3clip-train"), str(file), "--out", str(folder)]
    command += ["--set", "checkpoint_every_s=0.0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def _sections(config: TrainConfig) -> dict[str, dict[str, object]]:
    tree = json.loads(config.model_dump_json(exclude_defaults=True))
    return {name: part for name, part in tree.items() if isinstance(part, dict)}


def _toml(part: dict[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in part.items())


def records(run: Path) -> list[Record]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = records(one), records(other)
    assert [(r["stage"], r["step"]) for r in first] == [(r["stage"], r["step"]) for r in second]
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"stage", "step"}:
            # Relative too: a gradient's norm may be in the hundreds, where float32 ends at 1e-5.
            assert a[key] == pytest.approx(b[key], abs=TOLERANCE, rel=TOLERANCE), (a["stage"], a["step"], key)
    weights, others = load_file(one / MODEL), load_file(other / MODEL)
    for key, value in weights.items():
        torch.testing.assert_close(value, others[key], atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reid",
    [
        {"accumulation": 3},  # the second process has one of three micro-batches, and none of a last one
        {"variant": "joint", "label_smoothing": "online"},
    ],
    ids=["two_phase", "joint"],
)
def test_two_processes_learn_what_one_learns(
    tiny_world: Path, tmp_path: Path, reid: dict[str, object]
) -> None:
    config = tiny_config(tiny_world, **reid)
    train(config.model_copy(update={"checkpoint_every_s": 0.0}), tmp_path / "one", threading.Event())
    done = torchrun(config, tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("overall mAP") == 1  # one writer
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(tiny_world: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_world).model_copy(update={"checkpoint_every_s": 0.0})
    train(config, tmp_path / "whole", threading.Event())
    cut = tmp_path / "cut"
    stop = threading.Event()
    watcher = threading.Thread(target=_stop_in_reid, args=(stop, cut))
    watcher.start()
    with pytest.raises(Exception, match="stopped after step"):
        train(config, cut, stop)
    watcher.join(timeout=10)
    before = len(records(cut))
    done = torchrun(config, cut, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(records(cut)) > before
    assert_equal_runs(tmp_path / "whole", cut)


def _stop_in_reid(stop: threading.Event, run: Path) -> None:
    file = run / "metrics.jsonl"
    while not stop.wait(0.002):
        if file.exists() and '"reid"' in file.read_text():
            stop.set()


def test_the_shares_of_an_update_are_all_micro_batches_once(tiny_world: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_world, accumulation=3)
    seen: list[list[int]] = []
    for rank in (0, 1):
        run = begin_run(config, tmp_path / str(rank))
        stage = reid_stage(replace(run, world=World(rank, 2)))
        stage._next_batch(0)  # makes the loader
        seen.append([n for u in stage._updates for n in range(u.first + rank, u.first + u.count, 2)])
    whole = sum(reid_stage(begin_run(config, tmp_path / "one"))._dataset.lengths)
    assert sorted(seen[0] + seen[1]) == list(range(whole))
    assert not set(seen[0]) & set(seen[1])


def test_more_processes_than_micro_batches_are_refused(tiny_world: Path, tmp_path: Path) -> None:
    run = begin_run(tiny_config(tiny_world, accumulation=2), tmp_path)
    with pytest.raises(ConfigError, match="3 processes share the 2 micro-batches"):
        reid_stage(replace(run, world=World(0, 3)))


def test_a_missing_gpu_is_an_error_and_not_a_slower_run(tiny_world: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = tiny_config(tiny_world).model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="device 'cuda' cannot be used here"):
        train(config, tmp_path, threading.Event())
