"""Tiny networks of every detector layout, with random weights: one strided convolution each."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 2
"""Of the YOLOX network."""

QUERY_STRIDE = 16
"""One query a cell of this many pixels."""

Batch = int | str


def random_image(height: int, width: int, seed: int = 5) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def yolox_file(path: Path, size: tuple[int, int], batch: Batch = 1, kind: int = TensorProto.FLOAT) -> Path:
    """A network of the YOLOX layout; `kind` is the type of its input and output."""
    rng = np.random.default_rng(3)
    channels = 5 + CLASSES
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT)]
    weights = []
    for stride in (8, 16, 32):
        weight = rng.normal(0, 0.02 / stride, (channels, 3, stride, stride)).astype(np.float32)
        bias = rng.normal(0, 0.3, channels).astype(np.float32) + np.array([0, 0, 0, 0.8, 1, 1, 0], np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{stride}"),
            numpy_helper.from_array(bias, f"b{stride}"),
        ]
        nodes += [
            helper.make_node(
                "Conv", ["x", f"w{stride}", f"b{stride}"], [f"c{stride}"], strides=[stride, stride]
            ),
            helper.make_node("Reshape", [f"c{stride}", "flat"], [f"r{stride}"]),
        ]
    weights += [
        numpy_helper.from_array(np.array([0, channels, -1], np.int64), "flat"),
        numpy_helper.from_array(np.array([4, channels - 4], np.int64), "parts"),
    ]
    nodes += [
        helper.make_node("Concat", ["r8", "r16", "r32"], ["all"], axis=2),
        helper.make_node("Split", ["all", "parts"], ["box", "logit"], axis=1),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
        helper.make_node("Concat", ["box", "score"], ["joined"], axis=1),
        helper.make_node("Transpose", ["joined"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["rows"], ["output"], to=kind),
    ]
    cells = sum((size[0] // s) * (size[1] // s) for s in (8, 16, 32))
    inputs = [helper.make_tensor_value_info("images", kind, [batch, 3, *size])]
    outputs = [helper.make_tensor_value_info("output", kind, [batch, cells, channels])]
    return _save(path, nodes, inputs, outputs, weights)


def _queries(classes: int, spread: float) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from `x`, floats (N, 3, H, W), to `unit`, centres and sizes in 0..1, and `raw`, logits."""
    # The mean colour of a cell decides: that hardly depends on how exactly a picture was resized.
    colours = np.random.default_rng(8).normal(0, spread, (4 + classes, 3, 1, 1)) / QUERY_STRIDE**2
    channels = 4 + classes
    weight = np.tile(colours, (1, 1, QUERY_STRIDE, QUERY_STRIDE)).astype(np.float32)
    bias = np.array([0, 0, -1, -1, *([-1.0] * classes)], np.float32)
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(bias, "b"),
        numpy_helper.from_array(np.array([0, channels, -1], np.int64), "flat"),
        numpy_helper.from_array(np.array([4, classes], np.int64), "parts"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[QUERY_STRIDE, QUERY_STRIDE]),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Split", ["t", "parts"], ["box", "raw"], axis=2),
        helper.make_node("Sigmoid", ["box"], ["unit"]),
    ]
    return nodes, weights


def query_file(
    path: Path,
    size: tuple[int, int],
    classes: int,
    names: tuple[str, str, str],
    batch: Batch = "n",
    *,
    spread: float = 1.0,
    open_size: bool = False,
) -> Path:
    """A network of RF-DETR's kind; `names` are those of the image, the boxes and the logits."""
    nodes, weights = _queries(classes, spread)
    nodes = [
        helper.make_node("Identity", [names[0]], ["x"]),
        *nodes,
        helper.make_node("Identity", ["unit"], [names[1]]),
        helper.make_node("Identity", ["raw"], [names[2]]),
    ]
    sides: list[Batch] = ["h", "w"] if open_size else [*size]
    queries: Batch = "q" if open_size else (size[0] // QUERY_STRIDE) * (size[1] // QUERY_STRIDE)
    inputs = [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, 3, *sides])]
    outputs = [
        helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch, queries, 4]),
        helper.make_tensor_value_info(names[2], TensorProto.FLOAT, [batch, queries, classes]),
    ]
    return _save(path, nodes, inputs, outputs, weights)


