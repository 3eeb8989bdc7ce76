"""Graphs of the TensorFlow Object Detection API, as tf2onnx converts them."""

from __future__ import annotations

import numpy as np

from s3clip_runtime.streams.detection.tensors import Found, Infos, Outputs, Tensors, is_tensor, of_class


def ssd_tensors(inputs: Infos, outputs: Infos) -> Tensors | None:
    """See `Layout.find`."""
    images = [name for name, info in inputs.items() if is_tensor(info, np.uint8, (None, None, None, 3))]
    names = {name.removesuffix(":0"): name for name in outputs}  # TensorFlow numbers outputs
    wanted = {"boxes": "detection_boxes", "scores": "detection_scores", "labels": "detection_classes"}
    if len(images) != 1 or len(inputs) != 1 or not set(wanted.values()) <= names.keys():
        return None
    ranks = {"boxes": 3, "scores": 2, "labels": 2}
    # Converted graphs may not know the shape of an output, which then reads as no dimensions.
    fits = all(len(outputs[names[wanted[what]]].shape) in (0, rank) for what, rank in ranks.items())
    found = {what: names[name] for what, name in wanted.items()}
    if "num_detections" in names:
        found["count"] = names["num_detections"]
    return Tensors(images[0], found) if fits else None


def ssd_boxes(
    tensors: Tensors, outputs: Outputs, size: tuple[int, int], person: int, threshold: float
) -> list[Found]:
    """Boxes are top, left, bottom, right as shares of the picture; rows from the count on are filling."""
    names = tensors.outputs
    scale = np.array([size[0], size[1], size[0], size[1]], np.float32)
    boxes = (np.asarray(outputs[names["boxes"]], np.float32) * scale)[..., [1, 0, 3, 2]]
    scores = np.array(outputs[names["scores"]], np.float32)
    if "count" in names:
        counts = np.asarray(outputs[names["count"]]).reshape(-1, 1)
        scores[np.arange(scores.shape[1]) >= counts] = -1
    return of_class(np.rint(outputs[names["labels"]]), boxes, scores, person, threshold)
