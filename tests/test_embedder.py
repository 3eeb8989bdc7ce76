"""The session and the embedder against arithmetic done by hand in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    write_tiny_bundle,
)

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference import spec
from s3clip_runtime.inference.backends.onnxruntime import _PROBE, OrtSession, choose_device
from s3clip_runtime.inference.bundle import Bundle, write_manifest
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.preprocess import resize_bicubic

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


def by_hand(clip: Clip, added: int = 0) -> NDArray[np.float64]:
    size, scale = (spec.FRAME_SIZE, HR_SCALE) if clip.hr else (spec.LR_SIZE, LR_SCALE)
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
    truth = [by_hand(padded, 11), by_hand(high), by_hand(full, 11), by_hand(padded, 11)]
    np.testing.assert_allclose(together, truth, atol=2e-5)


def test_enhanced_pictures(embedder: Embedder) -> None:
    clip = random_clip(np.random.default_rng(4), hr=False)
    pictures = embedder.enhanced_pictures(clip)
    small = np.stack([resize_bicubic(crop, spec.LR_SIZE) for crop in clip.crops])
    np.testing.assert_array_equal(pictures, small.repeat(2, axis=1).repeat(2, axis=2))
    with pytest.raises(BackendError, match="never super-resolved"):
        embedder.enhanced_pictures(Clip(clip.crops, 0, hr=True))


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
