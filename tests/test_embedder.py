"""The session and the embedder against arithmetic done by hand in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any, cast, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_bundle import (
    DIM,
    HR_SCALE,
    LR_SCALE,
    WIDTH,
    crops_graph,
    embedding_of,
    manifest_of,
    tokens_of,
    with_targets,
    write_tiny_bundle,
)

from s3clip_runtime.errors import BackendError, BundleError
from s3clip_runtime.inference import spec, targets
from s3clip_runtime.inference.backends import TensorInfo
from s3clip_runtime.inference.backends.batches import Batches, bucket_of
from s3clip_runtime.inference.backends.onnxruntime import _PROBE, BoundGraph, OrtSession, choose_device
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.manifest import PLAIN, Precision, Target
from s3clip_runtime.inference.preprocess import resize_bicubic
from s3clip_runtime.inference.sessions import open_chain
from s3clip_runtime.inference.targets import Choice, choose_target

Crop = NDArray[np.uint8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[Embedder]:
    with Embedder(Bundle.open(folder), device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def session(folder: Path) -> Iterator[OrtSession]:
    opened = OrtSession(folder / "patchify.onnx", threads=1)
    yield opened
    opened.close()


def random_crop(rng: np.random.Generator, *, hr: bool) -> Crop:
    height, width = (rng.integers(128, 200), rng.integers(64, 90)) if hr else rng.integers(3, 60, 2)
    # A dark or bright tint: plain noise would give nearly the same means for every crop.
    return (rng.integers(0, 256, (height, width, 3)) * rng.random((1, 1, 3))).astype(np.uint8)


def random_clip(rng: np.random.Generator, *, hr: bool) -> Clip:
    crops = tuple(random_crop(rng, hr=hr) for _ in range(spec.CLIP_LENGTH))
    return Clip(crops, platform=int(rng.integers(2)), hr=hr)


def by_hand(clip: Clip, added: int = 0, *, enhance: bool = True) -> NDArray[np.float64]:
    """The embedding of a clip; `enhance` is about LR clips alone."""
    enhanced = enhance and not clip.hr
    size, scale = (spec.LR_SIZE, LR_SCALE) if enhanced else (spec.FRAME_SIZE, HR_SCALE)
    resized = np.stack([resize_bicubic(crop, size) for crop in clip.crops])
    return embedding_of(tokens_of(resized, scale) + added, clip.platform)


@pytest.mark.parametrize("count", [1, 3, 65])
def test_embed_equals_hand_computed_in_mixed_order(embedder: Embedder, count: int) -> None:
    rng = np.random.default_rng(count)
    clips = [random_clip(rng, hr=bool(rng.integers(2))) for _ in range(count)]
    embeddings = embedder.embed(clips)
    truth = np.stack([by_hand(clip) for clip in clips])
    assert embeddings.shape == (count, DIM)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, truth, atol=2e-5)
    if count > 1:  # the clips differ enough for a wrong order to be seen
        assert np.abs(truth[1:] - truth[:-1]).max(axis=1).min() > 1e-3


def test_only_hr_and_only_lr(embedder: Embedder) -> None:
    rng = np.random.default_rng(2)
    for hr in (True, False):
        clips = [random_clip(rng, hr=hr) for _ in range(2)]
        np.testing.assert_allclose(embedder.embed(clips), [by_hand(c) for c in clips], atol=2e-5)


def test_the_flag_decides_not_the_size(embedder: Embedder) -> None:
    """A tracklet is LR or HR as a whole, so an LR clip may hold large frames."""
    crops = random_clip(np.random.default_rng(5), hr=True).crops
    lr, hr = Clip(crops, 0, hr=False), Clip(crops, 0, hr=True)
    np.testing.assert_allclose(embedder.embed([lr, hr]), [by_hand(lr), by_hand(hr)], atol=2e-5)


def test_no_clips(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, DIM)


def test_identical_crops_are_enhanced_once(tmp_path: Path) -> None:
    """`enhance` adds its batch size to the tokens here, so the embedding shows how many crops it got."""
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (3, 40, 20, 3)).astype(np.uint8)  # each frames[i] is a new view
    padded = Clip(tuple(frames[min(i, 2)] for i in range(spec.CLIP_LENGTH)), 1, hr=False)
    full = random_clip(rng, hr=False)
    high = random_clip(rng, hr=True)
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle", count_batch=True))
    with Embedder(bundle, device="cpu", threads=1) as embedder:
        np.testing.assert_allclose(embedder.embed([padded]), [by_hand(padded, added=3)], atol=2e-5)
        together = embedder.embed([padded, high, full, padded])
    # A CPU takes one clip a pass, see `embedder._CLIPS_A_PASS`.
    truth = [by_hand(padded, 3), by_hand(high), by_hand(full, 8), by_hand(padded, 3)]
    np.testing.assert_allclose(together, truth, atol=2e-5)


def test_crops_of_equal_pixels_are_enhanced_once_wherever_they_lie(tmp_path: Path) -> None:
    """Copies, and copies with a gap between their lines; a crop that differs in one pixel is another one."""
    rng = np.random.default_rng(4)
    one, other = rng.integers(0, 256, (2, 30, 14, 3)).astype(np.uint8)
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[5:35, 3:17] = one
    nearly = one.copy()
    nearly[7, 3, 1] ^= 128
    crops = (one, one.copy(), frame[5:35, 3:17], nearly, other, one[:, ::-1], other.copy(), nearly.copy())
    clip = Clip(crops, 0, hr=False)
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle", count_batch=True))
    with Embedder(bundle, device="cpu", threads=1) as embedder:
        np.testing.assert_allclose(embedder.embed([clip]), [by_hand(clip, added=4)], atol=2e-5)
        frame[:] = 9  # the same memory with other pixels is another crop
        again = Clip((frame[5:35, 3:17], *crops[1:]), 0, hr=False)
        np.testing.assert_allclose(embedder.embed([again]), [by_hand(again, added=5)], atol=2e-5)


def test_what_was_returned_stays_as_it_was(embedder: Embedder) -> None:
    """Crops and tokens of all calls lie in the same memory."""
    rng = np.random.default_rng(12)
    kept = []
    for _ in range(12):
        clips = [random_clip(rng, hr=bool(rng.integers(2))) for _ in range(3)]
        enhance = [not clip.hr for clip in clips]
        found = embedder.embed_looks(clips, enhance=enhance, pictures=True)
        kept.append((found, found.vectors.copy(), [None if p is None else p.copy() for p in found.pictures]))
    for found, vectors, pictures in kept:
        np.testing.assert_array_equal(found.vectors, vectors)
        for now, then in zip(found.pictures, pictures, strict=True):
            np.testing.assert_array_equal(now, then)


def test_a_chain_gathers_tokens_of_both_kinds_in_any_order(folder: Path) -> None:
    """Clips that mix rows, use one twice, or take them as they lie; small batches after large ones."""
    rng = np.random.default_rng(13)
    bundle = Bundle.open(folder)
    with closing(open_chain(bundle, PLAIN, "cpu", 1)) as chain:
        for clips in (5, 1, 3, 0):
            lr = rng.integers(0, 256, (9, *spec.LR_SIZE, 3)).astype(np.uint8)
            hr = rng.integers(0, 256, (8, *spec.FRAME_SIZE, 3)).astype(np.uint8)
            tokens = np.concatenate([tokens_of(lr, LR_SCALE), tokens_of(hr, HR_SCALE)])
            for index in (rng.integers(0, 17, (clips, 8)).tolist(), [list(range(9, 17))], [list(range(8))]):
                platform = rng.integers(0, 2, len(index))
                found = chain.embed(lr, hr, index, platform).vectors
                truth = [embedding_of(tokens[row], p) for row, p in zip(index, platform, strict=True)]
                np.testing.assert_allclose(found, np.reshape(truth, (-1, DIM)), atol=2e-5)


def doubled(clip: Clip) -> NDArray[np.uint8]:
    """What `enhance` shows of a clip."""
    small = np.stack([resize_bicubic(crop, spec.LR_SIZE) for crop in clip.crops])
    return small.repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("count", [1, 5, 19])  # 19 clips take three passes
def test_looks_are_enhanced_or_not_as_asked(embedder: Embedder, count: int) -> None:
    rng = np.random.default_rng(count)
    clips = [random_clip(rng, hr=bool(rng.integers(3) == 0)) for _ in range(count)]
    enhance = [not clip.hr and bool(rng.integers(2)) for clip in clips]
    clips.append(clips[-1])  # the same crops both ways
    enhance.append(not clips[-1].hr and not enhance[-1])
    for pictures in (True, False):
        found = embedder.embed_looks(clips, enhance=enhance, pictures=pictures)
        truth = [by_hand(clip, enhance=way) for clip, way in zip(clips, enhance, strict=True)]
        np.testing.assert_allclose(found.vectors, truth, atol=2e-5)
        for clip, way, shown in zip(clips, enhance, found.pictures, strict=True):
            if way and pictures:
                assert shown is not None
                np.testing.assert_array_equal(shown, doubled(clip))
            else:
                assert shown is None


def test_times_are_told_apart(embedder: Embedder) -> None:
    rng = np.random.default_rng(8)
    clips = [random_clip(rng, hr=False) for _ in range(3)]
    start = perf_counter()
    both = embedder.embed_looks(clips, enhance=[True, False, True])
    wall_ms = (perf_counter() - start) * 1e3
    assert 0 < both.enhance_ms < wall_ms
    assert 0 < both.embed_ms < wall_ms - both.enhance_ms
    without = embedder.embed_looks(clips, enhance=[False] * 3)
    assert without.enhance_ms == 0.0 < without.embed_ms
    nothing = embedder.embed_looks([], enhance=[], pictures=True)
    assert (nothing.vectors.shape, nothing.pictures, nothing.enhance_ms) == ((0, DIM), (), 0.0)


def test_hr_clips_are_never_enhanced(embedder: Embedder) -> None:
    low, high = (random_clip(np.random.default_rng(9), hr=hr) for hr in (False, True))
    with pytest.raises(BackendError, match="clip 1 is HR and HR crops are never super-resolved"):
        embedder.embed_looks([low, high], enhance=[True, True])
    with pytest.raises(BackendError, match="2 clips need as many decisions to enhance, got 1"):
        embedder.embed_looks([low, high], enhance=[True])


def test_bad_clips_are_refused(embedder: Embedder) -> None:
    good = random_clip(np.random.default_rng(6), hr=False)
    with pytest.raises(BackendError, match="clip 1 has 7 crops, the graphs take 8"):
        embedder.embed([good, Clip(good.crops[:7], 0, hr=False)])
    with pytest.raises(BackendError, match="clip 0 has platform id 2"):
        embedder.embed([Clip(good.crops, 2, hr=False)])
    grey = np.zeros((8, 4), np.uint8)
    empty = np.zeros((0, 4, 3), np.uint8)
    for bad in (grey, empty):
        with pytest.raises(BackendError, match="crops are uint8"):
            embedder.embed([Clip((*good.crops[:7], bad), 0, hr=False)])


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle", encode_weight=float("nan")))
    with (
        Embedder(bundle, device="cpu", threads=1) as embedder,
        pytest.raises(BackendError, match="graph encode gave numbers that are not finite"),
    ):
        embedder.embed([random_clip(np.random.default_rng(1), hr=False)])


def test_signature_that_breaks_the_contract_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    graph = crops_graph(spec.LR_SIZE, LR_SCALE, picture=False, count_batch=False)
    (folder / "enhance.onnx").write_bytes(graph.SerializeToString())
    write_manifest(folder, manifest_of(folder))
    with pytest.raises(BackendError, match=r"enhance.onnx: output picture must be uint8 \(\?, 128, 64, 3\)"):
        Embedder(Bundle.open(folder), device="cpu")


def test_session_cuts_large_batches_to_the_profile(tmp_path: Path) -> None:
    graph = crops_graph(spec.LR_SIZE, LR_SCALE, picture=False, count_batch=True)
    (tmp_path / "g.onnx").write_bytes(graph.SerializeToString())
    session = OrtSession(tmp_path / "g.onnx", threads=1)
    crops = np.random.default_rng(0).integers(0, 256, (130, *spec.LR_SIZE, 3)).astype(np.uint8)
    tokens = session.run({"crops": crops})["tokens"]
    sizes = np.repeat([64, 64, 2], [64, 64, 2])[:, None, None]
    np.testing.assert_allclose(tokens, tokens_of(crops, LR_SCALE) + sizes, atol=1e-4)


def test_session_of_an_empty_batch(session: OrtSession) -> None:
    tokens = session.run({"crops": np.zeros((0, *spec.FRAME_SIZE, 3), np.uint8)})["tokens"]
    assert tokens.shape == (0, spec.PATCHES, WIDTH)
    assert tokens.dtype == np.float32


def test_session_tells_its_tensors(session: OrtSession) -> None:
    assert session.device == "cpu"
    assert {name: str(info) for name, info in session.inputs.items()} == {"crops": "uint8 (?, 256, 128, 3)"}
    assert {name: str(info) for name, info in session.outputs.items()} == {"tokens": "float32 (?, 128, 6)"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pictures": np.zeros((1, 256, 128, 3), np.uint8)}, "inputs must be crops; got pictures"),
        ({}, "inputs must be crops; got none"),
        ({"crops": np.zeros((1, 256, 128, 3), np.float32)}, "crops must be uint8 .* got float32"),
        (
            {"crops": np.zeros((1, 128, 256, 3), np.uint8)},
            r"must be uint8 \(\?, 256, 128, 3\), got uint8 \(1, 128",
        ),
        ({"crops": np.zeros((256, 128, 3), np.uint8)}, "crops must be"),
        ({"crops": np.uint8(3).reshape(())}, "crops must be"),
    ],
)
def test_session_refuses_wrong_inputs(
    session: OrtSession, inputs: dict[str, NDArray[np.uint8]], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        session.run(inputs)


def test_session_refuses_unequal_batches(folder: Path) -> None:
    session = OrtSession(folder / "encode.onnx", threads=1)
    tokens = np.zeros((2, spec.CLIP_LENGTH, spec.PATCHES, WIDTH), np.float32)
    with pytest.raises(BackendError, match="one batch size"):
        session.run({"tokens": tokens, "platform": np.zeros(3, np.int64)})


def test_closed_session_is_refused(folder: Path) -> None:
    session = OrtSession(folder / "patchify.onnx", threads=1)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"crops": np.zeros((1, *spec.FRAME_SIZE, 3), np.uint8)})


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"bad.onnx: onnxruntime cannot load it on cpu"):
        OrtSession(tmp_path / "bad.onnx")


def test_unknown_device_and_threads_are_refused(folder: Path) -> None:
    with pytest.raises(BackendError, match="use cpu or cuda"):
        OrtSession(folder / "encode.onnx", device="tpu")
    with pytest.raises(BackendError, match="threads must be at least 1, found 0"):
        OrtSession(folder / "encode.onnx", threads=0)


@pytest.mark.skipif(choose_device("auto")[0] == "cuda", reason="this machine has CUDA")
def test_cuda_is_refused_and_auto_says_why_where_there_is_none(folder: Path) -> None:
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        OrtSession(folder / "encode.onnx", device="cuda")
    device, reason = choose_device("auto")
    assert device == "cpu"
    assert "CUDAExecutionProvider" in reason
    assert choose_device("cuda") == ("cuda", "as asked")


def test_probe_is_a_valid_graph_that_computes_relu() -> None:
    onnx.checker.check_model(onnx.load_from_string(_PROBE), full_check=True)
    graph = onnxruntime.InferenceSession(_PROBE, providers=["CPUExecutionProvider"])
    assert graph.run(None, {"x": np.array([-2], np.float32)})[0] == [0]
    assert graph.run(None, {"x": np.array([2], np.float32)})[0] == [2]


# Which graphs are run, and where

FP16, TRT16, TRT32 = Target("onnx", "fp16"), Target("tensorrt", "fp16"), Target("tensorrt", "fp32")


def choose(
    patch: pytest.MonkeyPatch,
    folder: Path,
    held: tuple[Target, ...],
    device: str,
    target: Target | None = None,
    *,
    problem: str | None = None,
    probed: str = "cpu",
) -> Choice:
    """The choice on a machine whose driver has the problem and where ONNX Runtime's probe gives a device."""
    patch.setattr(targets, "driver_problem", lambda: problem)
    patch.setattr(
        targets, "choose_device", lambda asked: (probed, "probed") if asked == "auto" else (asked, "as asked")
    )
    write_tiny_bundle(folder)
    write_manifest(folder, with_targets(manifest_of(folder), *held))
    return choose_target(Bundle.open(folder), device, target)


