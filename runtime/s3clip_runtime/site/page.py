"""The section `[page]` of the site file."""

from __future__ import annotations

import ipaddress
import re
from typing import Self

from pydantic import PrivateAttr, SecretStr, model_validator

from s3clip_runtime.site.section import SitePath, SiteSection, Variable


class PageSettings(SiteSection):
    """The status page."""

    listen: str = "127.0.0.1:8765"
    """HOST:PORT; port 0 takes any free one. Other than loopback needs a token."""
    token_env: Variable | None = None
    token_file: SitePath | None = None
    _token: SecretStr | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        host, _ = _host_and_port(self.listen)
        self._token = self._secret("token")
        if self._token is None and not _is_loopback(host):
            raise ValueError(
                f"listen: {host} is not loopback, so others reach the page; give token_file or token_env, "
                "or listen on 127.0.0.1"
            )
        return self

    @property
    def host(self) -> str:
        """Address to listen on, an IPv6 one without its brackets."""
        return _host_and_port(self.listen)[0]

    @property
    def port(self) -> int:
        """Port to listen on; 0 takes any free one."""
        return _host_and_port(self.listen)[1]

    @property
    def token(self) -> SecretStr | None:
        """What a request must bring; None: the page is local and open."""
        return self._token


def _host_and_port(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\[\]:/\s]+):(\d{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise ValueError("listen: not HOST:PORT with a port of 0 to 65535, like 127.0.0.1:8765 or [::1]:8765")
    return match[1].strip("[]"), int(match[2])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