def rt_detr_file(path: Path, size: tuple[int, int], classes: int, batch: Batch = "n") -> Path:
    """A network with RT-DETR's own postprocessing: boxes in pixels of `orig_target_sizes`."""
    nodes, weights = _queries(classes, 5.0)
    weights.append(numpy_helper.from_array(np.array([2, 2], np.int64), "halves"))
    weights.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes = [
        helper.make_node("Identity", ["images"], ["x"]),
        *nodes,
        helper.make_node("Split", ["unit", "halves"], ["centre", "side"], axis=2),
        helper.make_node("Mul", ["side", "half"], ["arm"]),
        helper.make_node("Sub", ["centre", "arm"], ["low"]),
        helper.make_node("Add", ["centre", "arm"], ["high"]),
        helper.make_node("Concat", ["low", "high"], ["corners"], axis=2),
        helper.make_node("Cast", ["orig_target_sizes"], ["wh"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["wh", "wh"], ["whwh"], axis=1),
        helper.make_node("Unsqueeze", ["whwh", "one"], ["scale"]),
        helper.make_node("Mul", ["corners", "scale"], ["boxes"]),
        helper.make_node("Sigmoid", ["raw"], ["chances"]),
        helper.make_node("ReduceMax", ["chances"], ["scores"], axes=[2], keepdims=0),
        helper.make_node("ArgMax", ["chances"], ["labels"], axis=2, keepdims=0),
    ]
    queries = (size[0] // QUERY_STRIDE) * (size[1] // QUERY_STRIDE)
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *size]),
        helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [batch, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, queries]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, queries, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, queries]),
    ]
    return _save(path, nodes, inputs, outputs, weights, opset=17)  # ReduceMax took its axes there


def ssd_file(
    path: Path,
    classes: int,
    batch: Batch = "n",
    *,
    count: int | None = None,
    tf1: bool = True,
) -> Path:
    """A network of the TensorFlow API; `count` rows are valid; `tf1` names tensors as frozen graphs do."""
    nodes, weights = _queries(classes, 0.007)
    weights += [
        numpy_helper.from_array(np.array([1, 1, 1, 1], np.int64), "quarters"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.array(1, np.float32), "first"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(count or 10**6, np.float32), "count"),
    ]
    end = ":0" if tf1 else ""
    image = "image_tensor:0" if tf1 else "input_tensor"
    nodes = [
        helper.make_node("Cast", [image], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
        *nodes,
        helper.make_node("Split", ["unit", "quarters"], ["cx", "cy", "sx", "sy"], axis=2),
        helper.make_node("Mul", ["sx", "half"], ["ax"]),
        helper.make_node("Mul", ["sy", "half"], ["ay"]),
        helper.make_node("Sub", ["cy", "ay"], ["top"]),
        helper.make_node("Sub", ["cx", "ax"], ["left"]),
        helper.make_node("Add", ["cy", "ay"], ["bottom"]),
        helper.make_node("Add", ["cx", "ax"], ["right"]),
        helper.make_node("Concat", ["top", "left", "bottom", "right"], [f"detection_boxes{end}"], axis=2),
        helper.make_node("Sigmoid", ["raw"], ["chances"]),
        helper.make_node("ReduceMax", ["chances"], [f"detection_scores{end}"], axes=[2], keepdims=0),
        helper.make_node("ArgMax", ["chances"], ["best"], axis=2, keepdims=0),
        helper.make_node("Cast", ["best"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["number", "first"], [f"detection_classes{end}"]),
        helper.make_node("ReduceMax", [f"detection_scores{end}"], ["top_score"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["top_score", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "count"], [f"num_detections{end}"]),
    ]
    inputs = [helper.make_tensor_value_info(image, TensorProto.UINT8, [batch, "h", "w", 3])]
    outputs = [
        helper.make_tensor_value_info(f"detection_{name}{end}", TensorProto.FLOAT, shape)
        for name, shape in (("boxes", None), ("scores", None), ("classes", [batch, "q"]))
    ]
    outputs.append(helper.make_tensor_value_info(f"num_detections{end}", TensorProto.FLOAT, [batch]))
    return _save(path, nodes, inputs, outputs, weights, opset=17)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
    opset: int = 18,
) -> Path:
    graph = helper.make_graph(nodes, "detector", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, str(path))
    return path