@pytest.mark.parametrize(
    ("held", "device", "expected"),
    [
        ((), "cpu", PLAIN),
        ((FP16, TRT16), "cpu", PLAIN),
        ((), "cuda", PLAIN),
        ((FP16,), "cuda", FP16),
        ((FP16, TRT32), "cuda", TRT32),
        ((FP16, TRT32, TRT16), "cuda", TRT16),
    ],
)
def test_a_device_takes_the_best_target_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: tuple[Target, ...], device: str, expected: Target
) -> None:
    choice = choose(monkeypatch, tmp_path, held, device)
    assert choice[:2] == (expected, device)
    assert choice.reason.startswith(f"as asked; {expected} is ")


@pytest.mark.parametrize(
    ("held", "problem", "probed", "expected", "device"),
    [
        ((), None, "cpu", PLAIN, "cpu"),
        ((FP16,), None, "cpu", PLAIN, "cpu"),
        ((FP16,), None, "cuda", FP16, "cuda"),
        ((FP16, TRT16), None, "cpu", TRT16, "cuda"),
        ((TRT32,), None, "cpu", TRT32, "cuda"),
        ((FP16, TRT16), "no driver", "cpu", PLAIN, "cpu"),
    ],
)
def test_auto_takes_an_engine_where_there_is_a_driver(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: tuple[Target, ...],
    problem: str | None,
    probed: str,
    expected: Target,
    device: str,
) -> None:
    choice = choose(monkeypatch, tmp_path, held, "auto", problem=problem, probed=probed)
    assert choice[:2] == (expected, device)
    assert str(expected) in choice.reason
    assert ("tensorrt-fp16 is left unused: no driver" in choice.reason) == (problem is not None)


