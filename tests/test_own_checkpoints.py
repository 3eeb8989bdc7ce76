"""Published weights, and super-resolvers of other libraries, through the export command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from test_weights import official_vsla_state
from torch import Tensor, nn

from s3clip.clips import load_crops
from s3clip.config import DataSettings
from s3clip.datasets.catalog import protocol_tracklets, read_protocols
from s3clip.evaluation.evaluate import embed_tracklets
from s3clip.models.architecture import swinir_architecture, vsla_architecture
from s3clip.models.model import IdentityHeads, S3Clip
from s3clip.models.swinir import SwinIR
from s3clip.models.text import PromptLearner, TextEncoder
from s3clip.models.vit import VisualConfig, VisualEncoder
from s3clip_export.cli import main
from s3clip_export.foreign import foreign_super_resolver, is_function
from s3clip_export.onnx import export_graph, graph_problems, graph_sources
from s3clip_export.origin import origin_of_checkpoints
from s3clip_runtime.errors import BundleError, ConfigError, WeightsError
from s3clip_runtime.inference.backends.onnxruntime import OrtSession
from s3clip_runtime.inference.bundle import Bundle
from s3clip_runtime.inference.clips import Clip, spread_indices
from s3clip_runtime.inference.embedder import Embedder
from s3clip_runtime.inference.records import sha256_file

IDENTITIES = 5


def vsla_modules(*, prompt_depth: int = 1, platforms: int = 2) -> dict[str, nn.Module]:
    """A small VSLA-CLIP; its blocks and adapters have heads of 64 channels, as the official code has."""
    visual = VisualEncoder(
        VisualConfig(
            width=128,
            layers=2,
            heads=2,
            out_dim=16,
            adapter_width=128,
            adapter_heads=2,
            platform_prompt_depth=prompt_depth,
            platforms=platforms,
        )
    )
    if visual.cv_embed is not None:
        with torch.no_grad():
            visual.cv_embed.mul_(50)  # the platform must matter
    return {
        "visual": visual,
        "text": TextEncoder(64, 1, 1, 16),
        "prompts": PromptLearner(IDENTITIES, torch.randn(77, 64)),
        "heads": IdentityHeads(128, 16, IDENTITIES),
    }


def official_swinir(module: SwinIR) -> dict[str, dict[str, Tensor]]:
    """The content of an official file, its derived buffers included."""
    buffers = {
        "layers.0.residual_group.blocks.1.attn_mask": torch.zeros(64, 64, 64),
        "layers.0.residual_group.blocks.0.attn.relative_position_index": torch.zeros(64, 64),
    }
    return {"params": {**module.state_dict(), **buffers}}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Files of a small VSLA-CLIP and a small SwinIR."""
    torch.manual_seed(0)
    vsla, swinir = tmp_path / "vsla.pth", tmp_path / "swinir.pth"
    torch.save(official_vsla_state(vsla_modules()), vsla)
    torch.save(official_swinir(SwinIR(24, (2, 2), (2, 3))), swinir)
    return vsla, swinir


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def write_module(folder: Path, name: str, body: str) -> str:
    """A Python module with a function `network`; returns MODULE:FUNCTION."""
    (folder / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{body}\n", "utf-8")
    return f"{name}:network"


@pytest.mark.slow
@pytest.mark.parametrize("prompt_depth", [1, 0])
def test_official_files_export_with_the_command(tiny_world: Path, tmp_path: Path, prompt_depth: int) -> None:
    torch.manual_seed(prompt_depth)
    modules, swinir = vsla_modules(prompt_depth=prompt_depth), SwinIR(24, (2, 2), (2, 3))
    vsla_file, swinir_file = tmp_path / "vsla.pth", tmp_path / "swinir.pth"
    torch.save(official_vsla_state(modules), vsla_file)
    torch.save(official_swinir(swinir), swinir_file)
    out = tmp_path / "bundle"
    done = run(
        *("--vsla", vsla_file, "--sr", swinir_file, "-o", out, "--verify", tiny_world, "--tracklets", 8)
    )
    assert done.exit_code == 0, done.output
    visual = modules["visual"]
    assert isinstance(visual, VisualEncoder)
    model = S3Clip(swinir, visual, normalise_first=False).eval()
    tracklets = protocol_tracklets(read_protocols(DataSettings(root=tiny_world)))
    clips = [Clip(tuple(load_crops(t, spread_indices(len(t)))), t.platform, t.hr) for t in tracklets]
    bundle = Bundle.open(out)
    with Embedder(bundle, device="cpu") as embedder:
        found = embedder.embed(clips)
    np.testing.assert_allclose(found, embed_tracklets(model, tracklets, device="cpu"), atol=1e-4)
    training = bundle.manifest.training
    assert training["checkpoints"] == {file.name: sha256_file(file) for file in (vsla_file, swinir_file)}
    assert training["results"] == {}
    text = json.dumps(training)
    assert '"num_heads": [2, 3]' in text
    assert str(tmp_path) not in text, "paths of the exporting machine"


def test_architectures_are_read_from_shapes(files: tuple[Path, Path]) -> None:
    state = official_vsla_state(vsla_modules())
    found = vsla_architecture(state, "file")
    assert (found.visual.width, found.visual.layers, found.visual.heads) == (128, 2, 2)
    assert (found.visual.patch, found.visual.out_dim) == (16, 16)
    assert (found.visual.adapter_width, found.visual.adapter_heads) == (128, 2)
    assert found.visual.platform_prompt_depth == 1
    assert (found.text.width, found.text.layers, found.text.heads) == (64, 1, 1)
    assert (found.identities, found.prompts) == (IDENTITIES, (8, 4, 8))
    sr = swinir_architecture(SwinIR(24, (2, 4), (2, 3)).state_dict(), "file")
    assert (sr.embed_dim, sr.depths, sr.num_heads) == (24, (2, 4), (2, 3))


def test_the_official_sizes_are_the_papers_defaults() -> None:
    with torch.device("meta"):
        sr = swinir_architecture(SwinIR().state_dict(), "file")
        modules = {
            "visual": VisualEncoder(VisualConfig()),
            "text": TextEncoder(),
            "prompts": PromptLearner(7, torch.zeros(77, 512)),
            "heads": IdentityHeads(768, 512, 7),
        }
    found = vsla_architecture(official_vsla_state(modules), "file")
    assert sr == type(sr)()
    assert found.visual == type(found.visual)()
    assert found.text == type(found.text)()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--vsla", "a", "--sr", "b"], "must be named once, found RUN run and --vsla and --sr"),
        ([], "nothing to export is named; give RUN, or --vsla and --sr"),
        (["--vsla", "a", "--verify", "d"], "--vsla must come with --sr"),
        (["--sr", "a", "--verify", "d"], "--sr must come with --vsla"),
        (["--vsla", "a", "--sr", "b"], "--vsla needs --verify"),
        (["run", "--data-kind", "mars"], "--data-kind needs --verify"),
    ],
)
def test_what_to_export_is_named_exactly_once(words: list[str], message: str) -> None:
    done = run(*words, "-o", "bundle")
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1


