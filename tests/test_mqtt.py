"""The MQTT sink against a real broker that is killed, restarted, secured, frozen and missing."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_sightings import MATCH, ids, sightings, wait_for
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from s3clip_runtime.errors import ConfigError, SinkError
from s3clip_runtime.streams.outputs.mqtt import MqttOptions, MqttSink, _Broker, filled_topic

_CODE = """
import asyncio, json, logging, sys
from amqtt.broker import Broker
logging.disable(logging.WARNING)
async def serve():
    await Broker(json.loads(sys.argv[1])).start()
    print("up", flush=True)
    await asyncio.Event().wait()
asyncio.run(serve())
"""


class RealBroker:
    """amqtt in a process of its own, on the same port each time."""

    def __init__(
        self, *, password_file: Path | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        listener: dict[str, object] = {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}
        if certificate is not None:
            listener |= {"ssl": True, "certfile": str(certificate[0]), "keyfile": str(certificate[1])}
        if password_file is None:
            plugins: dict[str, dict[str, object]] = {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            }
        else:
            plugins = {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(password_file)}}
        self.config = {"listeners": {"default": listener}, "plugins": plugins}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE, json.dumps(self.config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def broker() -> Iterator[RealBroker]:
    made = RealBroker()
    yield made
    made.kill()


class Listener:
    """Keeps all messages that a broker hands out."""

    def __init__(self, port: int, topic: str = "#") -> None:
        self.messages: list[MQTTMessage] = []
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = lambda client, data, message: self.messages.append(message)
        self._client.connect("127.0.0.1", port)
        ready: list[bool] = []
        self._client.on_subscribe = lambda *rest: ready.append(True)
        self._client.loop_start()
        self._client.subscribe(topic, qos=1)
        wait_for(lambda: ready)

    def events(self) -> list[str]:
        return [json.loads(one.payload)["event_id"] for one in self.messages if "sightings" in one.topic]

    def states(self) -> list[str]:
        return [one.payload.decode() for one in self.messages if one.topic == "s3clip/status"]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def options(port: int, folder: Path) -> MqttOptions:
    return MqttOptions("127.0.0.1", folder / "mqtt.sqlite", port)


def test_publishes_events_and_that_it_is_there(broker: RealBroker, tmp_path: Path) -> None:
    listener = Listener(broker.port)
    template = "a/{camera}/{look}/{decision}/sightings"
    many = sightings(5, decision=MATCH)
    many[4] = replace(many[4], event=replace(many[4].event, camera="../ho/f+#$ß"))
    sink = MqttSink(replace(options(broker.port, tmp_path), topic=template))
    for one in many:
        sink.sighting(one)
    wait_for(lambda: len(listener.events()) == 5)
    wait_for(lambda: sink.status().delivered == 5)
    assert (sink.status().waiting, sink.status().lost, sink.status().error) == (0, 0, "")
    assert sink.status().name == f"mqtt 127.0.0.1:{broker.port}"
    late = Listener(broker.port, "s3clip/status")
    wait_for(late.states)  # retained; this broker may send it twice
    assert set(late.states()) == {"online"}
    late.close()
    sink.close()
    wait_for(lambda: listener.states() == ["online", "offline"])
    published = [one for one in listener.messages if "sightings" in one.topic]
    assert [one.payload.decode() for one in published] == [one.event.line() for one in many]
    assert published[1].topic == "a/cc/final/match/sightings"
    assert published[4].topic == "a/.._ho_f___ß/final/match/sightings"
    assert {one.qos for one in published} == {1}
    listener.close()


def test_broker_killed_and_back_sends_again_in_order(
    broker: RealBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = sightings(60)
    sink = MqttSink(options(broker.port, tmp_path))
    listener = Listener(broker.port)
    for one in many[:20]:
        sink.sighting(one)
    wait_for(lambda: len(listener.events()) == 20)
    broker.kill()
    listener.close()
    began = time.monotonic()
    for one in many[20:]:
        sink.sighting(one)
    assert time.monotonic() - began < 2  # nobody waits for the broker
    wait_for(lambda: sink.status().error)
    assert (sink.status().waiting, sink.status().lost) == (40, 0)
    broker.start()
    again = Listener(broker.port)
    wait_for(lambda: sink.status().delivered == 60)
    wait_for(lambda: len(again.events()) >= 40)
    sink.close()
    assert ordered_once(listener.events() + again.events()) == ids(many)
    assert "works again" in caplog.text
    again.close()


def ordered_once(found: list[str]) -> list[str]:
    """Without repeats, of which QoS 1 may make one after another."""
    return list(dict.fromkeys(found))


@pytest.mark.slow
def test_broker_absent_at_start_then_a_restart_of_ours(tmp_path: Path) -> None:
    broker = RealBroker()
    broker.kill()
    many = sightings(10)
    sink = MqttSink(options(broker.port, tmp_path))
    for one in many[:6]:
        sink.sighting(one)
    wait_for(lambda: sink.status().error == "Connection refused")
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 5
    broker.start()
    listener = Listener(broker.port)
    sink = MqttSink(options(broker.port, tmp_path))
    for one in many[6:]:
        sink.sighting(one)
    wait_for(lambda: len(listener.events()) == 10)
    sink.close()
    assert listener.events() == ids(many)
    assert sink.status().delivered == 10
    listener.close()
    broker.kill()


_SENDER = """
import sys, time; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from made_sightings import sightings
from s3clip_runtime.streams.outputs.mqtt import MqttOptions, MqttSink
sink = MqttSink(MqttOptions("127.0.0.1", Path(sys.argv[3]), int(sys.argv[2])))
for one in sightings(1000):
    sink.sighting(one)
    print(one.event.event_id, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_kill_9_of_ours_leaves_a_last_will_and_loses_nothing(broker: RealBroker, tmp_path: Path) -> None:
    listener = Listener(broker.port)
    told, spool = tmp_path / "told", tmp_path / "mqtt.sqlite"
    with told.open("wb") as out:
        command = [sys.executable, "-c", _SENDER, str(Path(__file__).parent), str(broker.port), str(spool)]
        sender = subprocess.Popen(command, stdout=out)
        try:
            wait_for(lambda: len(listener.events()) > 50)
        finally:
            sender.send_signal(signal.SIGKILL)
            sender.wait(10)
    wait_for(lambda: listener.states() == ["online", "offline"])
    accepted = told.read_text().rpartition("\n")[0].splitlines()
    sink = MqttSink(options(broker.port, tmp_path))
    wait_for(lambda: sink.status().error == "" and sink.status().waiting == 0)
    sink.close()
    wait_for(lambda: listener.states() == ["online", "offline"] * 2)
    found = listener.events()
    assert ordered_once(found)[: len(accepted)] == accepted
    assert len(found) - len(set(found)) <= 1  # what was on its way
    listener.close()


@pytest.mark.slow
def test_frozen_broker_is_noticed(broker: RealBroker, tmp_path: Path) -> None:
    many = sightings(8)
    sink = MqttSink(replace(options(broker.port, tmp_path), timeout_s=1))
    wait_for(lambda: sink.status().error == "")
    broker.process.send_signal(signal.SIGSTOP)
    for one in many:
        sink.sighting(one)
    wait_for(lambda: "does not answer" in sink.status().error)
    broker.process.send_signal(signal.SIGCONT)
    wait_for(lambda: sink.status().delivered == 8)
    sink.close()


@pytest.mark.slow
def test_wrong_password_is_told_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"ann:{_hashed('right-secret')}\n")
    broker = RealBroker(password_file=passwords)
    caplog.set_level(logging.DEBUG)
    try:
        wrong = replace(options(broker.port, tmp_path), user="ann", password="wrong-secret")
        assert "secret" not in repr(wrong)
        sink = MqttSink(wrong)
        wait_for(lambda: "refuses" in sink.status().error or "closed" in sink.status().error)
        assert "secret" not in str(sink.status())
        sink.sighting(sightings(1)[0])
        sink.close()
        sink = MqttSink(replace(wrong, password="right-secret"))
        wait_for(lambda: sink.status().delivered == 1)
        sink.close()
    finally:
        broker.kill()
    assert "secret" not in caplog.text


