"""Cameras over RTSP 1.0 (TCP-interleaved and UDP), with faults on demand. Standard library only.

    python -m streams.rtsp_server --clips FOLDER --cameras 2 --port 18554 --control-port 18555

serves rtsp://127.0.0.1:18554/cam1 and cam2 from FOLDER/cam1-street.clip and so on. All cameras film by Unix
time: frame number n is captured at n/fps seconds, so that its strip tells when, also after a restart.

Orders, by GET on the control port; `cam` is 1, 2... or all; with `s` a fault ends after so many seconds:
    /stall?cam=1                connections stay, nothing is sent
    /freeze?cam=1               the same key frame again and again, time stamps run on
    /drop?cam=1&value=0.05      loses this share of RTP packets
    /corrupt?cam=1&value=0.02   flips bytes in this share of RTP payloads
    /jump?cam=1&value=-5        time stamps are wrong by so many seconds
    /standing?cam=1             time stamps do not rise
    /skew?cam=1&value=90        the camera's clock in its reports is wrong by so many seconds
    /reports?cam=1&value=0      seconds between its reports, 0 is none
    /status?cam=1&value=503     answers DESCRIBE with this code
    /scene?cam=1&name=other     another clip (other size, black) from the next key frame on
    /fps?cam=1&fps=5            another rate
    /kick?cam=1&how=rst         ends connections, by rst or fin
    /down?s=5                   closes the port and all connections
    /ok?cam=1                   ends all faults of cameras
    /state                      JSON: connections, requests, and what each camera does
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from streams.camera import FAULTS, Camera
from streams.clips import FPS, load_clip
from streams.connection import Connection


class Server:
    """All cameras of one process, and the control port."""

    def __init__(self, cameras: dict[str, Camera], port: int, secret: str) -> None:
        self.cameras = cameras
        self.secret = secret
        self.requests: dict[str, int] = {}
        self._port = port
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, control_port: int) -> None:
        await self._listen()
        control = await asyncio.start_server(self._control, "127.0.0.1", control_port)
        print("ready", flush=True)
        async with control:
            await asyncio.gather(*(camera.film() for camera in self.cameras.values()))

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self._port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        # What is sent must not hide in the kernel: loopback buffers hold megabytes.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        self._accepted += 1
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def _down(self, seconds: float) -> None:
        assert self._listener
        self._listener.close()
        for connection in list(self._connections):
            connection.end("fin")
        if seconds:
            await asyncio.sleep(seconds)
            await self._listen()

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = urlsplit((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
        try:
            self._obey(target.path.strip("/"), dict(parse_qsl(target.query)))
            code, answer = "200 OK", self._state()
        except (KeyError, ValueError) as error:
            code, answer = "400 Bad Request", {"error": str(error)}
        body = json.dumps(answer)
        writer.write(f"HTTP/1.0 {code}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    def _obey(self, order: str, words: dict[str, str]) -> None:
        which, seconds = words.get("cam", "all"), float(words.get("s", "0"))
        cameras = list(self.cameras.values()) if which == "all" else [self.cameras[f"cam{which}"]]
        if order == "down":
            task = asyncio.get_running_loop().create_task(self._down(seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        for camera in cameras:
            if order in FAULTS:
                camera.set(order, float(words.get("value", "1")), seconds)
            elif order == "scene":
                camera.show(words["name"])
            elif order == "fps":
                camera.pace(float(words["fps"]))
            elif order == "kick":
                for connection in list(camera.playing):
                    connection.end(words["how"])
            elif order == "ok":
                camera.recover()
            elif order != "state":
                raise ValueError(f"no such order {order!r}; the module's text lists them")

    def _state(self) -> dict[str, object]:
        cameras = {name: camera.state() for name, camera in self.cameras.items()}
        return {"accepted": self._accepted, "requests": self.requests, "cameras": cameras}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--fps", type=float, default=FPS)
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    options = parser.parse_args()
    cameras = {}
    for index in range(options.cameras):
        name = f"cam{index + 1}"
        paths = sorted(options.clips.glob(f"{name}-*.clip"))
        clips = {path.stem.partition("-")[2]: load_clip(path) for path in paths}
        cameras[name] = Camera(name, clips, options.fps)
    words = f"{options.user}:{options.password}".encode()
    secret = base64.b64encode(words).decode() if options.user else ""
    asyncio.run(Server(cameras, options.port, secret).run(options.control_port))


if __name__ == "__main__":
    main()