def test_the_kind_of_the_data_is_obeyed(files: tuple[Path, Path], tiny_world: Path, tmp_path: Path) -> None:
    vsla, swinir = files
    words = ("--vsla", vsla, "--sr", swinir, "-o", tmp_path / "bundle", "--verify", tiny_world)
    done = run(*words, "--data-kind", "mars")
    assert done.exit_code == 2
    assert "info" in done.output
    assert not (tmp_path / "bundle").exists()


def test_files_of_another_layout_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    vsla, swinir = files
    with pytest.raises(WeightsError, match=r"no key begins with image_encoder\."):
        origin_of_checkpoints(swinir, str(swinir))
    with pytest.raises(WeightsError, match=r"upsample\.0\.weight is missing"):
        origin_of_checkpoints(vsla, str(vsla))
    with pytest.raises(WeightsError, match="no such file"):
        origin_of_checkpoints(vsla, str(tmp_path / "absent.pth"))
    torch.save(official_swinir(SwinIR(24, (2,), (2,), upscale=4)), tmp_path / "x4.pth")
    with pytest.raises(WeightsError, match="enlarges by 4, and the super-resolver must enlarge by 2"):
        origin_of_checkpoints(vsla, str(tmp_path / "x4.pth"))
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / vsla.name
    torch.save(official_swinir(SwinIR(24, (2,), (2,))), twin)
    with pytest.raises(ConfigError, match=r"found vsla\.pth twice"):
        origin_of_checkpoints(vsla, str(twin))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("image_encoder.conv1.weight", r"image_encoder\.conv1\.weight is missing"),
        ("image_encoder.ln_post.bias", r"missing: ln_post\.bias"),
        ("classifier.weight", r"missing: classifier\.weight"),
        ("prompt_learner.token_suffix", r"missing: token_suffix"),
    ],
)
def test_a_missing_key_is_named(files: tuple[Path, Path], tmp_path: Path, key: str, message: str) -> None:
    vsla, swinir = files
    state = torch.load(vsla)
    del state[f"module.{key}"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=message):
        origin_of_checkpoints(tmp_path / "cut.pth", str(swinir))


