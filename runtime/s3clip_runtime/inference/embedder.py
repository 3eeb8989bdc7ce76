"""From clips to embeddings: the three graphs of a bundle, run in the order the method demands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.manifest import Target
from s3clip_runtime.inference.preprocess import CropRows
from s3clip_runtime.inference.sessions import open_chain
from s3clip_runtime.inference.spec import CLIP_LENGTH, CLIPS_A_PASS, FRAME_SIZE, LR_SIZE, PLATFORMS
from s3clip_runtime.inference.targets import choose_target

_CLIPS_A_PASS = {"cuda": CLIPS_A_PASS, "cpu": 1}
"""Clips that are embedded together, by device. On CUDA their crops just fill the largest batch. A CPU gains
nothing from more than one clip (114 ms of CPU time each at 1, 115 at 8, demo bundle) and needs 0.2 GB, not
1.2."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What `Embedder.embed_looks` gives for N clips.

    Attributes:
        vectors: float32 (N, embedding_dim), each row of length 1.
        pictures: N, for an enhanced clip uint8 (T, 128, 64, 3) RGB, its super-resolved crops; None for the
            others, and for all if pictures were not asked for.
        enhance_ms: of the whole batch: resizing to 64x32 and the `enhance` graph; 0 if no clip was enhanced.
            On TensorRT the graph's part is the GPU's own time, from the upload to the last kernel.
        embed_ms: of the whole batch: the rest, which is resizing to 256x128, `patchify` and `encode`, on
            TensorRT also the copy of pictures. Both together are the call's wall time.
    """

    vectors: NDArray[np.float32]
    pictures: tuple[NDArray[np.uint8] | None, ...]
    enhance_ms: float
    embed_ms: float


class Embedder:
    """Turns clips into unit vectors. It owns three sessions: use it as a context manager or close it.

    Args:
        bundle: a verified bundle.
        device: "auto", "cpu" or "cuda".
        target: which of the bundle's graphs to run; None chooses them as `targets.choose_target` tells.
        threads: CPU threads of one operator; None takes all CPUs that this process may use.

    Attributes:
        device: where it runs, "cpu" or "cuda".
        target: the graphs that it runs.
        device_reason: why these, a clause for the log.

    Raises:
        BackendError: a graph cannot be loaded on the device, or its inputs and outputs break the contract.
        BundleError: the bundle holds no graphs for the target.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        target: Target | None = None,
        threads: int | None = None,
    ) -> None:
        self.contract = bundle.manifest.contract
        self.embedding_space = bundle.manifest.embedding_space
        self.target, self.device, self.device_reason = choose_target(bundle, device, target)
        crops = _CLIPS_A_PASS[self.device] * CLIP_LENGTH
        self._small, self._large = CropRows(LR_SIZE, crops), CropRows(FRAME_SIZE, crops)
        self._chain = open_chain(bundle, self.target, self.device, threads)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions. A second call does nothing."""
        self._chain.close()

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Embed clips, LR and HR mixed; row i belongs to clip i. All LR clips are enhanced.

        Returns:
            float32 (N, embedding_dim), each row of length 1.

        Raises:
            BackendError: as `embed_looks`.
        """
        return self.embed_looks(clips, enhance=[not clip.hr for clip in clips]).vectors

    def embed_looks(
        self, clips: Sequence[Clip], *, enhance: Sequence[bool], pictures: bool = False
    ) -> Embedded:
        """Embed clips, LR and HR mixed, and say what it took.

        Crops of the same pixels (padding of short tracklets, a picture that a camera sent twice) are resized
        and enhanced once; on a CPU within a clip, which is embedded by itself. What is returned is the
        caller's own. Not for several threads at once: crops and tokens lie in memory that is used again.

        Args:
            clips: N of them.
            enhance: N, whether a clip is super-resolved. An LR clip that is not goes the way of HR ones:
                bicubic to 256x128, then `patchify`.
            pictures: also give the super-resolved crops, which costs no second run.

        Raises:
            BackendError: a clip breaks the contract, an HR clip is to be enhanced (A9), there is not one
                `enhance` a clip, or a graph gave a number that is not finite.
        """
        if len(enhance) != len(clips):
            raise BackendError(f"{len(clips)} clips need as many decisions to enhance, got {len(enhance)}")
        for position, (clip, enhanced) in enumerate(zip(clips, enhance, strict=True)):
            _check_clip(position, clip)
            if clip.hr and enhanced:
                raise BackendError(
                    f"clip {position} is HR and HR crops are never super-resolved; embed it as it is"
                )
        start = perf_counter()
        vectors = np.empty((len(clips), self.contract.embedding_dim), np.float32)
        shown: list[NDArray[np.uint8] | None] = []
        enhance_ms = 0.0
        step = _CLIPS_A_PASS[self.device]
        for low in range(0, len(clips), step):
            part = slice(low, low + step)
            vectors[part], seen, pass_ms = self._embed_pass(clips[part], enhance[part], pictures)
            shown += seen
            enhance_ms += pass_ms
        embed_ms = (perf_counter() - start) * 1e3 - enhance_ms
        return Embedded(vectors, tuple(shown), enhance_ms, embed_ms)

    def _embed_pass(
        self, clips: Sequence[Clip], enhance: Sequence[bool], pictures: bool
    ) -> tuple[NDArray[np.float32], list[NDArray[np.uint8] | None], float]:
        """Vectors, pictures and the milliseconds of enhancing."""
        with self._small.filling() as small, self._large.filling() as large:
            start = perf_counter()
            rows = {
                position: [small.place(crop) for crop in clip.crops]
                for position, clip in enumerate(clips)
                if enhance[position]
            }
            resize_ms = (perf_counter() - start) * 1e3 if rows else 0.0
            index = [
                rows.get(position) or [len(small) + large.place(crop) for crop in clip.crops]
                for position, clip in enumerate(clips)
            ]
            platform = np.array([clip.platform for clip in clips], np.int64)
            done = self._chain.embed(small.rows, large.rows, index, platform, pictures=pictures)
        shown = [
            done.pictures[rows[position]] if position in rows and done.pictures is not None else None
            for position in range(len(clips))
        ]
        return done.vectors, shown, resize_ms + done.enhance_ms


def _check_clip(position: int, clip: Clip) -> None:
    if len(clip.crops) != CLIP_LENGTH:
        raise BackendError(
            f"clip {position} has {len(clip.crops)} crops, the graphs take {CLIP_LENGTH}; "
            "choose them with clips.spread_indices or clips.best_indices"
        )
    if not 0 <= clip.platform < len(PLATFORMS):
        raise BackendError(
            f"clip {position} has platform id {clip.platform}; take it from spec.platform_id "
            f"({', '.join(PLATFORMS)})"
        )
    for crop in clip.crops:
        if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or crop.size == 0:
            raise BackendError(
                f"clip {position} has a crop that is {crop.dtype} {crop.shape}; "
                "crops are uint8 (h, w, 3) RGB with h, w >= 1"
            )