def _hashed(password: str) -> str:
    from pwdlib.hashers.argon2 import Argon2Hasher  # what the broker itself uses

    return Argon2Hasher().hash(password)


@pytest.mark.slow
def test_tls_checks_the_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=broker -addext"
    made = [*command.split(), "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True, timeout=30)
    broker = RealBroker(certificate=(certificate, key))
    try:
        plain = replace(options(broker.port, tmp_path), tls=True)
        sink = MqttSink(plain)
        sink.sighting(sightings(1)[0])
        wait_for(lambda: "its certificate is not trusted" in sink.status().error)
        sink.close()
        sink = MqttSink(replace(plain, ca_file=certificate))
        wait_for(lambda: sink.status().delivered == 1)
        sink.close()
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"topic": "a/{track}"}, r"topic 'a/\{track\}' must be"),
        ({"topic": "a/#"}, "must be short text without"),
        ({"status_topic": "s/{camera}"}, "only topic has places"),
        ({"port": 0}, "port 0 are no address"),
        ({"password": "secret"}, "a password needs a user"),
        ({"ca_file": Path("missing.pem")}, "does not exist"),
    ],
)
def test_options_that_cannot_work(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        MqttSink(replace(options(1883, tmp_path), **change))  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_spool_in_use(tmp_path: Path) -> None:
    sink = MqttSink(options(1, tmp_path))
    with pytest.raises(SinkError, match="in use"):
        MqttSink(options(1, tmp_path))
    sink.close()


@pytest.mark.slow
def test_connections_leave_nothing_behind(broker: RealBroker, tmp_path: Path) -> None:
    missing = RealBroker()
    missing.kill()
    gc.collect()
    gc.disable()  # what is left would wait for the collector
    try:
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for port in (broker.port, missing.port):
            carrier = _Broker(options(port, tmp_path))
            for _ in range(15):
                assert (carrier.ready() is None) == (port == broker.port)
                carrier.close()
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    finally:
        gc.enable()


def test_topic_is_filled_from_values_only_once() -> None:
    event = {"camera": "{look}", "look": "final", "decision": "a/b"}
    assert filled_topic("x/{camera}/{decision}", event) == "x/_look_/a_b"


@pytest.mark.slow
def test_without_paho_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['paho'] = None\n"
        "from pathlib import Path\n"
        "from s3clip_runtime.errors import ConfigError\n"
        "from s3clip_runtime.streams.outputs.mqtt import MqttOptions, MqttSink\n"
        "try: MqttSink(MqttOptions('h', Path(sys.argv[1])))\n"
        "except ConfigError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "q")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert 'pip install "s3clip[mqtt]"' in done.stdout
    assert list(tmp_path.iterdir()) == []
