"""Events by MQTT."""

from __future__ import annotations

import json
import logging
import queue
import re
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.streams.outputs.delivery import Delivered, Delivery, Failed, fault
from s3clip_runtime.streams.outputs.spool import Spool, Spooled

if TYPE_CHECKING:
    from paho.mqtt.client import Client
    from paho.mqtt.reasoncodes import ReasonCode

_log = logging.getLogger(__name__)

_KEEPALIVE_S = 30  # a broker publishes the last will after one and a half of it
_GOODBYE_S = 1.0
_PLACES = ("camera", "look", "decision")


@dataclass(frozen=True)
class MqttOptions:
    """The broker, and what is published there.

    Attributes:
        host, port: of the broker.
        spool: file of the events that wait.
        topic: of the events; `{camera}`, `{look}` and `{decision}` are filled in from the event.
        status_topic: retained `online` while connected; `offline` after the end, and by last will after a
            crash. Boxes at one broker need different ones.
        user, password: of the broker, or None.
        tls: encrypt, and check the broker's certificate.
        ca_file: PEM file of the authority that signed it; None takes the system's.
        client_id: None makes a new one, so that two runs never push each other out.
        spool_bytes: limit of the spool.
        timeout_s: seconds to wait for each answer of the broker, above 0; half of it to connect.
    """

    host: str
    spool: Path
    port: int = 1883
    topic: str = "s3clip/{camera}/sightings"
    status_topic: str = "s3clip/status"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None
    client_id: str | None = None
    spool_bytes: int = 64 * 2**20
    timeout_s: float = 10.0


class MqttSink(Delivery):
    """Publishes each event as one JSON object with QoS 1, in order, one at a time.

    The next event goes when the broker has acknowledged the last (PUBACK), so nothing overtakes, at the
    price of one round trip an event. A crash between the two, or a lost acknowledgement, sends an event
    twice: subscribers know it by its `event_id`. Two threads work in the background: the delivery's, and
    paho's own, which reads and pings.

    Raises:
        ConfigError: an option cannot be used, or paho-mqtt is not installed.
        SinkError: the spool cannot be opened.
    """

    def __init__(self, options: MqttOptions) -> None:
        broker = _Broker(options)
        super().__init__(broker, Spool(options.spool, options.spool_bytes))


def filled_topic(template: str, event: dict[str, Any]) -> str:
    """The topic of an event. Letters that mean something in topics (`/ + # $`) become `_`, also in names."""
    for place in _PLACES:  # a filled in name holds no braces, so it is not taken for a place
        template = template.replace(f"{{{place}}}", re.sub(r"[^\w.-]", "_", str(event[place])))
    return template


class _Broker:
    """The broker as a carrier: one connection after the other."""

    def __init__(self, options: MqttOptions) -> None:
        try:
            import paho.mqtt.client  # noqa: F401  only whether it is there
        except ModuleNotFoundError as error:
            cure = 'this output needs: pip install "s3clip[mqtt]"'
            raise ConfigError(f"{error.name} is not installed; {cure}") from error
        _check(options)
        self.name = f"mqtt {options.host}:{options.port}"
        self._options = options
        self._client_id = options.client_id or f"s3clip-{secrets.token_hex(6)}"
        self._connection: _Connection | None = None
        if options.password is not None and not options.tls and options.host not in _LOOPBACK:
            _log.warning("%s: the password is sent in clear text; set tls = true", self.name)

    def ready(self) -> Failed | None:
        if self._connection is not None and self._connection.lost is None:
            return None
        reason = "" if self._connection is None else self._connection.lost
        self._drop()
        if reason:
            return Failed(str(reason))
        connection = _Connection(self._options, self._client_id)
        try:
            connection.open()
        except (OSError, ValueError, _Lost) as error:
            connection.drop()
            return Failed(str(error) if isinstance(error, _Lost) else fault(error))
        self._connection = connection
        return None

    def send(self, item: Spooled) -> Delivered | Failed:
        assert self._connection is not None  # `ready` said so
        topic = filled_topic(self._options.topic, json.loads(item.payload))
        try:
            self._connection.publish(topic, item.payload)
        except (OSError, ValueError, _Lost) as error:
            self._drop()
            return Failed(str(error) if isinstance(error, _Lost) else fault(error))
        return Delivered()

    def close(self) -> None:
        if self._connection is not None and self._connection.lost is None:
            self._connection.say_offline()
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()
        self._connection = None


