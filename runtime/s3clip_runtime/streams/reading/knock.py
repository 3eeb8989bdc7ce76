"""Ask cheaply whether a server that fell silent answers again."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

KNOCK_S = 2.5
"""From one knock to the next."""

REPLY_S = 2.0
"""How long a knock waits for the first byte of a reply."""

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


def knock(url: str, reply_s: float = REPLY_S) -> bool:
    """Send a bare OPTIONS request; whether any byte came back. At most three times `reply_s`.

    A server that is stopped or cut off still accepts connections (the kernel does), so only a byte counts;
    neither does a closed connection, which a port forwarder in front of a dead camera also gives. Nothing of
    the user, the password or the path is sent.
    """
    try:
        host, port, scheme = _place(url)
        with socket.create_connection((host, port), timeout=reply_s) as plain:
            plain.settimeout(reply_s)
            if scheme in ("rtsps", "https"):
                with _tls().wrap_socket(plain, server_hostname=host):
                    return True  # it took part in the handshake
            protocol = "RTSP/1.0\r\nCSeq: 1" if scheme == "rtsp" else f"HTTP/1.0\r\nHost: {host}"
            plain.sendall(f"OPTIONS * {protocol}\r\n\r\n".encode("ascii", "replace"))
            return bool(plain.recv(1))
    except (OSError, ValueError):  # refused, silent, no such host; or not an address
        return False


def _place(url: str) -> tuple[str, int, str]:
    scheme, _, rest = url.partition("://")
    # Passwords may hold '@', '/' and '#' unencoded: what counts follows the last '@'.
    split = urlsplit(f"//{rest.rpartition('@')[2]}")
    if not split.hostname:
        raise ValueError("no host")
    return split.hostname, split.port or _PORTS[scheme.lower()], scheme.lower()


def _tls() -> ssl.SSLContext:
    """Checks no certificate: nothing secret is sent, and cameras sign their own."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
