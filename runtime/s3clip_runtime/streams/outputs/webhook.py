"""Events by HTTP POST."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.streams.outputs.delivery import Delivered, Delivery, Failed, Refused, fault
from s3clip_runtime.streams.outputs.spool import Spool, Spooled

_RETRIED = (401, 403, 404, 408, 429)
"""401 to 404 are a wrong token or address: the event waits until that is mended."""


@dataclass(frozen=True)
class WebhookOptions:
    """Where events are posted.

    Attributes:
        url: http or https, without user and password. Its path may be a secret: it is never shown.
        spool: file of the events that wait.
        token: sent as `Authorization: Bearer`; not empty, visible ASCII.
        spool_bytes: limit of the spool.
        timeout_s: seconds to connect, and to wait for each answer.
    """

    url: str = field(repr=False)
    spool: Path
    token: str | None = field(default=None, repr=False)
    spool_bytes: int = 64 * 2**20
    timeout_s: float = 10.0


class Webhook(Delivery):
    """POSTs each event as one JSON object, in order, with its event_id as `Idempotency-Key`.

    2xx acknowledges. 401, 403, 404, 408, 429, 5xx, redirects and faults of the network are tried again, as
    `Delivery` says and not before `Retry-After`. Any other answer refuses the event for good: it is counted
    as lost and the next one is sent. Redirects are never followed: the token goes to the configured host
    alone. Proxies are taken from the environment (`https_proxy`, `no_proxy`).

    Raises:
        ConfigError: the address or the token cannot be used.
        SinkError: the spool cannot be opened.
    """

    def __init__(self, options: WebhookOptions) -> None:
        poster = _Poster(options)
        super().__init__(poster, Spool(options.spool, options.spool_bytes))


class _Poster:
    def __init__(self, options: WebhookOptions) -> None:
        host = _checked_host(options.url)
        if options.token is not None and not re.fullmatch(r"[!-~]+", options.token):
            raise ConfigError("webhook: the token must be visible ASCII characters without spaces; check it")
        if options.timeout_s <= 0:
            raise ConfigError(f"webhook: timeout_s must be above 0, not {options.timeout_s}")
        self.name = f"webhook {host}"
        self._options = options
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ready(self) -> Failed | None:
        """There is no connection to keep."""
        return None

    def send(self, item: Spooled) -> Delivered | Refused | Failed:
        headers = {"Content-Type": "application/json", "Idempotency-Key": item.event_id}
        if self._options.token is not None:
            headers["Authorization"] = f"Bearer {self._options.token}"
        request = urllib.request.Request(self._options.url, data=item.payload, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._options.timeout_s):
                return Delivered()
        except urllib.error.HTTPError as error:
            with error:
                return _verdict(error.code, error.headers)
        except urllib.error.URLError as error:
            return Failed(fault(error.reason))
        except (OSError, http.client.HTTPException) as error:
            return Failed(fault(error))

    def close(self) -> None:
        """Nothing is open between two events."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets 3xx come back as an error."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def _checked_host(url: str) -> str:
    """Host and port of the address; it is not shown in messages, as it may be a secret."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("webhook: the address is not a valid URL; check it") from error
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[!-~]+", url):
        raise ConfigError("webhook: the address must be http://HOST/... or https://HOST/... without spaces")
    if "@" in parts.netloc:
        raise ConfigError("webhook: the address holds a user or password; give a token instead")
    return host if port is None else f"{host}:{port}"


def _verdict(code: int, headers: Message) -> Refused | Failed:
    answer = f"answered {code} {http.client.responses.get(code, '')}".strip()
    if 300 <= code < 400:
        target = urlsplit(headers.get("Location", "")).hostname
        return Failed(f"{answer} to {target or 'the same host'}, which is not followed; give the new address")
    if code in _RETRIED or code >= 500:
        return Failed(answer, _retry_after_s(headers.get("Retry-After", "")))
    return Refused(answer)


def _retry_after_s(value: str) -> float:
    """Seconds that the server asks to wait, by number or date; 0 when it does not say."""
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
