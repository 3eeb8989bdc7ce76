"""The table of detector layouts: how each network wants its picture, and what its outputs mean.

Sources of the layouts: YOLOX, arXiv 2107.08430, and its ONNX export; RF-DETR's, RT-DETR's and Hugging Face's
ONNX exports; the TensorFlow Object Detection API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from s3clip_runtime.errors import BackendError, ConfigError
from s3clip_runtime.inference.backends import Session
from s3clip_runtime.streams.detection.detr import (
    query_boxes,
    query_tensors,
    rf_detr_tensors,
    rt_detr_boxes,
    rt_detr_tensors,
)
from s3clip_runtime.streams.detection.pictures import (
    BYTE_PICTURE,
    IMAGENET_PICTURE,
    UNIT_PICTURE,
    YOLOX_PICTURE,
    Picture,
)
from s3clip_runtime.streams.detection.ssd import ssd_boxes, ssd_tensors
from s3clip_runtime.streams.detection.tensors import Found, Infos, Outputs, Tensors
from s3clip_runtime.streams.detection.yolox import yolox_boxes, yolox_tensors


@dataclass(frozen=True, slots=True)
class Layout:
    """One row of the table.

    Attributes:
        name: by which users name it.
        form: its inputs and outputs, for people.
        picture: what it wants to see.
        person_class: index of persons, if the network has `classes` classes.
        classes: None if `person_class` holds for every number of them.
        threshold: least score; weak ones only continue tracks.
        nms_iou: of two boxes that overlap more, the better one stays; None where there are no duplicates.
        free_size: (height, width) of the input of graphs that leave it open; None refuses such graphs.
        find: its tensors in a graph's inputs and outputs, None if it is not of this layout.
        decode: what each picture shows, of (tensors, outputs, (height, width), person class, threshold).
    """

    name: str
    form: str
    picture: Picture
    person_class: int
    classes: int | None
    threshold: float
    nms_iou: float | None
    free_size: tuple[int, int] | None
    find: Callable[[Infos, Infos], Tensors | None]
    decode: Callable[[Tensors, Outputs, tuple[int, int], int, float], list[Found]]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was recognised.

    Attributes:
        batch: fixed batch, None if it is dynamic.
        size: (height, width) of its input.
    """

    layout: Layout
    tensors: Tensors
    batch: int | None
    size: tuple[int, int]


def recognise(session: Session, name: str | None = None) -> Graph:
    """Find out a graph's layout by the names, ranks and types of its tensors.

    Args:
        session: the open graph.
        name: of the layout, where the user knows it.

    Raises:
        ConfigError: no layout has this name.
        BackendError: the graph is of no layout, of several, or not of the named one; or of no fixed size.
    """
    wanted = LAYOUTS.values() if name is None else [layout_of(name)]
    fitting = [(one, tensors) for one in wanted if (tensors := one.find(session.inputs, session.outputs))]
    if len(fitting) != 1:
        found = f"inputs {_listed(session.inputs)}; outputs {_listed(session.outputs)}"
        known = "; ".join(f"{one.name}: {one.form}" for one in wanted)
        if not fitting:
            raise BackendError(f"detector: the graph has {found}. Known is {known}. Export it in such a form")
        names = " and ".join(one.name for one, _ in fitting)
        raise BackendError(
            f"detector: the graph ({found}) fits {names}; say which, with s3clip-export detector --layout"
        )
    layout, tensors = fitting[0]
    shape = session.inputs[tensors.image].shape
    height, width = shape[1:3] if layout.picture.form == "hwc" else shape[2:4]
    if (height is None or width is None) and layout.free_size is None:
        raise BackendError(
            f"detector: {layout.name} graphs need a fixed height and width, {tensors.image} is "
            f"{session.inputs[tensors.image]}; export it with a fixed size"
        )
    default = layout.free_size or (0, 0)
    return Graph(layout, tensors, shape[0], (height or default[0], width or default[1]))


def layout_of(name: str) -> Layout:
    """The layout of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"detector layout {name!r} is unknown; use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def person_class_of(graph: Graph) -> int:
    """The class of persons, where the number of classes tells it.

    Raises:
        BackendError: it does not: the network was trained on other classes than COCO's.
    """
    layout, count = graph.layout, graph.tensors.classes
    if layout.classes is not None and count is not None and count != layout.classes:
        raise BackendError(
            f"detector: {layout.name} of {layout.classes} classes has persons as class "
            f"{layout.person_class}, this one has {count} classes; name it with s3clip-export detector "
            "--person-class"
        )
    return layout.person_class


def _listed(infos: Infos) -> str:
    return ", ".join(f"{name} {info}" for name, info in infos.items()) or "none"


_IMAGE = "floating (N, 3, H, W)"

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="yolox",
            form=f"one input {_IMAGE}, H and W fixed multiples of 32, to one output (N, cells of the strides "
            "8, 16 and 32, 5 + classes)",
            picture=YOLOX_PICTURE,
            person_class=0,
            classes=None,
            threshold=0.25,
            nms_iou=0.45,
            free_size=None,
            find=yolox_tensors,
            decode=yolox_boxes,
        ),
        Layout(
            name="rf-detr",
            form=f"one input {_IMAGE} to dets (N, Q, 4) and labels (N, Q, classes), or to pred_boxes "
            "and logits",
            picture=IMAGENET_PICTURE,
            person_class=1,
            classes=91,
            threshold=0.3,
            nms_iou=None,
            free_size=None,
            find=rf_detr_tensors,
            decode=query_boxes,
        ),
        Layout(
            name="rt-detr",
            form=f"inputs {_IMAGE} and integers (N, 2) to labels (N, Q), boxes (N, Q, 4) and scores (N, Q)",
            picture=UNIT_PICTURE,
            person_class=0,
            classes=None,
            threshold=0.3,
            nms_iou=None,
            free_size=None,
            find=rt_detr_tensors,
            decode=rt_detr_boxes,
        ),
        Layout(
            name="rt-detr-hf",
            form=f"one input {_IMAGE} to pred_boxes (N, Q, 4) and logits (N, Q, classes)",
            picture=UNIT_PICTURE,
            person_class=0,
            classes=80,
            threshold=0.3,
            nms_iou=None,
            free_size=(640, 640),
            find=query_tensors("pred_boxes", "logits"),
            decode=query_boxes,
        ),
        Layout(
            name="ssd",
            form="one input uint8 (N, H, W, 3) to detection_boxes (N, Q, 4), detection_scores (N, Q) and "
            "detection_classes (N, Q)",
            picture=BYTE_PICTURE,
            person_class=1,
            classes=None,
            threshold=0.3,
            nms_iou=0.45,
            free_size=(300, 300),
            find=ssd_tensors,
            decode=ssd_boxes,
        ),
    )
}
"""Name to layout. The classes are those of networks trained on COCO, as published."""
