"""Every number of inference. Training, export and calibration import it from here.

Sizes are (height, width) in pixels. Sources: paper section 3 and 4.1; method.md chapters 0, 2 and 7.
"""

from __future__ import annotations

from s3clip_runtime.errors import ConfigError

LR_SIZE = (64, 32)
"""Size to which low-resolution crops are resized before super-resolution."""

SR_SCALE = 2
"""Factor of the super-resolver: 64x32 becomes 128x64."""

SR_SIZE = (LR_SIZE[0] * SR_SCALE, LR_SIZE[1] * SR_SCALE)
"""Size of the super-resolved picture."""

FRAME_SIZE = (256, 128)
"""Size of the picture that the encoder's patches are cut from."""

PATCH_SIZE = 16
"""Side of a square patch; stride equals it."""

PATCH_GRID = (FRAME_SIZE[0] // PATCH_SIZE, FRAME_SIZE[1] // PATCH_SIZE)
PATCHES = PATCH_GRID[0] * PATCH_GRID[1]
"""Patch tokens of one frame (row-major), without the class token."""

CLIP_LENGTH = 8
"""Frames of a clip (T)."""

HR_MIN_SIZE = (128, 64)
"""A frame is HR iff height >= 128 and width >= 64 (decision A8)."""

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean, RGB, of values in [0, 1]."""

PIXEL_STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation, RGB, of values in [0, 1]."""

BATCH_PROFILE = (1, 8, 64)
"""Smallest, usual and largest batch of crops; sessions cut larger batches into pieces."""

CLIPS_A_PASS = BATCH_PROFILE[2] // CLIP_LENGTH
"""Clips whose crops fill the largest batch: `encode` never gets more at once."""

CLIPS_PROFILE = (1, CLIPS_A_PASS, CLIPS_A_PASS)
"""As `BATCH_PROFILE`, of `encode`. An engine reserves memory for its largest batch: at full size in FP16 1328
MB at 64 clips and 166 MB at 8."""

PLATFORMS = ("ground", "aerial")
"""Platform names; the index is the platform id that `encode` takes."""


def platform_id(name: str) -> int:
    """Index of a platform name.

    Raises:
        ConfigError: the name is not one of `PLATFORMS`.
    """
    if name not in PLATFORMS:
        raise ConfigError(f"platform {name!r} is unknown; use one of {', '.join(PLATFORMS)}")
    return PLATFORMS.index(name)
