"""The parts of the recipe, one at a time, on unseen synthetic identities.

    python -m benchmarks.ablation --page docs/results-accuracy.md

Each seed pretrains once and learns its prompts once; every variant starts stage 2 from there and draws the
same batches for the same number of steps. Runs are resumed, finished ones only read. Per query the metrics
are averaged over the seeds; differences to the baseline are paired over queries, with bootstrap intervals.
"""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from s3clip.checkpoint import read_run
from s3clip.config import TrainConfig, load_config
from s3clip.datasets.catalog import read_train
from s3clip.evaluation.command import evaluate_run
from s3clip.evaluation.compare import read_evaluation
from s3clip.evaluation.evaluate import EvaluationSettings
from s3clip.evaluation.figures import bucket_name, height_buckets
from s3clip.models.swinir import SwinIR
from s3clip.train import train
from s3clip.watch import SuperResolutionWatch
from s3clip_runtime.bench.machine import cpu_name
from s3clip_runtime.inference.ranking import bootstrap_interval, paired_bootstrap, sign_flip_p_value

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "synthetic.toml"
SHORT = ["reid.epochs=2", "reid.milestones=[2]"]
"""Stage 2 of every variant: 82 updates, some four minutes on one core."""

BASELINE = "baseline"
VARIANTS: dict[str, list[str]] = {
    BASELINE: ["sr.kind=bicubic"],
    "direct": ["sr.kind=none"],
    "frozen_sr": ["reid.variant=frozen_sr"],
    "joint": ["reid.variant=joint"],
    "two_phase": [],
    "no_temporal": ["reid.temporal_weight=0.0"],
    "no_tdp": ["reid.tdp_weight=0.0"],
}
HEAD = """# Results: accuracy
Written by `python -m benchmarks.ablation --page docs/results-accuracy.md`; do not edit. **Synthetic data**:
drawn people, a tiny model, unseen identities. It shows whether the recipe works here, and
nothing about real video.

`baseline` has a bicubic x2 in the place of SwinIR; `direct` leaves out the way by 64x32 and all synthetic LR,
as VSLA-CLIP does; `frozen_sr` has a pretrained SwinIR that stays as it is; `joint` is the paper's S+I;
`two_phase` its main variant; the last two leave one of its losses out. Stage 2 starts from the same weights
and prompts, draws the same batches and takes the same number of steps in all of them. Metrics are averaged
per query over the seeds; brackets are 95 % bootstrap intervals over queries, ± is the standard deviation over
seeds; p-values are of a sign-flip test and not corrected for their number.
"""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Values of each valid query of one protocol under one variant: float64 (seeds, Q), and heights (Q,)."""

    rank1: Values
    ap: Values
    height: Values


def train_all(out: Path, seeds: list[int], overrides: list[str]) -> None:
    """Every variant of every seed that is not finished."""
    for seed in seeds:
        start = out / f"start-{seed}"
        _finish(load_config(CONFIG, [*overrides, f"seed={seed}", "reid.epochs=0"]), start)
        for name, settings in VARIANTS.items():
            options = [*SHORT, *overrides, f"seed={seed}", f"start={start}", *settings]
            _finish(load_config(CONFIG, options), out / f"{name}-{seed}")


def _finish(config: TrainConfig, folder: Path) -> None:
    if not (folder / "results.json").exists():
        print(f"--- {folder}", flush=True)
        train(config, folder, threading.Event())
    if not (folder / "evaluation" / "evaluation.json").exists():
        evaluate_run(
            folder,
            folder / "evaluation",
            EvaluationSettings(),
            data=None,
            csv=False,
            stop=threading.Event(),
        )


def gather(out: Path, name: str, seeds: list[int]) -> dict[str, Measured]:
    """What a variant measured, by protocol; the queries are the same for all seeds and variants."""
    evaluations = [read_evaluation(out / f"{name}-{seed}") for seed in seeds]
    found = {}
    for protocol, first in evaluations[0].queries.items():
        values = [evaluation.queries[protocol] for evaluation in evaluations]
        found[protocol] = Measured(
            rank1=np.stack([(one.first_hit_rank == 1)[one.valid].astype(np.float64) for one in values]),
            ap=np.stack([one.ap[one.valid] for one in values]),
            height=first.height[first.valid],
        )
    return found


def overall_rows(measured: dict[str, dict[str, Measured]]) -> list[str]:
    """One line for each protocol and variant."""
    lines = [
        "| protocol | variant | Rank-1 | mAP | mAP against the baseline | p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for protocol, base in measured[BASELINE].items():
        for name in measured:
            one = measured[name][protocol]
            cells = [_share(one.rank1), _share(one.ap)]
            cells += ["", ""] if name == BASELINE else list(_difference(one.ap, base.ap))
            lines.append(f"| {protocol} | {name} | {' | '.join(cells)} |")
    return lines


def height_rows(measured: dict[str, dict[str, Measured]]) -> list[str]:
    """The differences in mAP to the baseline by the height of the query."""
    others = [name for name in measured if name != BASELINE]
    lines = [
        f"| protocol | query height | queries | baseline mAP | {' | '.join(others)} |",
        "|" + " --- |" * (4 + len(others)),
    ]
    for protocol, base in measured[BASELINE].items():
        for low, high, inside in height_buckets(base.height):
            if not inside.any():
                continue
            cells = [
                _difference(measured[name][protocol].ap[:, inside], base.ap[:, inside])[0] for name in others
            ]
            mean = 100 * base.ap[:, inside].mean()
            lines.append(
                f"| {protocol} | {bucket_name(low, high)} | {int(inside.sum())} | {mean:.1f} "
                f"| {' | '.join(cells)} |"
            )
    return lines


def findings(measured: dict[str, dict[str, Measured]]) -> str:
    """Which differences in mAP their intervals show, in a sentence a variant."""
    lines = []
    for name in measured:
        if name == BASELINE:
            continue
        better, worse = [], []
        for protocol, base in measured[BASELINE].items():
            difference = paired_bootstrap(measured[name][protocol].ap.mean(0), base.ap.mean(0))
            if difference.low > 0:
                better.append(protocol)
            if difference.high < 0:
                worse.append(protocol)
        lines.append(
            f"- `{name}`: better than the baseline in {_listed(better)}, worse in {_listed(worse)}, "
            "no difference shown elsewhere."
        )
    return "\n".join(lines)


def picture_rows(out: Path, seeds: list[int]) -> list[str]:
    """PSNR and SSIM of S on degraded HR crops of the training split, and its drift on natural LR."""
    lines = ["| variant | PSNR (dB) | SSIM | drift from bicubic on natural LR |", "| --- | --- | --- | --- |"]
    for name in VARIANTS:
        looks = [_look(out / f"{name}-{seed}") for seed in seeds]
        if all(looks):
            psnr, ssim, drift = (np.mean([look[key] for look in looks]) for key in ("psnr", "ssim", "drift"))
            lines.append(f"| {name} | {psnr:.2f} | {ssim:.4f} | {drift:.2f} |")
    return lines


def _look(run: Path) -> dict[str, float]:
    config, model, _ = read_run(run)
    if not isinstance(model.sr, SwinIR):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        watch = SuperResolutionWatch(
            model, read_train(config.data), Path(folder), every=1, count=32, device="cpu"
        )
        return watch.look(1)


def _share(values: Values) -> str:
    low, high = bootstrap_interval(values.mean(0))
    spread = f" ± {100 * values.mean(1).std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]{spread}"


def _difference(ours: Values, base: Values) -> tuple[str, str]:
    a, b = ours.mean(0), base.mean(0)
    mean, low, high = (100 * part for part in paired_bootstrap(a, b))
    p = sign_flip_p_value(a, b)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]", f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def report(out: Path, seeds: list[int]) -> str:
    """The page docs/results-accuracy.md."""
    measured = {name: gather(out, name, seeds) for name in VARIANTS}
    parts = [
        HEAD,
        f"Seeds {', '.join(map(str, seeds))}. Machine: {cpu_name()}, no GPU.\n",
        "## All queries",
        *overall_rows(measured),
        "",
        findings(measured),
        "",
        "## mAP against the baseline, by the query's height",
        *height_rows(measured),
        "",
        "## The super-resolver at the end",
        *picture_rows(out, seeds),
    ]
    return "\n".join(parts) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option("--seeds", default="1,2,3", show_default=True)
@click.option("--page", type=click.Path(path_type=Path), help="Also write docs/results-accuracy.md.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=V")
def main(out: Path, seeds: str, page: Path | None, overrides: tuple[str, ...]) -> None:
    """Train what is missing, evaluate and compare."""
    numbers = [int(word) for word in seeds.split(",")]
    train_all(out, numbers, list(overrides))
    text = report(out, numbers)
    print(text)
    if page is not None:
        page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
