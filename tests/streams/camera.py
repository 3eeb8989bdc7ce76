"""One camera of the RTSP server: what it films, at which pace, and what is wrong with it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from streams import rtp
from streams.clips import GOP, LOOP, Clip

if TYPE_CHECKING:
    from streams.connection import Connection

FAULTS: dict[str, float] = {
    "stall": 0, "freeze": 0, "drop": 0, "corrupt": 0, "jump": 0, "standing": 0, "skew": 0, "reports": 1,
    "status": 200,
}  # fmt: skip
"""Each with its value in a camera that is well."""


class Camera:
    """One path of the server: its clips, its faults, and the connections that play it."""

    def __init__(self, name: str, clips: dict[str, Clip], fps: float) -> None:
        self.name = name
        self.playing: set[Connection] = set()
        self.scene = "street"
        self._clips = clips
        self._wanted = "street"
        self._faults: dict[str, tuple[float, float]] = {}
        self._usual = self._rate = (0.0, 0.0, fps)  # frame number at a Unix time, and frames a second
        self._rng = random.Random(name)

    def fault(self, name: str) -> float:
        """Its value now."""
        value, until = self._faults.get(name, (FAULTS[name], 0.0))
        return value if time.time() < until else FAULTS[name]

    def set(self, name: str, value: float, seconds: float) -> None:
        self._faults[name] = value, time.time() + seconds if seconds else float("inf")

    def show(self, scene: str) -> None:
        if scene not in self._clips:
            raise ValueError(f"no clip {scene!r}; there are {sorted(self._clips)}")
        self._wanted = scene

    def pace(self, fps: float) -> None:
        now = time.time()
        self._rate = self.number(now), now, fps

    def recover(self) -> None:
        self._faults.clear()
        self._wanted, self._rate = "street", self._usual

    @property
    def clip(self) -> Clip:
        """What it films now."""
        return self._clips[self.scene]

    def number(self, unix_s: float) -> float:
        """Of the frame that is captured at a time."""
        number, at, fps = self._rate
        return number + (unix_s - at) * fps

    def state(self) -> dict[str, object]:
        faults = {name: self.fault(name) for name in FAULTS if self.fault(name) != FAULTS[name]}
        number = int(self.number(time.time())) % LOOP
        return {"number": number, "scene": self.scene, "playing": len(self.playing), "faults": faults}

    async def film(self) -> None:
        """Send the frame of each moment, until cancelled."""
        number, before = int(self.number(time.time())), (0.0, 0.0)
        while True:
            rate = self._rate
            wait_s = rate[1] + (number + 1 - rate[0]) / rate[2] - time.time()
            await asyncio.sleep(min(max(wait_s, 0), 0.5))
            now = int(self.number(time.time()))
            if now == number:
                continue
            mode = self.fault("stall"), self.fault("freeze")
            whole = now == number + 1 and mode == before and rate == self._rate
            if not whole:  # a frame is left out: the next ones cannot be decoded without it
                for connection in self.playing:
                    connection.needs_key = True
            if mode[1] and not before[1]:
                self._frozen = now // GOP * GOP
            number, before = now, mode
            if number % GOP == 0:
                self.scene = self._wanted
            if not mode[0]:
                self._send(number, rate[1] + (number - rate[0]) / rate[2], frozen=bool(mode[1]))

    def _send(self, number: int, captured_s: float, *, frozen: bool) -> None:
        shown = self._frozen if frozen else number
        units = self.clip.frames[shown % len(self.clip.frames)]
        packets = [self._hurt(payload) for payload in rtp.payloads(units)]
        for connection in list(self.playing):
            connection.send(packets, captured_s, key=shown % GOP == 0)

    def _hurt(self, payload: bytes) -> bytes | None:
        if self._rng.random() < self.fault("drop"):
            return None
        if self._rng.random() < self.fault("corrupt"):
            hurt = bytearray(payload)
            for _ in range(8):
                hurt[self._rng.randrange(min(20, len(hurt) - 1), len(hurt))] ^= self._rng.randrange(1, 256)
            return bytes(hurt)
        return payload