def test_a_target_that_is_asked_for_is_obeyed_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = (FP16, TRT16)
    assert choose(monkeypatch, tmp_path, held, "auto", TRT16)[:2] == (TRT16, "cuda")
    assert choose(monkeypatch, tmp_path, held, "cuda", TRT16)[:2] == (TRT16, "cuda")
    assert choose(monkeypatch, tmp_path, held, "auto", FP16)[:2] == (FP16, "cpu")
    assert choose(monkeypatch, tmp_path, held, "cuda", PLAIN)[:2] == (PLAIN, "cuda")
    assert choose(monkeypatch, tmp_path, held, "cpu", FP16) == (FP16, "cpu", "as asked; onnx-fp16 as asked")
    with pytest.raises(BackendError, match="target tensorrt-fp16 runs on cuda, not on cpu"):
        choose(monkeypatch, tmp_path, held, "cpu", TRT16)
    with pytest.raises(BundleError, match="holds no tensorrt-fp32"):
        choose(monkeypatch, tmp_path, held, "auto", TRT32)
    with pytest.raises(BackendError, match="device 'tpu' is unknown; use auto, cpu or cuda"):
        choose(monkeypatch, tmp_path, held, "tpu")


def test_the_embedder_tells_target_and_reason(folder: Path) -> None:
    with Embedder(Bundle.open(folder), device="cpu", target=PLAIN, threads=1) as embedder:
        assert (embedder.target, embedder.device) == (PLAIN, "cpu")
        assert embedder.device_reason == "as asked; onnx-fp32 as asked"
    with pytest.raises(BundleError, match="holds no onnx-fp16 graphs, only onnx-fp32"):
        Embedder(Bundle.open(folder), target=FP16)


