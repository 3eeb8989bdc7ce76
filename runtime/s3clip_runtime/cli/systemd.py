"""What systemd is told of a run: ready, reloading, stopping, alive. Without systemd nothing is said.

The protocol of sd_notify(3): datagrams of `KEY=VALUE` lines to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0


class ServiceManager:
    """The systemd that started this process, or nobody. Use it in the started process, not in its children.

    Args:
        environ: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        text = environ.get("WATCHDOG_USEC", "")
        self._watchdog_s = int(text) / 1e6 if mine and text.isdigit() and int(text) else None
        self._next_alive_s = 0.0

    def ready(self) -> None:
        """The run has started, or a reload is over, whether it was applied or refused."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` must follow."""
        # systemd from 253 on compares this time with that of its request (Type=notify-reload).
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The run ends in order."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog, at most four times in its period. Call it once a second or more, from the loop
        whose standstill must end the process."""
        now_s = time.monotonic()
        if self._watchdog_s is not None and now_s >= self._next_alive_s:
            self._next_alive_s = now_s + self._watchdog_s / 4
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line that `systemctl status` shows. No secrets."""
        self._send(f"STATUS={' '.join(text.splitlines())}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of Linux's abstract names.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(SEND_TIMEOUT_S)
                channel.sendto(message.encode(), address)
        except OSError as error:
            _log.warning("systemd was not told %s: %s", message.partition("\n")[0], error)
