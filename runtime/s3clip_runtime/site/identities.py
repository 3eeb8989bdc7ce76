"""What a run may remember of people, and for how long: the section `[identities]` of the site file."""

from __future__ import annotations

from collections import Counter
from typing import Self

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from s3clip_runtime.site.section import SiteSection


class WaySettings(SiteSection):
    """How long a person needs from one camera to another, in this direction."""

    model_config = ConfigDict(validate_by_name=False)

    from_: str = Field(alias="from", min_length=1)
    """Name of a camera; it may be one of another box that shares the gallery."""
    to: str = Field(min_length=1)
    min_s: NonNegativeFloat = 0.0
    """Seconds; faster is impossible."""
    max_s: PositiveFloat | None = None
    """Seconds after which whoever has not come is not looked for there; None: always."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_s is not None and self.max_s < self.min_s:
            raise ValueError(f"max_s: {self.max_s:g} is less than min_s {self.min_s:g}; exchange them")
        if self.min_s == 0 and self.max_s is None:
            raise ValueError("limits nothing; give min_s, max_s or both, or leave the table out")
        return self


class IdentitySettings(SiteSection):
    """Off by default: all of it stores biometric data of people who pass."""

    unknowns: bool = False
    """Give ids to people whom nobody knows, and remember them."""
    grow: bool = False
    """Add views to known people; needs a calibrated gallery."""
    promote_after: PositiveInt = 3
    """Tracks after which a candidate counts as an unknown person."""
    min_quality: float = Field(default=0.3, ge=0, le=1)
    """Quality that a look needs to be remembered."""
    candidate_days: PositiveFloat = 1.0
    """Days without a sighting after which a candidate is erased."""
    unknown_days: PositiveFloat = 30.0
    """The same for an unknown person."""
    keep_days: PositiveFloat = 30.0
    """Days after which everything that runs collected is erased, of known people too."""
    keep_crops: bool = False
    """Keep the crops of remembered looks, for the day when the model changes."""
    travel: tuple[WaySettings, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for (start, end), count in Counter((way.from_, way.to) for way in self.travel).items():
            if count > 1:
                raise ValueError(f"travel: {count} tables go from {start} to {end}; write one")
        return self