def test_half_precision_is_optimised_less_on_the_cpu(folder: Path) -> None:
    """ONNX Runtime's CPU provider crashes on float16 attention graphs with all optimisations."""
    levels = onnxruntime.GraphOptimizationLevel
    halves = ("fp16", "int8-fp16", "fp8-fp16")
    for precision in get_args(Precision):
        level = levels.ORT_ENABLE_BASIC if precision in halves else levels.ORT_ENABLE_ALL
        session = OrtSession(folder / "encode.onnx", threads=1, precision=cast(Precision, precision))
        graph = cast(onnxruntime.InferenceSession, session._graph)
        assert graph.get_session_options().graph_optimization_level == level


# The bound buffers of CUDA, driven on the CPU


def bound(path: Path) -> tuple[OrtSession, list[BoundGraph]]:
    """A session that runs as on CUDA, and its graph."""
    session = OrtSession(path, threads=1)
    assert session._graph is not None
    assert BoundGraph.fits(session._batches)
    session._bound = BoundGraph(session._graph, session._batches, "cpu")
    return session, [session._bound]


def test_bound_buffers_give_what_a_plain_run_gives(folder: Path) -> None:
    rng = np.random.default_rng(0)
    plain, (session, graphs) = OrtSession(folder / "encode.onnx", threads=1), bound(folder / "encode.onnx")
    kept = []
    for batch in (1, 3, 4, 64, 70, 3, 0):
        shape = (batch, spec.CLIP_LENGTH, spec.PATCHES, WIDTH)
        inputs: dict[str, NDArray[Any]] = {
            "tokens": rng.random(shape).astype(np.float32),
            "platform": rng.integers(0, 2, batch),
        }
        found, expected = session.run(inputs)["embedding"], plain.run(inputs)["embedding"]
        np.testing.assert_array_equal(found, expected)
        kept.append((found, expected))
    assert sorted(graphs[0]._buckets) == [1, 4, 8, 64]
    for found, expected in kept:  # later runs in the same buffers left earlier results alone
        np.testing.assert_array_equal(found, expected)


