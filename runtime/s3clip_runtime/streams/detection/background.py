"""Persons by motion against a still background."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from s3clip_runtime.streams.detection.boxes import Floats, clipped
from s3clip_runtime.streams.frames import Detections, Frame


class BackgroundDetector:
    """Moving person-like shapes in front of a still background; needs no network. For one fixed camera.

    The mixture of Gaussians of OpenCV (MOG2) marks what changed; shadows are removed, shapes that were split
    vertically (a belt in the background's colour) are joined. All limits are shares of the frame, so persons
    of 12 px in 640x360 and of 150 px both pass. The score is how full the box is times how person-like its
    proportions are. Who stands still for long, or was there from the start, is not seen.
    """

    WARM_UP_FRAMES = 5
    LEARNING_RATE = 0.004
    """A frame's weight in the background: who stands still is lost after some 25 frames."""
    LONG_SIDE = 1280
    """Larger frames are shrunk to this many pixels for the search."""
    HEIGHT_SHARE = (0.025, 0.9)
    """Person height over frame height."""
    ASPECT = (0.9, 5.5)
    """Person height over width."""
    USUAL_ASPECT = 2.4
    MIN_FILL = 0.25
    """Changed pixels over all pixels of a box."""
    USUAL_FILL = 0.65
    MAX_CHANGED = 0.5
    """A frame that changed more than this share shows a camera that moved or a lamp, not persons."""
    JOINT_ASPECT = 3.5
    """Joined shapes may not be taller over width: two persons one behind the other often are."""
    MAX_GAP = 0.15
    """Gap between the halves of a split person over their joint height."""

    def __init__(self) -> None:
        self._seen = 0
        self._size = (0, 0)
        self._model = cv2.createBackgroundSubtractorMOG2(varThreshold=40, detectShadows=True)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """See `Detector.detect`; all frames are of one camera, in its order.

        The first frames, and the first after a change of size, give none.
        """
        return [self._movers(frame) for frame in frames]

    def close(self) -> None:
        """Nothing to close."""

    def _movers(self, frame: Frame) -> Detections:
        size = (frame.image.shape[0], frame.image.shape[1])
        if size != self._size:  # OpenCV starts its model again by itself
            self._size, self._seen = size, 0
        self._seen += 1
        scale = min(1.0, self.LONG_SIDE / max(size))
        shrunk = (max(round(size[1] * scale), 1), max(round(size[0] * scale), 1))
        image = frame.image if scale == 1 else cv2.resize(frame.image, shrunk, interpolation=cv2.INTER_AREA)
        # OpenCV's own rate falls slowly from 1: right for the start, later it would absorb walkers.
        warming = self._seen <= self.WARM_UP_FRAMES
        marked = self._model.apply(image, learningRate=-1 if warming else self.LEARNING_RATE)
        mask = np.asarray(marked == 255, np.uint8)  # 127 marks shadow
        if warming or mask.mean() > self.MAX_CHANGED:
            return Detections.none()
        mask = np.asarray(cv2.medianBlur(mask, 3), np.uint8)
        mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 3), np.uint8)), np.uint8)
        stats = np.asarray(cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:], np.float32)
        min_height = self.HEIGHT_SHARE[0] * mask.shape[0]
        stats = stats[stats[:, 4] >= min_height**2 / 16]  # specks: a half of a thin person has twice as much
        boxes = np.concatenate([stats[:, :2], stats[:, :2] + stats[:, 2:4]], axis=1)
        boxes, areas = self._join_split(boxes, stats[:, 4])
        return self._person_like(boxes, areas, mask.shape[0], np.float32(scale))

    def _join_split(self, boxes: Floats, areas: Floats) -> tuple[Floats, Floats]:
        """Join, nearest first, pairs that lie one above the other and together look like one person."""
        while len(boxes) > 1:
            one, other, widths = boxes[:, None], boxes[None], boxes[:, 2] - boxes[:, 0]
            inner = np.minimum(one, other)[..., 2:] - np.maximum(one, other)[..., :2]  # < 0 is a gap
            outer = np.maximum(one, other)[..., 2:] - np.minimum(one, other)[..., :2]
            narrow = np.minimum(widths[:, None], widths[None])
            aspect = outer[..., 1] / outer[..., 0]
            fits = (inner[..., 0] >= narrow / 2) & (-inner[..., 1] <= self.MAX_GAP * outer[..., 1])
            fits &= (aspect >= self.ASPECT[0]) & (aspect <= self.JOINT_ASPECT)
            first, second = np.nonzero(np.triu(fits, 1))
            if len(first) == 0:
                break
            nearest = int(np.argmax(inner[first, second, 1]))
            keep, gone = int(first[nearest]), int(second[nearest])
            boxes[keep, :2] = np.minimum(boxes[keep, :2], boxes[gone, :2])
            boxes[keep, 2:] = np.maximum(boxes[keep, 2:], boxes[gone, 2:])
            areas[keep] += areas[gone]
            boxes, areas = np.delete(boxes, gone, axis=0), np.delete(areas, gone)
        return boxes, areas

    def _person_like(self, boxes: Floats, areas: Floats, height: int, scale: np.float32) -> Detections:
        sides = boxes[:, 2:] - boxes[:, :2]
        share, aspect, fill = sides[:, 1] / height, sides[:, 1] / sides[:, 0], areas / sides.prod(axis=1)
        good = (share >= self.HEIGHT_SHARE[0]) & (share <= self.HEIGHT_SHARE[1]) & (fill >= self.MIN_FILL)
        good &= (aspect >= self.ASPECT[0]) & (aspect <= self.ASPECT[1])
        likeness = np.exp(-0.5 * (np.log(aspect / self.USUAL_ASPECT) / 0.8) ** 2)
        scores = np.minimum(fill / self.USUAL_FILL, 1) * likeness
        return clipped(boxes[good] / scale, scores[good], self._size)
