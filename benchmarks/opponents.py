"""What people run without s3clip's export: PyTorch as it is and compiled, and libraries on a plain export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s3clip.clips import unit_range
from s3clip.models.model import S3Clip, embedding
from s3clip_export.onnx import OPSET
from s3clip_runtime.inference.backends.openvino import OpenVinoSession
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip
from s3clip_runtime.inference.manifest import PLAIN, Precision, Role
from s3clip_runtime.inference.preprocess import hr_batch, lr_batch
from s3clip_runtime.inference.sessions import crops_a_run
from s3clip_runtime.inference.spec import CLIP_LENGTH, FRAME_SIZE, LR_SIZE


class Whole(nn.Module):
    """The plain network as one graph for one clip: uint8 crops (8, h, w, 3) to a unit embedding (1, D)."""

    def __init__(self, model: S3Clip, *, hr: bool) -> None:
        super().__init__()
        self.model = model
        self.hr = hr

    def forward(self, crops: Tensor, platform: Tensor) -> Tensor:
        """See the class; `platform` is int64 (1,)."""
        pixels = unit_range(crops).permute(0, 3, 1, 2)
        frames = pixels if self.hr else self.model.enhance(pixels)
        tokens = self.model.visual.patch_tokens(self.model.normalise(frames))
        return embedding(self.model.visual(tokens.reshape(-1, CLIP_LENGTH, *tokens.shape[1:]), platform))


Run = Callable[[bool, NDArray[np.uint8], NDArray[np.int64]], NDArray[np.float32]]
"""Whether the clip is HR, its crops at the graph's size and the platform id (1,), to an embedding (1, D)."""


class Opponent:
    """Embeds clips one by one, with s3clip's own resizing before it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def embed(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """As `Embedder.embed`."""
        made = [
            self._run(
                clip.hr,
                hr_batch(clip.crops) if clip.hr else lr_batch(clip.crops),
                np.array([clip.platform], np.int64),
            )
            for clip in clips
        ]
        return np.concatenate(made)


class OwnGraphs(Opponent):
    """OpenVINO in a precision that no bundle offers, on the plain graphs of the bundle in a folder."""

    def __init__(self, folder: Path, precision: Precision, threads: int) -> None:
        super().__init__(self._embed)
        bundle = Bundle.open(folder)
        self._sessions = {
            role: OpenVinoSession(
                bundle.file(role, PLAIN),
                precision=precision,
                threads=threads,
                piece=None if role == "encode" else crops_a_run(threads),
            )
            for role in get_args(Role)
        }

    def _embed(self, hr: bool, crops: NDArray[np.uint8], platform: NDArray[np.int64]) -> NDArray[np.float32]:
        tokens = self._sessions["patchify" if hr else "enhance"].run({"crops": crops})["tokens"]
        inputs = {"tokens": tokens[None], "platform": platform}
        found: NDArray[np.float32] = self._sessions["encode"].run(inputs)["embedding"]
        return found


def torch_opponent(model: S3Clip, *, compiled: bool) -> Opponent:
    """PyTorch in float32, as the paper's code runs, or through torch.compile."""
    wholes = {hr: Whole(model, hr=hr).eval() for hr in (False, True)}
    forward = {hr: torch.compile(whole) if compiled else whole for hr, whole in wholes.items()}

    def run(hr: bool, crops: NDArray[np.uint8], platform: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: Tensor = forward[hr](torch.from_numpy(crops), torch.from_numpy(platform))
        return found.numpy()

    return Opponent(run)


def export_plain(model: S3Clip, folder: Path) -> dict[bool, Path]:
    """`torch.onnx.export` of the network as it is: HR or not to the file."""
    files = {}
    for hr, size in ((False, LR_SIZE), (True, FRAME_SIZE)):
        files[hr] = folder / f"plain-{'hr' if hr else 'lr'}.onnx"
        example = (torch.zeros(CLIP_LENGTH, *size, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        torch.onnx.export(
            Whole(model, hr=hr).eval(),
            example,
            files[hr],
            dynamo=True,
            opset_version=OPSET,
            input_names=["crops", "platform"],
            output_names=["embedding"],
            external_data=False,
            verbose=False,
        )
    return files


def onnxruntime_opponent(files: dict[bool, Path], threads: int) -> Opponent:
    """ONNX Runtime on the plain export, its defaults but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        hr: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for hr, file in files.items()
    }

    def run(hr: bool, crops: NDArray[np.uint8], platform: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = sessions[hr].run(None, {"crops": crops, "platform": platform})[0]
        return found

    return Opponent(run)


def openvino_opponent(files: dict[bool, Path], threads: int) -> Opponent:
    """OpenVINO on the plain export, its defaults but for the number of threads.

    Raises:
        RuntimeError: it cannot load the graph.
    """
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    requests: dict[bool, Any] = {
        hr: core.compile_model(str(file), "CPU", settings).create_infer_request()
        for hr, file in files.items()
    }

    def run(hr: bool, crops: NDArray[np.uint8], platform: NDArray[np.int64]) -> NDArray[np.float32]:
        request = requests[hr]
        request.infer({"crops": crops, "platform": platform}, share_inputs=True)
        return np.array(request.get_tensor("embedding").data)

    return Opponent(run)
