"""Graphs whose queries answer with boxes: RF-DETR, and RT-DETR with and without its postprocessing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from s3clip_runtime.streams.detection.tensors import (
    Found,
    Infos,
    Outputs,
    Tensors,
    chw_image,
    is_tensor,
    of_class,
)


def query_tensors(boxes: str, logits: str) -> Callable[[Infos, Infos], Tensors | None]:
    """Finder of graphs that answer with boxes (N, Q, 4) and logits (N, Q, classes) of queries."""

    def find(inputs: Infos, outputs: Infos) -> Tensors | None:
        image = chw_image(inputs)
        if image is None or len(inputs) != 1 or not {boxes, logits} <= outputs.keys():
            return None
        columns = outputs[logits].shape[-1] if outputs[logits].shape else None
        fits = is_tensor(outputs[boxes], np.floating, (None, None, 4))
        if not fits or not is_tensor(outputs[logits], np.floating, (None, None, None)):
            return None
        return Tensors(image, {"boxes": boxes, "logits": logits}, classes=columns)

    return find


def rf_detr_tensors(inputs: Infos, outputs: Infos) -> Tensors | None:
    """See `Layout.find`; RF-DETR's own names first, for logits of 4 classes have the shape of boxes."""
    own = query_tensors("dets", "labels")(inputs, outputs)
    return own or query_tensors("pred_boxes", "logits")(inputs, outputs)


def query_boxes(
    tensors: Tensors, outputs: Outputs, size: tuple[int, int], person: int, threshold: float
) -> list[Found]:
    """Queries hold centre and size as shares of the picture, and logits, each class by itself."""
    scale = np.array([size[1], size[0]], np.float32)
    boxes = np.asarray(outputs[tensors.outputs["boxes"]], np.float32)
    logits = np.asarray(outputs[tensors.outputs["logits"]], np.float32)[..., person]
    scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))  # exp overflows float32 from 88 on
    found = []
    for box, score in zip(boxes, scores, strict=True):
        good = score >= threshold
        centre, half = box[good, :2] * scale, box[good, 2:] * scale / 2
        found.append((np.concatenate([centre - half, centre + half], axis=1), score[good]))
    return found


def rt_detr_tensors(inputs: Infos, outputs: Infos) -> Tensors | None:
    """See `Layout.find`."""
    image = chw_image(inputs)
    sizes = [name for name, info in inputs.items() if is_tensor(info, np.integer, (None, 2))]
    if (
        image is None
        or len(sizes) != 1
        or len(inputs) != 2
        or not {"labels", "boxes", "scores"} <= outputs.keys()
    ):
        return None
    fits = (
        is_tensor(outputs["labels"], np.integer, (None, None))
        and is_tensor(outputs["boxes"], np.floating, (None, None, 4))
        and is_tensor(outputs["scores"], np.floating, (None, None))
    )
    return Tensors(image, {name: name for name in ("labels", "boxes", "scores")}, sizes[0]) if fits else None


def rt_detr_boxes(
    tensors: Tensors, outputs: Outputs, size: tuple[int, int], person: int, threshold: float
) -> list[Found]:
    """Boxes are in pixels of the size that was handed in, the input's own."""
    del size
    labels, boxes, scores = (outputs[tensors.outputs[name]] for name in ("labels", "boxes", "scores"))
    return of_class(labels, np.asarray(boxes, np.float32), scores, person, threshold)
