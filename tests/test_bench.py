"""The parts of a benchmark against what is known beforehand: planted samples, sleepers, busy processes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny_bundle import write_tiny_bundle

from s3clip_runtime.bench.ceilings import matmul_ceiling
from s3clip_runtime.bench.cold import cold_start
from s3clip_runtime.bench.crops import gather, noise_clip
from s3clip_runtime.bench.galleries import made_gallery, measure_gallery, unit_vectors
from s3clip_runtime.bench.load import LoadMeter, busy_cpu_s, descendants
from s3clip_runtime.bench.machine import fingerprint, isa, memory_bytes
from s3clip_runtime.bench.plots import pareto_front
from s3clip_runtime.bench.rounds import Samples, interleave, order
from s3clip_runtime.errors import BackendError, ConfigError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import is_hr_tracklet
from s3clip_runtime.inference.cpus import cpu_flags, cpu_model
from s3clip_runtime.inference.manifest import PLAIN, Target

BUSY = "import time\nwhile True: time.process_time()"
TICKS = os.sysconf("SC_CLK_TCK")


def made_samples(wall_ms: list[float]) -> Samples:
    """Samples whose CPU times do not matter."""
    return Samples(7.0, np.array(wall_ms), np.zeros(len(wall_ms)))


def test_percentiles_are_those_of_planted_samples() -> None:
    latency = made_samples([float(n) for n in range(100, 0, -1)]).latency
    assert (latency.first_ms, latency.samples) == (7.0, 100)
    assert latency.p50_ms == pytest.approx(50.5)
    assert latency.p95_ms == pytest.approx(95.05)
    assert latency.p99_ms == pytest.approx(99.01)


def test_percentiles_agree_with_scipy() -> None:
    values = np.random.default_rng(3).lognormal(3, 0.5, 37)
    latency = made_samples(values.tolist()).latency
    found = [latency.p50_ms, latency.p95_ms, latency.p99_ms]
    assert found == pytest.approx([stats.scoreatpercentile(values, q) for q in (50, 95, 99)])


def test_a_speed_up_does_not_see_the_machine_slow_down() -> None:
    drift = np.linspace(1, 3, 21)
    reference, fast = made_samples((60 * drift).tolist()), made_samples((20 * drift).tolist())
    spread = fast.speedup_over(reference)
    assert (spread.low, spread.median, spread.high) == pytest.approx((3, 3, 3))


def test_a_speed_up_has_the_quartiles_of_the_ratios() -> None:
    ratios = [1.0, 2.0, 3.0, 4.0, 5.0]
    spread = made_samples([10.0] * 5).speedup_over(made_samples([10 * ratio for ratio in ratios]))
    assert (spread.low, spread.median, spread.high) == pytest.approx((2, 3, 4))


def test_every_contender_runs_once_a_round_and_each_is_first_in_turn() -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    ticks: list[str] = []
    found = interleave(contenders, 6, tick=ticks.append, rest_s=0)
    assert ticks == calls
    assert "".join(calls[:3]) == "abc"  # the first calls, apart
    rounds = ["".join(calls[start : start + 3]) for start in range(3, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca", "cab"]
    assert all(len(samples.wall_ms) == 6 for samples in found.samples.values())
    assert order([], 3) == []


def test_wall_and_cpu_time_are_told_apart() -> None:
    work = b"x" * 2**24
    seconds: list[float] = []

    def digest() -> None:
        began_s = time.thread_time()
        hashlib.sha256(work).digest()
        seconds.append(time.thread_time() - began_s)

    def busy() -> None:  # hashing lets go of Python's lock, so both threads work
        threads = [threading.Thread(target=digest) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = interleave({"sleeps": lambda: time.sleep(0.03), "works": busy}, 8, rest_s=0.001).samples
    assert found["sleeps"].wall_ms.min() >= 30
    assert np.median(found["sleeps"].cpu_ms) < 5
    worked_ms = 1000 * sum(seconds[2:])  # without the first call
    assert found["works"].cpu_ms.sum() == pytest.approx(worked_ms, rel=0.25)


def test_the_first_call_is_apart() -> None:
    pause_s = iter([0.2])
    found = interleave({"warms up": lambda: time.sleep(next(pause_s, 0.0))}, 9, rest_s=0).samples["warms up"]
    assert found.first_ms >= 200
    assert np.median(found.wall_ms) < 100


def test_no_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds must be at least 1, found 0"):
        interleave({"a": lambda: None}, 0)


def test_busy_time_is_counted_of_the_usable_cores_alone() -> None:
    lines = ["cpu  1 1 1 1 1 1 1 1 1 1", "cpu0 100 20 30 5000 700 4 5 6 90 9", "cpu1 1 0 0 9 9 0 0 0 0 0"]
    stat = "\n".join([*lines, "cpu10 7 0 0 0 0 0 0 0 0 0", "intr 1"])
    assert busy_cpu_s(stat, [0]) == pytest.approx((100 + 20 + 30 + 4 + 5 + 6) / TICKS)
    assert busy_cpu_s(stat, [0, 1]) == pytest.approx((165 + 1) / TICKS)


@contextmanager
def stranger() -> Iterator[int]:
    """A busy process that is no descendant of this one: its parent has ended."""
    shell = [sys.executable, "-c", BUSY]
    words = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid)"
    done = subprocess.run(
        [sys.executable, "-c", words, *shell], capture_output=True, text=True, timeout=30, check=True
    )
    pid = int(done.stdout)
    try:
        yield pid
    finally:
        os.kill(pid, 9)


def cpu_s(pid: int) -> float:
    """User and system seconds of a process, by ps' own source."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def test_a_busy_stranger_is_foreign_load() -> None:
    with stranger() as pid:
        before_s, meter = cpu_s(pid), LoadMeter()
        time.sleep(1.5)
        usage, took_s = meter.read(), cpu_s(pid) - before_s
    assert took_s > 0.1
    assert usage.foreign * usage.wall_s * usage.cores >= took_s - 0.1
    assert usage.own_s < 0.2
    assert usage.foreign <= 1


