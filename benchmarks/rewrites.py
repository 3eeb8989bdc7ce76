"""The rewrites of s3clip_export at full size, each alone and all together: error, FLOPs and nodes.

    python -m benchmarks.rewrites

Random weights with a fixed seed (configs/seeded-full.toml) and what makes trained encoders hard to round: six
massive channels, heavy-tailed LayerNorms, sharp attention. Every graph is run with ONNX Runtime; the error is
the largest of a unit embedding's numbers against the plain network in PyTorch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.outliers import plant_outliers
from s3clip.clips import unit_range
from s3clip.config import load_config
from s3clip.models.adapters import self_attention
from s3clip.models.model import S3Clip, build_model, embedding
from s3clip.models.vit import AdaptedBlock, VisualEncoder
from s3clip_export.cost import GraphCost, graph_cost
from s3clip_export.onnx import GraphSource, export_graph
from s3clip_export.rewrites.encoder import (
    ClassAttention,
    JointAttention,
    JointFeedForward,
    LeanBlock,
    LeanEncoder,
    prompted_blocks,
)
from s3clip_export.rewrites.patches import CropPatches, PicturePatches
from s3clip_export.rewrites.swinir import with_rewritten_swinir
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.spec import CLIP_LENGTH, FRAME_SIZE, LR_SIZE, PLATFORMS, SR_SIZE

CONFIG = Path(__file__).parents[1] / "configs" / "seeded-full.toml"


class PlainEncoder(nn.Module):
    """Tokens and platform ids to unit embeddings by s3clip's own network."""

    def __init__(self, encoder: VisualEncoder) -> None:
        super().__init__()
        self.visual = encoder

    def forward(self, tokens: Tensor, platform: Tensor) -> Tensor:
        """As `LeanEncoder`."""
        return embedding(self.visual(tokens, platform))


class PlainAttention(nn.Module):
    """The first half of a block as s3clip has it."""

    prompts: Tensor | None

    def __init__(self, block: AdaptedBlock, prompts: Tensor | None) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("prompts", prompts)

    def forward(self, x: Tensor, frames: int, owners: Tensor) -> Tensor:
        """As `JointAttention`."""
        y = self.block.ln_1(x)
        if self.prompts is not None:
            y = torch.cat((y, self.prompts.index_select(0, owners)), dim=1)
        out: Tensor = x + self_attention(self.block.attn, y)[:, : x.shape[1]]
        out = out + self.block.dat_cross(x, frames)
        return out