def test_unknown_keys_stay_errors(files: tuple[Path, Path], tmp_path: Path) -> None:
    vsla, swinir = files
    torch.save({**torch.load(vsla), "module.image_encoder.extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match="unexpected: extra"):
        origin_of_checkpoints(tmp_path / "more.pth", str(swinir))
    content = torch.load(swinir)
    content["params"]["conv_last.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "classical.pth")
    with pytest.raises(WeightsError, match=r"unexpected: conv_last\.weight"):
        origin_of_checkpoints(vsla, str(tmp_path / "classical.pth"))


def test_prompts_of_other_platforms_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save(official_vsla_state(vsla_modules(platforms=38)), tmp_path / "xfd.pth")
    with pytest.raises(WeightsError, match="for 38 platforms, and must hold 1 for 2, ground, aerial"):
        origin_of_checkpoints(tmp_path / "xfd.pth", str(files[1]))


def test_a_path_is_no_function() -> None:
    assert is_function("my_package.sr:network")
    for text in ("swinir.pth", "weights/swinir.pth", r"C:\swinir.pth", "a:b:c", "a:", "s3://a"):
        assert not is_function(text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("other = 1", "has no function network"),
        ("def network(): return 3", r"must return a torch\.nn\.Module, got int"),
        ("def network(): return nn.Upsample(scale_factor=3)", r"gave \(2, 3, 192, 96\), not \(2, 3, 128"),
        ("def network(): return nn.Upsample(scale_factor=2).double()", None),
        ("class Nan(nn.Upsample):\n def forward(self, x): return super().forward(x) / 0 * 0\n"
         "def network(): return Nan(scale_factor=2)", "not finite"),
        ("class Half(nn.Upsample):\n def forward(self, x): return super().forward(x).half()\n"
         "def network(): return Half(scale_factor=2)", r"gave torch\.float16"),
        ("class Mean(nn.Upsample):\n def forward(self, x): return super().forward(x - x.mean())\n"
         "def network(): return Mean(scale_factor=2)", "same alone and in a batch"),
        ("class List(nn.Upsample):\n def forward(self, x): return [x]\n"
         "def network(): return List(scale_factor=2)", "gave list, not a tensor"),
        ("def network(): return nn.Conv2d(4, 3, 1)", "raised RuntimeError"),
    ],
)  # fmt: skip
def test_a_foreign_super_resolver_is_held_to_the_contract(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    body: str,
    message: str | None,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = write_module(tmp_path, tmp_path.name, body)  # a name that no other test has imported
    if message is None:
        assert isinstance(foreign_super_resolver(source), nn.Upsample)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        foreign_super_resolver(source)
    assert str(caught.value).startswith(f"--sr {source}: ")


def test_a_foreign_module_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_module(tmp_path, "sr_of_this_folder", "def network(): return nn.Upsample(scale_factor=2)")
    with pytest.raises(ConfigError, match="sr_of_this_folder cannot be imported"):
        foreign_super_resolver(source)
    monkeypatch.chdir(tmp_path)
    assert isinstance(foreign_super_resolver(source), nn.Upsample)


SHAPES_AT_RUN_TIME = """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.body(x).view(b, 12, h * w).transpose(1, 2).reshape(b * h, 1, w, 12)
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).reshape(b, h * w, 12)
        big = nn.functional.interpolate(x, size=(2 * h, 2 * w), mode="bilinear")
        return self.shuffle(tokens.transpose(1, 2).reshape(b, 12, h, w)) + big

def network():
    torch.manual_seed(1)
    return Network()
"""


@pytest.mark.slow
def test_a_super_resolver_that_computes_shapes_exports(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = write_module(tmp_path, "shapes_at_run_time", SHAPES_AT_RUN_TIME)
    model = origin_of_checkpoints(files[0], source).model
    compare_enhance(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "bad", "message"),
    [
        ("reshape(b, 12, h, w)", "reshape(int(b / 1), 12, h, w)", "batch dimension is fixed to 2"),
        ("+ big", "+ big + self.body.bias[:1].view(1, 1, 1, 1).expand(b, 3, 1, 1)", "1 x Shape, allowed 0"),
    ],
)
def test_a_super_resolver_that_fixes_its_batch_is_refused(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    bad: str,
    message: str,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = write_module(tmp_path, f"fixed_batch_{len(bad)}", SHAPES_AT_RUN_TIME.replace(own, bad))
    model = origin_of_checkpoints(files[0], source).model
    with pytest.raises(BundleError, match=rf"{message}; .*reshape\(-1, \.\.\.\)"):
        export_graph(graph_sources(model)[0], tmp_path / "enhance.onnx")


def compare_enhance(model: S3Clip, folder: Path) -> None:
    """Export `enhance` and hold it against PyTorch, for batches of other sizes than the traced one."""
    file = folder / "enhance.onnx"
    export_graph(next(source for source in graph_sources(model) if source.role == "enhance"), file)
    assert graph_problems(onnx.load(file)) == []
    session = OrtSession(file)
    for count in (1, 5):
        crops = np.random.default_rng(count).integers(0, 256, (count, 64, 32, 3), dtype=np.uint8)
        found = session.run({"crops": crops})
        lr = torch.from_numpy(crops).permute(0, 3, 1, 2) / 255.0
        with torch.no_grad():
            resolved = model.sr(lr)
            expected = model.visual.patch_tokens(model.normalise(model.up(resolved)))
        np.testing.assert_allclose(found["tokens"], expected.numpy(), atol=1e-4)
        picture = (resolved * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
        assert np.abs(found["picture"] - picture).max() <= 1


@pytest.mark.slow
def test_a_super_resolver_of_spandrel_takes_swinirs_place(
    files: tuple[Path, Path], tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = pytest.importorskip("spandrel.architectures.Compact").Compact
    torch.manual_seed(2)
    save_file(compact(num_feat=8, num_conv=2, upscale=2).state_dict(), tmp_path / "compact.safetensors")
    body = (
        "from pathlib import Path\nfrom spandrel import ModelLoader\n"
        "file = Path(__file__).with_name('compact.safetensors')\n"
        "def network(): return ModelLoader().load_from_file(file).model"
    )
    source = write_module(tmp_path, "sr_of_spandrel", body)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "bundle"
    done = run("--vsla", files[0], "--sr", source, "-o", out, "--verify", tiny_world, "--tracklets", 8)
    assert done.exit_code == 0, done.output
    training = Bundle.open(out).manifest.training
    assert training["super_resolver"] == source
    assert training["checkpoints"] == {files[0].name: sha256_file(files[0])}
    config = training["config"]
    assert isinstance(config, dict)
    assert "sr" not in config
    assert graph_problems(onnx.load(out / "enhance.onnx")) == []
    model = origin_of_checkpoints(files[0], source).model
    compare_enhance(model, tmp_path)
