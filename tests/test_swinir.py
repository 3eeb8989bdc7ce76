"""SwinIR against the numbers of the official code, and its ONNX export."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s3clip.models.swinir import DropPath, SwinIR, relative_position_index, shift_mask
from s3clip.models.weights import load_official
from s3clip_runtime.errors import ConfigError, WeightsError

GOLDEN = Path(__file__).parent / "golden"
SMALL = np.load(GOLDEN / "swinir_small.npz")
TOLERANCE = 2e-5


def official_state(golden: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    """The file's state dict in float32, as torch.load would give it."""
    names = (key for key in golden if key.startswith("sd/"))
    return {name.removeprefix("sd/"): torch.from_numpy(golden[name]).float() for name in names}


def small() -> SwinIR:
    model = SwinIR(embed_dim=24, depths=(2, 2), num_heads=(2, 2))
    load_official(model, official_state(SMALL), "golden")
    return model.eval()


@pytest.mark.parametrize("case", [0, 1, 2])
def test_small_model_gives_the_official_output(case: int) -> None:
    with torch.no_grad():
        output = small()(torch.from_numpy(SMALL[f"in/{case}"]))
    np.testing.assert_allclose(output.numpy(), SMALL[f"out/{case}"], atol=TOLERANCE, rtol=0)


def test_small_model_gives_the_official_gradients() -> None:
    model = small()
    picture = torch.from_numpy(SMALL["in/0"]).requires_grad_()
    model(picture).abs().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients["in0"] = picture.grad
    for key in (key for key in SMALL if key.startswith("grad/")):
        found = gradients[key.removeprefix("grad/")]
        assert found is not None
        np.testing.assert_allclose(found.numpy(), SMALL[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "to_official"),
    [
        ("layers.0.residual_group.blocks.1.attn", lambda x: x.flatten(0, 1)),
        ("layers.0", lambda x: x.flatten(1, 2)),
        ("conv_after_body", lambda x: x),
    ],
)
def test_inner_activations_are_the_official_ones(name: str, to_official: Callable[[Tensor], Tensor]) -> None:
    golden = np.load(GOLDEN / "swinir_small_acts.npz")
    model, seen = small(), []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model(torch.from_numpy(golden["in/0"]))
    np.testing.assert_allclose(to_official(seen[0]).numpy(), golden[f"act/0/{name}"], atol=TOLERANCE, rtol=0)


def test_constants_are_those_of_the_official_file() -> None:
    block = "sd/layers.0.residual_group.blocks.1"
    np.testing.assert_array_equal(shift_mask(16, 16, 8), SMALL[f"{block}.attn_mask"])
    np.testing.assert_array_equal(
        relative_position_index(8).numpy(), SMALL[f"{block}.attn.relative_position_index"]
    )


def test_default_is_swinir_s_with_the_official_keys_and_outputs() -> None:
    golden = np.load(GOLDEN / "swinir_s_x2.npz")
    official = {key: tuple(shape) for key, shape in json.loads(str(golden["meta/keys_json"])).items()}
    model = SwinIR()
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: s for key, s in official.items() if not key.endswith(("attn_mask", "position_index"))}
    assert len(official) == 366
    assert ours == weights
    assert sum(p.numel() for p in model.parameters()) == int(golden["meta/num_params"]) == 910_152

    # A released file also holds the derived constants, which have to be passed over.
    derived = {key: torch.zeros(official[key]) for key in official.keys() - weights.keys()}
    load_official(model, official_state(golden) | derived, "golden")
    model.eval()
    for case in range(3):
        with torch.no_grad():
            output = model(torch.from_numpy(golden[f"in/{case}"]).float())
        np.testing.assert_allclose(output.numpy(), golden[f"out/{case}"], atol=TOLERANCE, rtol=0)


def test_misfitting_weights_are_listed_and_change_nothing() -> None:
    model = SwinIR(embed_dim=24, depths=(2, 2), num_heads=(2, 2))
    before = copy.deepcopy(model.state_dict())
    state = official_state(SMALL)
    del state["norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["conv_first.bias"] = torch.zeros(60)
    with pytest.raises(WeightsError) as caught:
        load_official(model, state, "golden")
    for part in (
        "missing: norm.bias",
        "unexpected: extra.weight",
        "conv_first.bias is (60,), the model needs (24,)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_bad_numbers_and_too_small_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        SwinIR(embed_dim=24, depths=(2, 2), num_heads=(5, 5))
    with pytest.raises(ConfigError, match="4x16 cannot be mirrored"):
        small()(torch.zeros(1, 3, 4, 16))


def test_drop_path_is_per_sample_unbiased_and_off_in_eval() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    assert torch.equal(drop.eval()(x), x)
    y = drop.train()(x).flatten(1)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_path_grows_to_its_last_block() -> None:
    rates = [m.rate for m in SwinIR(drop_path=0.1).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 23 for i in range(24)])


@pytest.mark.slow
def test_onnx_has_a_free_batch_and_no_shape_arithmetic(tmp_path: Path) -> None:
    path = tmp_path / "swinir.onnx"
    torch.onnx.export(
        small(),
        (torch.rand(2, 3, 16, 24),),
        path,
        dynamo=True,
        opset_version=18,
        input_names=["pictures"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators.isdisjoint({"Loop", "If", "Shape", "ScatterND"})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model = small()
    for batch in (1, 3):
        pictures = torch.rand(batch, 3, 16, 24)
        with torch.no_grad():
            expected = model(pictures).numpy()
        (found,) = session.run(None, {"pictures": pictures.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
