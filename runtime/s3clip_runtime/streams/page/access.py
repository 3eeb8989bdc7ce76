"""Who may see the page: the token, and the Host header that keeps other web pages out."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import threading
import time
from collections.abc import Sequence
from email.message import Message
from importlib.resources import files
from urllib.parse import parse_qsl, urlencode

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.streams.page.answers import HTML, Answer, text

_log = logging.getLogger(__name__)

MIN_TOKEN = 16
"""Characters. 16 random ones are 96 bits: guessing over a network never ends."""

_WARN_EVERY_S = 60.0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Access:
    """Decides on each request.

    With a token: `Authorization: Bearer TOKEN`, or `?token=TOKEN` once, which a cookie then stands for.
    Without: the Host header must name this machine, so that a foreign web page whose name was pointed at
    127.0.0.1 (DNS rebinding) cannot read through the operator's browser.

    Args:
        host: where the page listens.
        token: printable ASCII of at least `MIN_TOKEN` characters; None only on loopback.

    Raises:
        ConfigError: the page would be open to the network, or the token is unfit.
    """

    def __init__(self, host: str, token: str | None) -> None:
        self.loopback = is_loopback(host)
        if token is None and not self.loopback:
            raise ConfigError(
                f"[page] listen: {host or 'every address'} can be reached from other machines and no token "
                "is set; set token_file or token_env, or listen on 127.0.0.1"
            )
        if token is not None:
            _check_token(token)
        self._token = token
        self._hosts = {"localhost", "127.0.0.1", "[::1]", host.lower(), f"[{host.strip('[]').lower()}]"}
        # The cookie is not the token: who reads a browser's cookies cannot use them elsewhere.
        digest = hmac.new((token or "").encode(), b"s3clip page cookie", hashlib.sha256).hexdigest()
        # Cookies are shared by all ports of a host, so the name tells pages with other tokens apart.
        self._cookie = (f"s3clip-{digest[:8]}", digest[8:])
        self._lock = threading.Lock()
        self._wrong = 0
        self._warned_s: float | None = None

    def refusal(self, path: str, query: str, headers: Message, client: str) -> Answer | None:
        """None if the request may go on; else what it gets instead, also the redirect of `?token=`."""
        if self._token is None:
            return self._foreign_host(headers.get_all("Host", []))
        given = [value for name, value in parse_qsl(query) if name == "token"]
        if given and any(_same(value, self._token) for value in given):
            return self._redirect(path, query)
        if self._cookie_fits(headers) or self._bearer_fits(headers):
            return None
        if given or "Authorization" in headers:
            self._count_wrong(client)
        return Answer(401, HTML, _login_page(), (("WWW-Authenticate", 'Bearer realm="s3clip"'),))

    def _foreign_host(self, hosts: Sequence[str]) -> Answer | None:
        if len(hosts) == 1 and _without_port(hosts[0]) in self._hosts:
            return None
        return text(421, "This page answers only as localhost or 127.0.0.1; set a token to give it a name.")

    def _cookie_fits(self, headers: Message) -> bool:
        name, value = self._cookie
        pairs = [
            part.strip().partition("=") for line in headers.get_all("Cookie", []) for part in line.split(";")
        ]
        return any(key == name and _same(found, value) for key, _, found in pairs)

    def _bearer_fits(self, headers: Message) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and _same(given.strip(), self._token)

    def _redirect(self, path: str, query: str) -> Answer:
        """To the same place without the token, with the cookie. Relative, so it can never lead elsewhere."""
        rest = urlencode([(name, value) for name, value in parse_qsl(query) if name != "token"])
        place = "./" + path.rpartition("/")[2] + (f"?{rest}" if rest else "")
        name, value = self._cookie
        cookie = f"{name}={value}; Path=/; HttpOnly; SameSite=Strict"
        return text(303, "The token is right.", ("Location", place), ("Set-Cookie", cookie))

    def _count_wrong(self, client: str) -> None:
        with self._lock:
            self._wrong += 1
            now = time.monotonic()
            if self._warned_s is not None and now - self._warned_s < _WARN_EVERY_S:
                return
            self._warned_s, count = now, self._wrong
            self._wrong = 0
        _log.warning("page: %d request(s) with a wrong token, the last one from %s", count, client)


def _check_token(token: str) -> None:
    if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"the token of [page] must be {MIN_TOKEN} or more printable ASCII characters without spaces, "
            f"found one of {len(token)} characters; `openssl rand -hex 24` makes one"
        )


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _without_port(host: str) -> str:
    name, _, port = host.strip().lower().rpartition(":")
    return name.rstrip(".") if name and port.isdigit() else host.strip().lower().rstrip(".")


def _login_page() -> bytes:
    return (files("s3clip_runtime.streams.page") / "web" / "login.html").read_bytes()
