"""What is wrong with the pictures of a connected camera."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.streams.status import PictureFault


class PictureHealth:
    """Looks at the pictures of one connection."""

    def update(self, image: NDArray[np.uint8], now_s: float, corrupt: bool) -> tuple[PictureFault, ...]:
        """Faults of the picture, uint8 (h, w, 3) RGB, decoded at monotonic `now_s`."""
        return ("black",) if not corrupt and int(image[::16, ::16].max()) < 24 else ()
