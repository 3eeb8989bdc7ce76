"""An MQTT broker that can be stopped and started, with a subscriber that remembers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from streams.lab import end_with_parent, free_port, wait_until


class Broker:
    """amqtt in a process of its own, and a subscriber that is there before any publisher can be."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.ids: list[str] = []
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    def start(self) -> Self:
        config = self._folder / "broker.yaml"
        config.write_text(
            f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{self.port}\n"
            "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
        )
        command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent)
        wait_until("broker", self._listens, 30)
        subscribed = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_message = lambda client, data, message: self._hear(message.payload)
        client.on_subscribe = lambda *words: subscribed.set()
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        client.subscribe("s3clip/+/sightings", qos=1)
        assert subscribed.wait(10)
        self._client = client
        return self

    def stop(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _hear(self, payload: bytes | bytearray) -> None:
        self.ids.append(json.loads(payload)["event_id"])

    def _listens(self) -> bool:
        with socket.socket() as plain:
            return plain.connect_ex(("127.0.0.1", self.port)) == 0