def test_bound_buffers_are_made_once_a_bucket(folder: Path) -> None:
    session, (graph,) = bound(folder / "enhance.onnx")
    crops = np.ones((3, *spec.LR_SIZE, 3), np.uint8)
    session.run({"crops": crops})
    values = dict(graph._buckets[4].values)
    session.run({"crops": crops[:2]})
    session.run({"crops": np.concatenate([crops, crops[:1]])})
    assert all(graph._buckets[4].values[name] is value for name, value in values.items())
    assert values.keys() == {"crops", "tokens", "picture"}


def test_errors_of_bound_runs_name_the_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, (graph,) = bound(folder / "enhance.onnx")
    monkeypatch.setattr(graph, "_bind", lambda size: 1 / 0)
    with pytest.raises(BackendError, match=r"enhance.onnx: the run on cpu failed: division by zero"):
        session.run({"crops": np.ones((1, *spec.LR_SIZE, 3), np.uint8)})


@pytest.mark.parametrize("shape", [(1, 8), (None, None), (), (4, None)])
def test_graphs_of_other_unknown_sizes_are_not_bound(shape: tuple[int | None, ...]) -> None:
    known = {"x": TensorInfo((None, 3), np.dtype(np.float32))}
    odd = {"y": TensorInfo(shape, np.dtype(np.float32))}
    assert BoundGraph.fits(Batches(Path("g"), known, known))
    assert not BoundGraph.fits(Batches(Path("g"), known, odd))
    assert not BoundGraph.fits(Batches(Path("g"), odd, known))


@pytest.mark.parametrize(
    ("batch", "profile", "bucket"),
    [
        (1, (1, 8, 64), 1),
        (2, (1, 8, 64), 2),
        (3, (1, 8, 64), 4),
        (33, (1, 8, 64), 64),
        (64, (1, 8, 64), 64),
        (1, (4, 8, 12), 4),
        (9, (4, 8, 12), 12),
    ],
)
def test_buckets_are_powers_of_two_within_the_profile(
    batch: int, profile: tuple[int, int, int], bucket: int
) -> None:
    assert bucket_of(batch, profile) == bucket
