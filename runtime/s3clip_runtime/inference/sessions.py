"""Graphs of a bundle opened on a device: one session each, or the three as a chain."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from s3clip_runtime.errors import BackendError
from s3clip_runtime.inference.backends import Session, TensorInfo, cuda
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.backends.openvino import OpenVinoSession
from s3clip_runtime.inference.backends.tensorrt import TensorRtSession
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.chain import Chain, HostChain, TensorRtChain
from s3clip_runtime.inference.cpus import usable_cpus
from s3clip_runtime.inference.manifest import Contract, Role, Target
from s3clip_runtime.inference.spec import CLIP_LENGTH

_Signature = Mapping[str, TensorInfo]


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
        target: of the graph. TensorRT's run on "cuda" and OpenVINO's on "cpu" whatever `device` says: see
            `targets.choose_target`.
        device: "cpu" or "cuda".
        threads: CPU threads of one operator; None takes all CPUs that this process may use.

    Raises:
        BackendError: it cannot be loaded there, or its inputs and outputs break the contract.
        BundleError: the bundle holds no graphs for the target.
    """
    if target.backend == "tensorrt":
        return _open_engine(bundle, role, target)
    path = bundle.file(role, target)
    session: Session
    if target.backend == "openvino":
        piece = None if role == "encode" else crops_a_run(threads or usable_cpus())
        session = OpenVinoSession(path, precision=target.precision, threads=threads, piece=piece)
    else:
        session = OrtSession(path, device=device, threads=threads, precision=target.precision)
    _check_signature(bundle, role, path, session)
    return session


def crops_a_run(threads: int) -> int:
    """Of OpenVINO, where each thread works on crops of its own.

    `enhance` at full size for eight crops on two cores: 223 ms in runs of 1, 2 or 4, 250 ms as one batch, 278
    ms with the batch left free; on one core runs of 1 take 460 ms and larger ones 430.
    """
    return max(1, min(2, CLIP_LENGTH // threads))


def _open_engine(
    bundle: Bundle, role: Role, target: Target, stream: cuda.Stream | None = None
) -> TensorRtSession:
    path, entry = bundle.file(role, target), bundle.artefact(role, target).engine
    if entry is None:
        raise BackendError(f"{path}: the manifest has no engine entry; export again with s3clip-export")
    session = TensorRtSession(path, entry, stream=stream)
    _check_signature(bundle, role, path, session)
    return session


def open_chain(bundle: Bundle, target: Target, device: str, threads: int | None) -> Chain:
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
            chain = TensorRtChain(engines, stream)
            opened.pop_all()  # from here on they are the chain's
            return chain
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
