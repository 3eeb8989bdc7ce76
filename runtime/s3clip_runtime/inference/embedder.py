"""From clips to embeddings: the three graphs of a bundle, run in the order the method demands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import Session, TensorInfo
from s3clip_runtime.inference.backends.onnxruntime import OrtSession, choose_device
from s3clip_runtime.inference.bundle import PLAIN, Bundle, Contract, Role, Target
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.spec import BATCH_PROFILE, CLIP_LENGTH, PLATFORMS

_CLIPS_A_PASS = BATCH_PROFILE[2] // CLIP_LENGTH
"""Clips that are embedded together: their crops just fill the largest batch, and memory stays bounded."""

_Signature = Mapping[str, TensorInfo]


class Embedder:
    """Turns clips into unit vectors. It owns three sessions: use it as a context manager or close it.

    Args:
        bundle: a verified bundle.
        device: "auto", "cpu" or "cuda"; `device` and `device_reason` say what was chosen and why.
        threads: CPU threads of one operator; None takes all CPUs that this process may use.

    Raises:
        BackendError: a graph cannot be loaded on the device, or its inputs and outputs break the contract.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", target: Target = PLAIN, threads: int | None = None
    ) -> None:
        self.contract = bundle.manifest.contract
        self.embedding_space = bundle.manifest.embedding_space
        self.device, self.device_reason = choose_device(device)
        with ExitStack() as opened:
            self._sessions: dict[Role, Session] = {}
            for role, (inputs, outputs) in _signatures(self.contract).items():
                session = open_session(bundle, role, target, self.device, threads)
                opened.callback(session.close)
                _check_signature(bundle, role, "input", session.inputs, inputs)
                _check_signature(bundle, role, "output", session.outputs, outputs)
                self._sessions[role] = session
            self._opened = opened.pop_all()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions. A second call does nothing."""
        self._opened.close()

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Embed clips, LR and HR mixed; row i belongs to clip i.

        A crop that occurs several times (padding of short tracklets) is enhanced once.

        Returns:
            float32 (N, embedding_dim), each row of length 1.

        Raises:
            BackendError: a clip breaks the contract, or a graph gave a number that is not finite.
        """
        for position, clip in enumerate(clips):
            _check_clip(position, clip)
        result = np.empty((len(clips), self.contract.embedding_dim), np.float32)
        for low in range(0, len(clips), _CLIPS_A_PASS):
            part = clips[low : low + _CLIPS_A_PASS]
            result[low : low + len(part)] = self._embed_pass(part)
        return result

    def enhanced_pictures(self, clip: Clip) -> NDArray[np.uint8]:
        """The super-resolved crops of an LR clip, for people to look at: uint8 (T, 128, 64, 3) RGB.

        Raises:
            BackendError: the clip breaks the contract, or it is HR: those are never enhanced (A9).
        """
        _check_clip(0, clip)
        if clip.hr:
            raise BackendError(
                "the clip is HR and HR crops are never super-resolved; show its crops as they are"
            )
        pictures: NDArray[np.uint8] = self._sessions["enhance"].run({"crops": lr_batch(clip.crops)})[
            "picture"
        ]
        return pictures

    def _embed_pass(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        crops: dict[bool, dict[_Memory, NDArray[np.uint8]]] = {False: {}, True: {}}
        for clip in clips:
            for crop in clip.crops:
                crops[clip.hr].setdefault(_memory(crop), crop)
        row = {key: i for i, key in enumerate((hr, memory) for hr in crops for memory in crops[hr])}
        index = [[row[clip.hr, _memory(crop)] for crop in clip.crops] for clip in clips]
        lr_tokens = self._sessions["enhance"].run({"crops": lr_batch(list(crops[False].values()))})["tokens"]
        hr_tokens = self._sessions["patchify"].run({"crops": hr_batch(list(crops[True].values()))})["tokens"]
        platform = np.array([clip.platform for clip in clips], np.int64)
        tokens = np.concatenate([lr_tokens, hr_tokens])[index]
        embeddings: NDArray[np.float32] = self._sessions["encode"].run(
            {"tokens": tokens, "platform": platform}
        )["embedding"]
        if not np.isfinite(embeddings).all():
            parts = {"enhance": lr_tokens, "patchify": hr_tokens, "encode": embeddings}
            graph = next(name for name, array in parts.items() if not np.isfinite(array).all())
            raise BackendError(
                f"graph {graph} gave numbers that are not finite on {self.device}; "
                "export again with s3clip-export and check its parity report"
            )
        return embeddings


def open_session(
    bundle: Bundle, role: Role, target: Target, device: str, threads: int | None = None
) -> Session:
    """One graph of a bundle on a device; the caller closes it.

    Raises:
        BackendError: it cannot be loaded there.
    """
    return OrtSession(bundle.file(role, target), device=device, threads=threads)


_Memory = tuple[int, tuple[int, ...], tuple[int, ...]]


def _memory(crop: NDArray[np.uint8]) -> _Memory:
    """Where the pixels lie. Equal for the same array and for equal views of one array; costs no hashing."""
    return crop.__array_interface__["data"][0], crop.shape, crop.strides


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


def _signatures(contract: Contract) -> dict[Role, tuple[_Signature, _Signature]]:
    """Inputs and outputs of the three graphs, as design and exporter have agreed on them."""
    uint8, float32, int64 = np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.int64)
    tokens = (contract.patches, contract.token_width)
    patch_tokens = TensorInfo((None, *tokens), float32)
    return {
        "enhance": (
            {"crops": TensorInfo((None, *contract.lr_size, 3), uint8)},
            {"tokens": patch_tokens, "picture": TensorInfo((None, *contract.sr_size, 3), uint8)},
        ),
        "patchify": (
            {"crops": TensorInfo((None, *contract.frame_size, 3), uint8)},
            {"tokens": patch_tokens},
        ),
        "encode": (
            {
                "tokens": TensorInfo((None, contract.clip_length, *tokens), float32),
                "platform": TensorInfo((None,), int64),
            },
            {"embedding": TensorInfo((None, contract.embedding_dim), float32)},
        ),
    }


def _check_signature(bundle: Bundle, role: Role, kind: str, found: _Signature, agreed: _Signature) -> None:
    faults = [
        f"{kind} {name} must be {agreed.get(name, 'absent')}, found {found.get(name, 'none')}"
        for name in sorted({*found, *agreed})
        if found.get(name) != agreed.get(name)
    ]
    if faults:
        raise BackendError(
            f"{bundle.file(role, PLAIN)}: {'; '.join(faults)}; export again with s3clip-export"
        )
