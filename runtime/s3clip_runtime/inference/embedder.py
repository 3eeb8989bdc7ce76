"""From clips to embeddings: the three graphs of a bundle, run in the order the method demands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import Session, TensorInfo, cuda
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.backends.tensorrt import TensorRtSession
from s3clip_runtime.inference.bundle import Bundle, Contract, Role, Target
from s3clip_runtime.inference.chain import Chain, HostChain, TensorRtChain
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.spec import BATCH_PROFILE, CLIP_LENGTH, PLATFORMS
from s3clip_runtime.inference.targets import choose_target

_CLIPS_A_PASS = BATCH_PROFILE[2] // CLIP_LENGTH
"""Clips that are embedded together: their crops just fill the largest batch, and memory stays bounded."""

_Signature = Mapping[str, TensorInfo]


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
        self._chain = _open_chain(bundle, self.target, self.device, threads)

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
        return self._chain.pictures(lr_batch(clip.crops))

    def _embed_pass(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        crops: dict[bool, dict[_Memory, NDArray[np.uint8]]] = {False: {}, True: {}}
        for clip in clips:
            for crop in clip.crops:
                crops[clip.hr].setdefault(_memory(crop), crop)
        row = {key: i for i, key in enumerate((hr, memory) for hr in crops for memory in crops[hr])}
        index = [[row[clip.hr, _memory(crop)] for crop in clip.crops] for clip in clips]
        return self._chain.embed(
            lr_batch(list(crops[False].values())),
            hr_batch(list(crops[True].values())),
            index,
            np.array([clip.platform for clip in clips], np.int64),
        )


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


def open_session(
    bundle: Bundle, role: Role, target: Target, device: str, threads: int | None = None
) -> Session:
    """One graph of a bundle on a device, checked against the contract; the caller closes it.

    Args:
        bundle: holds the graph.
        role: which of the three.
        target: of the graph. TensorRT's run on "cuda" whatever `device` says: see `targets.choose_target`.
        device: "cpu" or "cuda".
        threads: CPU threads of one operator; None takes all CPUs that this process may use.

    Raises:
        BackendError: it cannot be loaded there, or its inputs and outputs break the contract.
        BundleError: the bundle holds no graphs for the target.
    """
    if target.backend == "tensorrt":
        return _open_engine(bundle, role, target)
    path = bundle.file(role, target)
    session = OrtSession(path, device=device, threads=threads, precision=target.precision)
    _check_signature(bundle, role, path, session)
    return session


def _open_engine(
    bundle: Bundle, role: Role, target: Target, stream: cuda.Stream | None = None
) -> TensorRtSession:
    path, entry = bundle.file(role, target), bundle.artefact(role, target).engine
    if entry is None:
        raise BackendError(f"{path}: the manifest has no engine entry; export again with s3clip-export")
    session = TensorRtSession(path, entry, stream=stream)
    _check_signature(bundle, role, path, session)
    return session


def _open_chain(bundle: Bundle, target: Target, device: str, threads: int | None) -> Chain:
    """Open the three graphs of a target."""
    roles = _signatures(bundle.manifest.contract)
    with ExitStack() as opened:
        if target.backend == "tensorrt":
            cuda.require_driver()  # before the stream: CUDA's own error would not say what to do
            stream = opened.enter_context(cuda.Stream())
            engines: dict[Role, TensorRtSession] = {}
            for role in roles:
                engines[role] = _open_engine(bundle, role, target, stream)
                opened.callback(engines[role].close)
            opened.pop_all()  # from here on they are the chain's
            return TensorRtChain(engines, stream)
        sessions: dict[Role, Session] = {}
        for role in roles:
            sessions[role] = open_session(bundle, role, target, device, threads)
            opened.callback(sessions[role].close)
        opened.pop_all()
        return HostChain(sessions)


def _check_signature(bundle: Bundle, role: Role, path: Path, session: Session) -> None:
    """Close the session and raise if its tensors are not those of the contract."""
    inputs, outputs = _signatures(bundle.manifest.contract)[role]
    for kind, found, agreed in (("input", session.inputs, inputs), ("output", session.outputs, outputs)):
        faults = [
            f"{kind} {name} must be {agreed.get(name, 'absent')}, found {found.get(name, 'none')}"
            for name in sorted({*found, *agreed})
            if found.get(name) != agreed.get(name)
        ]
        if faults:
            session.close()
            raise BackendError(f"{path}: {'; '.join(faults)}; export again with s3clip-export")
