"""Where events, pictures and videos go: the sections `[outputs.*]` of the site file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    model_validator,
)

from s3clip_runtime.site.secrets import secret_parts
from s3clip_runtime.site.section import SitePath, SiteSection, Variable


class EventsOutput(SiteSection):
    """JSON lines in a file."""

    path: SitePath
    rotate_mb: NonNegativeInt = 64
    """Size in MB from which a new file is begun; 0 never."""
    keep: PositiveInt = 10
    """Rotated files that are kept, beside the one that is written."""
    fsync: Literal["never", "interval", "always"] = "interval"
    """When lines are forced onto the disk: by the system alone, every second, or each one."""


class MqttOutput(SiteSection):
    """A broker, with a spool for the time it is away."""

    host: str = Field(min_length=1)
    port: int = Field(default=1883, ge=1, le=65535)
    topic: str = "s3clip/{camera}/sightings"
    """`{camera}`, `{look}` and `{decision}` are filled in from the event."""
    status_topic: str = "s3clip/status"
    """Retained `online` or `offline`. Boxes at one broker need different ones."""
    user: str | None = None
    password_env: Variable | None = None
    password_file: SitePath | None = None
    tls: bool = False
    spool: SitePath = Path("mqtt-spool.sqlite")
    spool_mb: PositiveInt = 64
    """Largest size of the spool in MB."""
    _password: SecretStr | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        bare = re.sub(r"\{(camera|look|decision)\}", "", self.topic)
        if not self.topic or re.search(r"[+#{}\x00]", bare):
            raise ValueError("topic: not one to publish to; leave out + and #, and write places as {camera}")
        if not self.status_topic or re.search(r"[+#\x00]", self.status_topic):
            raise ValueError("status_topic: not one to publish to; leave out + and #")
        self._password = self._secret("password")
        if self._password is not None and self.user is None:
            raise ValueError("user: missing, and a password is given; MQTT has no password without a user")
        return self

    @property
    def password(self) -> SecretStr | None:
        """As the variable or file gave it when the site was loaded."""
        return self._password


class WebhookOutput(SiteSection):
    """An HTTP endpoint, with a spool for the time it is away."""

    url: SecretStr | None = None
    url_env: Variable | None = None
    url_file: SitePath | None = None
    token_env: Variable | None = None
    token_file: SitePath | None = None
    spool: SitePath = Path("webhook-spool.sqlite")
    spool_mb: PositiveInt = 64
    """Largest size of the spool in MB."""
    _address: SecretStr = PrivateAttr()
    _token: SecretStr | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        address = self._secret("url", required=True)
        assert address is not None  # required
        if re.match(r"(?i)https?://[^/]", address.get_secret_value()) is None:
            raise ValueError("url: not an http or https address; write https://HOST/PATH")
        self._address = address
        self._token = self._secret("token")
        return self

    @property
    def address(self) -> SecretStr:
        """The URL. Its path may be a secret too: many services put their token there."""
        return self._address

    @property
    def token(self) -> SecretStr | None:
        """Sent as `Authorization: Bearer`."""
        return self._token


class CropsOutput(SiteSection):
    """Pictures of persons as files. Without the section none is kept."""

    folder: SitePath
    which: Literal["match", "unknown", "all"] = "unknown"
    """Whose: of persons in the gallery, of all others, or of everybody."""
    keep_days: PositiveFloat = 7.0
    """Days after which a picture is deleted."""
    max_mb: PositiveInt = 1024
    """Size of the folder in MB above which the oldest pictures are deleted."""


class VideoOutput(SiteSection):
    """Videos with boxes and names, one file a camera."""

    folder: SitePath


class Outputs(SiteSection):
    """Each output is off while its section is missing."""

    events: EventsOutput | None = None
    mqtt: MqttOutput | None = None
    webhook: WebhookOutput | None = None
    crops: CropsOutput | None = None
    video: VideoOutput | None = None

    @model_validator(mode="after")
    def _files_differ(self) -> Self:
        paths = {
            "events.path": self.events and self.events.path,
            "mqtt.spool": self.mqtt and self.mqtt.spool,
            "webhook.spool": self.webhook and self.webhook.spool,
        }
        seen: dict[object, str] = {}
        for key, path in paths.items():
            if path is not None and seen.setdefault(path, key) != key:
                raise ValueError(f"{seen[path]} and {key} are the same file {path}; give each its own")
        return self

    def secrets(self) -> frozenset[str]:
        """All words that must never be shown."""
        words: set[str] = set()
        if self.mqtt is not None and self.mqtt.password is not None:
            words.add(self.mqtt.password.get_secret_value())
        if self.webhook is not None:
            address = self.webhook.address.get_secret_value()
            words |= secret_parts(address)
            # The part after the host is the password of many services; a short one, such as /hook, is none.
            path = re.sub(r"(?i)^https?://[^/]*/?", "", address)
            words |= {path} if len(path) >= 16 else set()
            if self.webhook.token is not None:
                words.add(self.webhook.token.get_secret_value())
        return frozenset(words)
