"""How faithful changed graphs are: embeddings, rankings and pictures, counted one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calib_graphs import F32

from s3clip_calib.fidelity import Fidelity, Labels, fidelity, psnr, ranking_changes
from s3clip_calib.super_resolution import PictureRow, choose_form
from s3clip_runtime.inference.ranking import evaluate_embeddings


def unit(rows: np.ndarray) -> F32:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def pair(seed: int = 0, noise: float = 0.2, count: int = 12) -> tuple[F32, F32]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 16)) + 1  # with a mean in common, as people have
    return unit(rows), unit(rows + noise * rng.normal(size=rows.shape))


def test_equal_embeddings_are_faithful() -> None:
    same, _ = pair()
    found = fidelity(same, same)
    for name in Fidelity.__slots__:
        assert getattr(found, name) == pytest.approx(1, abs=1e-6), name
    assert found.loss == pytest.approx(0, abs=1e-6)


def test_fidelity_is_what_its_words_say() -> None:
    """Cosines, neighbours and pairs counted one by one."""
    before, after = (one.astype(np.float64) for one in pair(noise=0.6))
    count = len(before)
    found = fidelity(before.astype(np.float32), after.astype(np.float32))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    plain = [cosine(a, b) for a, b in zip(before, after, strict=True)]
    mean = before.mean(axis=0)
    centred = [cosine(a - mean, b - mean) for a, b in zip(before, after, strict=True)]
    nearest, taus = [], []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        first, second = (others[int(np.argmax(rows[others] @ rows[i]))] for rows in (before, after))
        nearest.append(first == second)
        signs = [
            np.sign(
                (before[i] @ before[j] - before[i] @ before[k]) * (after[i] @ after[j] - after[i] @ after[k])
            )
            for j in others
            for k in others
            if j < k
        ]
        taus.append(np.mean(signs))
    assert found.cosine_mean == pytest.approx(np.mean(plain), abs=1e-6)
    assert found.cosine_min == pytest.approx(min(plain), abs=1e-6)
    assert found.centred_mean == pytest.approx(np.mean(centred), abs=1e-6)
    assert found.centred_min == pytest.approx(min(centred), abs=1e-6)
    assert found.loss == pytest.approx(1 - np.mean(centred), abs=1e-6)
    assert found.top1_agreement == pytest.approx(np.mean(nearest))
    assert found.kendall_tau == pytest.approx(np.mean(taus), abs=0.02)  # pairs that nearly tie are left out
    assert found.top1_agreement < 1


def test_the_order_of_clips_does_not_matter() -> None:
    before, after = pair(noise=0.6)
    order = np.random.default_rng(1).permutation(len(before))
    first, second = fidelity(before, after), fidelity(before[order], after[order])
    for name in Fidelity.__slots__:
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-9), name
    assert fidelity(before, after[order]).centred_mean < 0.5  # but which belongs to which does


def rank1_and_ap(rows: F32, who: list[str], cameras: list[str], query: int) -> tuple[float, float] | None:
    """Of one clip that asks among the others: its own camera's clips of its identity do not count."""
    others = [i for i in range(len(rows)) if (who[i], cameras[i]) != (who[query], cameras[query])]
    ranked = sorted(others, key=lambda i: -float(rows[query] @ rows[i]))
    hits = [who[i] == who[query] for i in ranked]
    if not any(hits):
        return None
    places = [place for place, hit in enumerate(hits, 1) if hit]
    return float(hits[0]), float(np.mean([(n + 1) / place for n, place in enumerate(places)]))


def test_changes_of_ranking_are_counted_over_clips_with_an_identity() -> None:
    before, after = pair(seed=3, noise=1.5, count=20)
    who = [None if i % 5 == 4 else f"p{i % 3}" for i in range(20)]
    cameras = [f"c{i // 7}" for i in range(20)]
    known = [i for i in range(20) if who[i] is not None]
    names, places = [str(who[i]) for i in known], [cameras[i] for i in known]
    figures = [
        [rank1_and_ap(rows[known], names, places, query) for query in range(len(known))]
        for rows in (before, after)
    ]
    valid = [(a, b) for a, b in zip(*figures, strict=True) if a is not None and b is not None]
    rank1, mean_ap = ranking_changes(before, after, Labels(tuple(who), tuple(cameras)))
    assert rank1 is not None
    assert mean_ap is not None
    assert rank1.value == pytest.approx(np.mean([b[0] - a[0] for a, b in valid]))
    assert mean_ap.value == pytest.approx(np.mean([b[1] - a[1] for a, b in valid]))
    assert mean_ap.value != 0
    assert mean_ap.low < mean_ap.value < mean_ap.high
    # And the runtime's own ranking of the same clips says the same.
    codes = [np.unique(labels, return_inverse=True)[1] for labels in (names, places)]
    maps = [
        evaluate_embeddings(one[known], one[known], codes[0], codes[0], codes[1], codes[1]).map
        for one in (before, after)
    ]
    assert mean_ap.value == pytest.approx(maps[1] - maps[0])


@pytest.mark.parametrize(
    ("who", "cameras"),
    [
        ((None,) * 12, ("a", "b") * 6),
        (("p", "q", "r") * 4, ("a", "b", "c") * 4),
        (("p", "q", None) * 4, ("a",) * 12),
    ],
    ids=["no identity", "an own camera each", "one camera"],
)
def test_without_a_second_camera_there_is_no_ranking(
    who: tuple[str | None, ...], cameras: tuple[str, ...]
) -> None:
    assert ranking_changes(*pair(), Labels(who, cameras)) == (None, None)


def test_psnr_is_that_of_the_formula() -> None:
    first = np.zeros((2, 4, 4, 3), np.float32)
    second = first.copy()
    second[0, 0, 0, 0] = 16
    assert psnr(first, first, 255.0) == float("inf")
    assert psnr(first, second, 255.0) == pytest.approx(10 * np.log10(255**2 / (16**2 / 96)))


def test_the_fastest_faithful_form_is_taken_if_it_gains_enough() -> None:
    plain = PictureRow("onnx", "higher precision", float("inf"), 100.0)
    exact, good, bad = (
        PictureRow("onnx", name, psnr_db, 90.0) for name, psnr_db in (("a", 80), ("b", 60), ("c", 59.9))
    )
    quick_bad, slow = replace(bad, ms=10.0), replace(good, ms=95.1)
    quicker = replace(good, ms=80.0)
    assert choose_form([plain]) == plain
    assert choose_form([plain, quick_bad, slow]) == plain
    assert choose_form([plain, quick_bad, slow, exact, quicker]) == quicker
    assert choose_form([plain, replace(good, psnr_db=float("nan"))]) == plain
