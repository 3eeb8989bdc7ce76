"""What all outputs behind a network share: a spool, and a thread that empties it in order."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from s3clip_runtime.errors import SinkError
from s3clip_runtime.streams.events import Sighting
from s3clip_runtime.streams.outputs.spool import Spool, Spooled
from s3clip_runtime.streams.status import OutputStatus

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
LONGEST_ASKED_PAUSE_S = 3600.0
"""A server that asks to wait longer (Retry-After) is asked again after this time."""

_IDLE_S = 1.0
_CLOSE_S = 1.5


@dataclass(frozen=True, slots=True)
class Delivered:
    """The other side has the event."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The other side will never take this event: it is given up and counted as lost."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Try the same event again later, at the earliest in `retry_after_s` seconds."""

    reason: str
    retry_after_s: float = 0.0


def fault(error: object) -> str:
    """A fault of the network in a few words, without addresses."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"no proper answer ({type(error).__name__})"


class Carrier(Protocol):
    """Brings events to the other side; called by one thread. `name` is without secrets.

    No call waits longer than about its own time-outs, and none raises for a fault of the network.
    """

    @property
    def name(self) -> str: ...

    def ready(self) -> Failed | None:
        """Connect if need be; called before each event, and every second while there is none."""

    def send(self, item: Spooled) -> Delivered | Refused | Failed:
        """Deliver one event."""

    def close(self) -> None:
        """Say goodbye."""


class Delivery:
    """A sink that spools events and delivers them in order, each at least once.

    An event is forgotten when the other side has acknowledged it. After a crash between the two it is sent
    again: receivers know it by its `event_id`. A failed delivery is tried again after 0.5 s, then twice as
    long each time up to 30 s, minus a random half, so that many boxes do not come back at once.
    """

    def __init__(self, carrier: Carrier, spool: Spool) -> None:
        self._carrier = carrier
        self._spool = spool
        self._delivered = self._refused = 0
        self._error = "not connected yet"
        self._refusal = ""
        self._failing = False
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline_s = float("inf")
        self._thread = threading.Thread(target=self._run, name=carrier.name, daemon=True)
        self._thread.start()

    def sighting(self, sighting: Sighting) -> None:
        """Spool the sighting's event. Waits for no network and no fsync."""
        self._spool.append(sighting.event.event_id, sighting.event.line().encode())
        self._wake.set()

    def status(self) -> OutputStatus:
        """How many events are delivered, wait, and are lost."""
        lost = self._spool.lost + self._refused
        error = self._error or self._refusal or self._spool.error
        return OutputStatus(self._carrier.name, self._delivered, self._spool.waiting, lost, error)

    def close(self) -> None:
        """Deliver what waits, for at most 1.5 s; the rest stays in the spool for the next run.

        Raises:
            SinkError: events could not even be spooled, because the disk is full.
        """
        self._deadline_s = time.monotonic() + _CLOSE_S
        self._closing.set()
        self._wake.set()
        self._thread.join(_CLOSE_S + 1)
        waiting = self._spool.waiting
        unkept = self._spool.close()
        if unkept:
            raise SinkError(
                f"{unkept} events for {self._carrier.name} are lost: the disk of the spool is full"
            )
        if waiting:
            _log.warning("%s: %d events stay in the spool for the next run", self._carrier.name, waiting)

    def _run(self) -> None:
        failures = 0
        try:
            while time.monotonic() < self._deadline_s:
                self._wake.clear()
                item = self._spool.oldest()
                failed = self._deliver(item)
                if failed is not None:
                    failures += 1
                    if self._closing.is_set():
                        return
                    self._pause(failures, failed)
                elif item is None:
                    failures = 0
                    if self._closing.is_set():
                        return
                    self._spool.tend()
                    self._wake.wait(_IDLE_S)
                else:
                    failures = 0
        finally:
            self._carrier.close()

    def _deliver(self, item: Spooled | None) -> Failed | None:
        """Bring one event over, or only keep the connection when there is none."""
        try:
            failed = self._carrier.ready()
            if failed is None and item is not None:
                failed = self._settle(item, self._carrier.send(item))
        except Exception as error:  # a bug must not end the delivery for months
            failed = Failed(f"unexpected {type(error).__name__}")
            if failed.reason != self._error:
                _log.exception("%s: unexpected", self._carrier.name)
        if failed is None:
            if self._failing:
                _log.warning("%s: works again", self._carrier.name)
            self._error = ""
        elif failed.reason != self._error:
            _log.warning("%s: %s; events wait in the spool", self._carrier.name, failed.reason)
            self._error = failed.reason
        self._failing = failed is not None
        return failed

    def _settle(self, item: Spooled, answer: Delivered | Refused | Failed) -> Failed | None:
        """Forget an event that needs no other try."""
        if isinstance(answer, Failed):
            return answer
        was_there = self._spool.acknowledge(item)
        if isinstance(answer, Delivered):
            self._delivered += was_there
            self._refusal = ""
            return None
        self._refused += was_there
        self._refusal = f"events are refused: {answer.reason}"
        # Every power of ten, so that a wrong address does not fill the log.
        if self._refused == 10 ** (len(str(self._refused)) - 1):
            words = f"{item.event_id} was refused: {answer.reason}; {self._refused} lost"
            _log.error("%s: %s", self._carrier.name, words)
        return None

    def _pause(self, failures: int, failed: Failed) -> None:
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1)
        until_s = time.monotonic() + max(pause_s, min(failed.retry_after_s, LONGEST_ASKED_PAUSE_S))
        while (left_s := until_s - time.monotonic()) > 0 and not self._closing.wait(min(left_s, _IDLE_S)):
            self._spool.tend()