def test_a_busy_child_is_our_own_load() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as child:
        try:
            time.sleep(0.2)
            assert child.pid in descendants(os.getpid())
            before_s, meter = cpu_s(child.pid), LoadMeter()
            time.sleep(1.0)
            usage, took_s = meter.read(), cpu_s(child.pid) - before_s
        finally:
            child.kill()
    assert took_s > 0.1
    assert usage.own_s == pytest.approx(took_s, abs=0.1)
    assert usage.cores_used == pytest.approx(took_s / usage.wall_s, abs=0.15)


def test_an_ended_child_counts_too() -> None:
    meter = LoadMeter()
    words = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", words], timeout=60, check=True)
    assert meter.read().own_s == pytest.approx(0.5, abs=0.15)


def write_proc(root: Path, cpuinfo: str) -> None:
    """The files that a fingerprint reads."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    (root / "proc/meminfo").write_text("MemTotal:       15963 kB\nMemFree: 1 kB\n")


def test_the_fingerprint_of_an_x86_machine(tmp_path: Path) -> None:
    write_proc(
        tmp_path,
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f amx_int8 avx512_bf16\n\n"
        "processor\t: 1\nmodel name\t: Another\nflags\t\t: fma\n",
    )
    assert cpu_model(tmp_path) == "Some CPU @ 2 GHz"
    assert isa(tmp_path) == ("avx2", "avx512f", "avx512_bf16", "amx_int8")
    assert cpu_flags(tmp_path) == {"fpu", "avx2", "avx512f", "amx_int8", "avx512_bf16"}
    assert memory_bytes(tmp_path) == 15963 * 1024


def test_the_fingerprint_of_a_board(tmp_path: Path) -> None:
    write_proc(tmp_path, "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd42\n")
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin NX\0")
    assert cpu_model(tmp_path) == "NVIDIA Jetson Orin NX"
    assert isa(tmp_path) == ("asimd", "asimdhp", "asimddp")
    assert cpu_flags(tmp_path) == {"fp", "asimd", "asimdhp", "asimddp"}


def test_what_cannot_be_read_is_left_open(tmp_path: Path) -> None:
    assert cpu_model(tmp_path) == "unknown CPU"
    assert isa(tmp_path) == ()
    assert memory_bytes(tmp_path) is None


def test_the_fingerprint_of_this_machine() -> None:
    found = fingerprint()
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.versions["numpy"] == np.__version__
    assert found.memory_bytes == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.01
    )


def test_the_ceiling_is_the_rate_of_matrix_products() -> None:
    found = matmul_ceiling(1, size=512)
    a = np.ones((512, 512), np.float32)
    best_s = float("inf")
    for _ in range(20):
        began_s = time.perf_counter()
        np.matmul(a, a)
        best_s = min(best_s, time.perf_counter() - began_s)
    # Another process and perhaps another number of threads: a wrong unit or count of operations is far off.
    assert 1 / 6 < found.gflops / (2 * 512**3 / best_s / 1e9) < 6
    assert found.name == "fp32 matmul, threads 1"


def test_a_made_up_gallery_has_its_people_and_finds_them() -> None:
    with made_gallery(25, 16) as gallery:
        assert gallery.identities == 3
        best = gallery.search(unit_vectors(25, 16, seed=0)[11:12], 1)[0][0]
    assert best.identity == "person-10"
    assert best.score == pytest.approx(1, abs=5e-4)  # galleries keep float16


def test_a_larger_gallery_takes_longer() -> None:
    small, large = (measure_gallery(count, 64, 15) for count in (100, 20_000))
    assert (small.people, large.people, large.prototypes) == (10, 2000, 20_000)
    assert large.latency.p50_ms > small.latency.p50_ms > 0


def test_clips_are_the_demos_where_the_bundle_has_none(bundle_folder: Path) -> None:
    found = gather(Bundle.open(bundle_folder))
    assert found.reference is None
    assert found.synthetic
    assert "the bundled demo" in found.data
    for kind in ("lr", "hr"):
        for clip in found.clips[kind]:
            assert is_hr_tracklet([crop.shape[:2] for crop in clip.crops]) == clip.hr == (kind == "hr")


def test_no_crop_of_a_batch_comes_twice(bundle_folder: Path) -> None:
    taken = gather(Bundle.open(bundle_folder)).take("lr", 12)
    crops = [crop.tobytes() for clip in taken for crop in clip.crops]
    assert len(set(crops)) == len(crops) == 96


@pytest.mark.parametrize("kind", ["lr", "hr"])
def test_noise_is_of_its_kind(kind: str) -> None:
    clip = noise_clip("hr" if kind == "hr" else "lr")
    assert is_hr_tracklet([crop.shape[:2] for crop in clip.crops]) == clip.hr == (kind == "hr")


def test_a_cold_start_is_measured_in_a_process_of_its_own(bundle_folder: Path) -> None:
    found = cold_start(bundle_folder, PLAIN, "cpu", 1, starts=1)
    assert 0 < found.start_ms < 60_000
    assert 30e6 < found.peak_bytes < 2e9  # Python with numpy and onnxruntime


def test_what_cannot_start_has_its_reason(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(BackendError, match=r"onnx-fp16 on cpu: .*holds no onnx-fp16 graphs"):
        cold_start(folder, Target("onnx", "fp16"), "cpu", 1, starts=1)


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(10, 1e-3), (20, 1e-5), (15, 1e-2), (30, 1e-5), (40, 1e-7), (10, 1e-2)]
    assert pareto_front(points) == [(10, 1e-3), (20, 1e-5), (40, 1e-7)]