class _Lost(Exception):
    """The connection is lost, for the reason given."""


class _Connection:
    """One connection to the broker, until it is lost; the next one has a new client of paho.

    A client that reconnects by itself would send what it still holds again, behind the spool's back.
    """

    def __init__(self, options: MqttOptions, client_id: str) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.lost: str | None = None
        self._options = options
        self._timeout_s = options.timeout_s
        self._answers: queue.SimpleQueue[int] = queue.SimpleQueue()  # packet ids; 0 for CONNACK, -1 for lost
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish

    def open(self) -> None:
        """Connect, wait for the broker's answer, and say that we are online.

        Raises:
            _Lost, OSError, ValueError: it failed.
        """
        options, client = self._options, self._client
        if options.user is not None:
            client.username_pw_set(options.user, options.password)
        if options.tls:
            client.tls_set_context(ssl.create_default_context(cafile=options.ca_file))
        client.will_set(options.status_topic, "offline", qos=1, retain=True)
        client.connect_timeout = options.timeout_s / 2
        client.connect(options.host, options.port, keepalive=_KEEPALIVE_S)
        client.loop_start()
        self._await(0)
        self.publish(options.status_topic, b"online", retain=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish and wait until the broker has it. Raises _Lost."""
        self._await(self._client.publish(topic, payload, qos=1, retain=retain).mid)

    def say_offline(self) -> None:
        """Do what the last will would do; a clean end takes it back."""
        self._timeout_s = min(self._timeout_s, _GOODBYE_S)
        try:
            self.publish(self._options.status_topic, b"offline", retain=True)
        except (OSError, ValueError, _Lost) as error:
            _log.debug("offline was not published: %s", error)

    def drop(self) -> None:
        """End it and paho's thread."""
        self._client.disconnect()
        self._client.loop_stop()
        # Without the circle its sockets go now, not when the collector comes by.
        self._client.on_connect = self._client.on_disconnect = self._client.on_publish = None

    def _await(self, answer: int) -> None:
        try:
            while (got := self._answers.get(timeout=self._timeout_s)) != answer:
                if self.lost is not None or got < 0:
                    raise _Lost(self.lost or "lost")
        except queue.Empty:
            raise _Lost(f"the broker does not answer for {self._timeout_s:g} s") from None

    def _on_connect(
        self, client: Client, userdata: object, flags: object, code: ReasonCode, rest: object
    ) -> None:
        if code.is_failure:
            self._lose(f"the broker refuses: {code}")
        else:
            self._answers.put(0)

    def _on_disconnect(
        self, client: Client, userdata: object, flags: object, code: ReasonCode, rest: object
    ) -> None:
        self._lose(f"the broker closed the connection ({code})")

    def _on_publish(self, client: Client, userdata: object, mid: int, code: object, rest: object) -> None:
        self._answers.put(mid)

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        self._answers.put(-1)


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _check(options: MqttOptions) -> None:
    if not options.host or not 1 <= options.port <= 65535:
        raise ConfigError(f"mqtt: host {options.host!r} and port {options.port} are no address; check them")
    if options.timeout_s <= 0:
        raise ConfigError(f"mqtt: timeout_s must be above 0, not {options.timeout_s}")
    if options.password is not None and options.user is None:
        raise ConfigError("mqtt: a password needs a user; give user too")
    if options.ca_file is not None and not options.ca_file.is_file():
        raise ConfigError(f"mqtt: ca_file {options.ca_file} does not exist; give a PEM file")
    example = filled_topic(options.topic, dict.fromkeys(_PLACES, "x"))
    for name, topic in (("topic", example), ("status_topic", options.status_topic)):
        if not topic or re.search(r"[+#{}\x00]", topic) or len(topic.encode()) > 60_000:
            places = ", ".join(f"{{{place}}}" for place in _PLACES)
            rule = f"must be short text without + and #, and only topic has places ({places})"
            raise ConfigError(f"mqtt: {name} {topic!r} {rule}; change it")