class PlainFeedForward(nn.Module):
    """The second half of a block as s3clip has it."""

    def __init__(self, block: AdaptedBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """As `JointFeedForward`."""
        out: Tensor = x + self.block.mlp(self.block.ln_2(x)) + self.block.dat(x)
        return out


class PlainPictures(nn.Module):
    """Super-resolved pictures to tokens by s3clip's own network."""

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        """As `PicturePatches`."""
        return self.model.visual.patch_tokens(self.model.normalise(self.model.up(pictures)))


class PlainCrops(nn.Module):
    """HR crops to tokens by s3clip's own network."""

    def __init__(self, model: S3Clip) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        """As `CropPatches`."""
        return self.model.visual.patch_tokens(self.model.normalise(unit_range(crops.permute(0, 3, 1, 2))))


def _with_halves(
    encoder: VisualEncoder,
    attention: Callable[[AdaptedBlock, Tensor | None], nn.Module],
    feed_forward: Callable[[AdaptedBlock], nn.Module],
) -> LeanEncoder:
    """An encoder for export with other blocks than its own."""
    lean = LeanEncoder(encoder)
    blocks = [
        LeanBlock(attention(block, own), feed_forward(block)) for block, own in prompted_blocks(encoder)
    ]
    lean.transformer.resblocks = nn.ModuleList(blocks)
    return lean


def _with_class_tokens(encoder: VisualEncoder) -> LeanEncoder:
    lean = _with_halves(encoder, PlainAttention, PlainFeedForward)
    last, prompts = prompted_blocks(encoder)[-1]
    lean.transformer.resblocks[-1] = LeanBlock(ClassAttention(last, prompts), PlainFeedForward(last))
    return lean


ENCODERS: Mapping[str, Callable[[VisualEncoder], nn.Module]] = {
    "none": PlainEncoder,
    "frames averaged before the projection": lambda e: _with_halves(e, PlainAttention, PlainFeedForward),
    "class tokens alone in the last block": _with_class_tokens,
    "one layer behind attention and CFAA": lambda e: _with_halves(e, JointAttention, PlainFeedForward),
    "one layer behind MLP and IFA": lambda e: _with_halves(e, PlainAttention, JointFeedForward),
    "all": LeanEncoder,
}
"""Name of a rewrite to an encoder with it; all but the first also have the averaged frames."""

PICTURES: Mapping[str, Callable[[S3Clip], nn.Module]] = {"none": PlainPictures, "all": PicturePatches}
RESOLVERS: Mapping[str, Callable[[S3Clip], nn.Module]] = {
    "none": lambda model: model.sr,
    "all": lambda model: with_rewritten_swinir(model).sr,
}
CROPS: Mapping[str, Callable[[S3Clip], nn.Module]] = {"none": PlainCrops, "all": CropPatches}


def soft_pictures(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Pictures that are smooth and noisy as photographs are: float32 (count, 3, height, width) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size[0] // 8, size[1] // 8, generator=generator)
    fine = torch.randn(count, 3, *size, generator=generator)
    return (F.interpolate(coarse, size, mode="bicubic") + 0.05 * fine).clamp(0, 1)


def measure(model: S3Clip, folder: Path) -> Iterator[tuple[str, str, GraphCost, float]]:
    """Export and run every variant: graph, rewrite, its cost for one clip, and its error."""
    visual = model.visual
    clips = len(PLATFORMS)
    platform = torch.arange(clips)
    pictures = soft_pictures(clips * CLIP_LENGTH, SR_SIZE, seed=1)
    crops = (soft_pictures(clips * CLIP_LENGTH, FRAME_SIZE, seed=2) * 255).byte().permute(0, 2, 3, 1)
    crops = crops.contiguous()

    def embed(tokens: Tensor) -> Tensor:
        return embedding(visual(tokens.reshape(clips, CLIP_LENGTH, *tokens.shape[-2:]), platform))

    plain_tokens = PlainPictures(model)
    small = soft_pictures(clips * CLIP_LENGTH, LR_SIZE, seed=3)
    expected = embed(plain_tokens(model.sr(small)))
    for rewrite, make in RESOLVERS.items():
        source = GraphSource("SwinIR", make(model), (small,), ("crops",), ("pictures",))
        cost, found = _export_and_run(source, folder, CLIP_LENGTH)
        yield "enhance, SwinIR", rewrite, cost, float((embed(plain_tokens(found)) - expected).abs().max())
    for graph, makers, pixels in (("patchify", CROPS, crops), ("enhance, after SR", PICTURES, pictures)):
        expected = embed(makers["none"](model)(pixels))
        for rewrite, make in makers.items():
            source = GraphSource(graph, make(model), (pixels,), ("pixels",), ("tokens",))
            cost, found = _export_and_run(source, folder, CLIP_LENGTH)
            yield graph, rewrite, cost, float((embed(found) - expected).abs().max())
    tokens = plain_tokens(pictures).reshape(clips, CLIP_LENGTH, visual.config.patches, -1)
    expected = embed(tokens)
    for rewrite, make_encoder in ENCODERS.items():
        example = (tokens, platform)
        source = GraphSource("encode", make_encoder(visual), example, ("tokens", "platform"), ("embedding",))
        cost, found = _export_and_run(source, folder, 1)
        yield "encode", rewrite, cost, float((found - expected).abs().max())


def _export_and_run(source: GraphSource, folder: Path, batch: int) -> tuple[GraphCost, Tensor]:
    path = folder / "graph.onnx"
    export_graph(source, path)
    feeds = {name: value.numpy() for name, value in zip(source.inputs, source.example, strict=True)}
    found = OrtSession(path).run(feeds)[source.outputs[0]]
    return graph_cost(onnx.load(path), batch), torch.from_numpy(found)


@click.command()
def main() -> None:
    """Print a table."""
    config = load_config(CONFIG)
    torch.manual_seed(config.seed)
    model = build_model(config).eval().requires_grad_(False)
    plant_outliers(model, config.seed + 1)
    print(f"{'graph':<18} {'rewrite':<38} {'nodes':>6} {'GFLOP':>8} {'max error':>10}   (one clip)")
    with tempfile.TemporaryDirectory(prefix="s3clip-rewrites-") as name, torch.no_grad():
        for graph, rewrite, cost, error in measure(model, Path(name)):
            flops = cost.flops / 1e9
            print(f"{graph:<18} {rewrite:<38} {cost.nodes:>6} {flops:>8.3f} {error:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
