"""One RTSP client of the server: its requests, and the RTP packets it is sent."""

from __future__ import annotations

import asyncio
import base64
import random
import re
import socket
import struct
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from streams import rtp
from streams.clips import Clip

if TYPE_CHECKING:
    from streams.camera import Camera
    from streams.rtsp_server import Server

QUEUE_BYTES = 256 * 1024
"""A camera drops frames, to the next key frame, for a receiver that has so much unsent."""


class Connection:
    """One RTSP client, from its first request to its end."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.needs_key = True
        self.writer = writer
        self._server = server
        self._reader = reader
        self._camera: Camera | None = None
        self._udp: list[socket.socket] = []
        self._channel = 0
        self._sender = rtp.Sender(random.getrandbits(32), random.getrandbits(16))
        self._base_ticks = random.getrandbits(32)
        self._start_s: float | None = None
        self._report_s = 0.0

    async def serve(self) -> None:
        """Answer until the client is gone."""
        try:
            while True:
                first = await self._reader.readexactly(1)
                if first == b"$":  # the client's reports
                    _, length = struct.unpack(">BH", await self._reader.readexactly(3))
                    await self._reader.readexactly(length)
                    continue
                text = (first + await self._reader.readuntil(b"\r\n\r\n")).decode()
                self.writer.write(self._answer(text).encode())
                if text.startswith("PLAY") and self._camera:
                    self._camera.playing.add(self)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.end("fin")

    def end(self, how: str) -> None:
        if self._camera:
            self._camera.playing.discard(self)
        for one in self._udp:
            one.close()
        plain = self.writer.get_extra_info("socket")
        if how == "rst" and plain.fileno() >= 0:  # nothing may linger: the kernel then sends RST
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()

    def send(self, packets: list[bytes | None], captured_s: float, *, key: bool) -> None:
        """One frame; None are packets that are lost on the way."""
        if self.writer.is_closing():
            return
        full = self.writer.transport.get_write_buffer_size() > QUEUE_BYTES
        self.needs_key = full or (self.needs_key and not key)
        if self.needs_key:
            return
        assert self._camera
        self._start_s = captured_s if self._start_s is None else self._start_s
        since_s = 0.0 if self._camera.fault("standing") else captured_s - self._start_s
        ticks = self._base_ticks + round((since_s + self._camera.fault("jump")) * rtp.CLOCK)
        every_s = self._camera.fault("reports")
        if every_s and captured_s - self._report_s >= every_s:
            self._report_s = captured_s
            self._put(1, self._sender.report(captured_s + self._camera.fault("skew"), ticks))
        for place, payload in enumerate(packets):
            packet = self._sender.packet(payload or b"", ticks, last=place == len(packets) - 1)
            if payload is not None:
                self._put(0, packet)

    def _put(self, channel: int, data: bytes) -> None:
        if not self._udp:
            self.writer.write(struct.pack(">BBH", 0x24, self._channel + channel, len(data)) + data)
            return
        try:
            self._udp[channel].send(data)
        except OSError:  # the receiver is gone, or its buffer is full: UDP loses packets
            return

    def _answer(self, text: str) -> str:
        lines = text.split("\r\n")
        method, url, _ = lines[0].split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:]) if v}
        self._server.requests[method] = self._server.requests.get(method, 0) + 1
        code, more, body = self._respond(method, url, headers)
        reason = {200: "OK", 401: "Unauthorized", 404: "Not Found"}.get(code, "Refused")
        head = [f"RTSP/1.0 {code} {reason}", f"CSeq: {headers.get('cseq', '0')}", *more]
        if body:
            head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        return "\r\n".join([*head, "", body])

    def _respond(self, method: str, url: str, headers: dict[str, str]) -> tuple[int, list[str], str]:
        if method == "OPTIONS":
            return 200, ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN"], ""
        if self._server.secret and headers.get("authorization") != f"Basic {self._server.secret}":
            return 401, ['WWW-Authenticate: Basic realm="camera"'], ""
        camera = self._server.cameras.get(urlsplit(url).path.split("/")[1])
        if camera is None:
            return 404, [], ""
        if method == "DESCRIBE":
            code = int(camera.fault("status"))
            challenge = ['WWW-Authenticate: Basic realm="camera"'] if code == 401 else []
            return (
                (code, challenge, "") if code != 200 else (200, [f"Content-Base: {url}/"], sdp(camera.clip))
            )
        if method == "SETUP":
            self._camera = camera
            return 200, [self._transport(headers["transport"]), "Session: 1;timeout=60"], ""
        return 200, ["Session: 1"], ""

    def _transport(self, wanted: str) -> str:
        if found := re.search(r"client_port=(\d+)-(\d+)", wanted):
            host = self.writer.get_extra_info("peername")[0]
            for port in found.groups():
                plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                plain.bind((host, 0))
                plain.connect((host, int(port)))
                plain.setblocking(False)
                self._udp.append(plain)
            ports = "-".join(str(plain.getsockname()[1]) for plain in self._udp)
            return f"Transport: RTP/AVP;unicast;client_port={found[1]}-{found[2]};server_port={ports}"
        found = re.search(r"interleaved=(\d+)", wanted)
        self._channel = int(found[1]) if found else 0
        return f"Transport: RTP/AVP/TCP;unicast;interleaved={self._channel}-{self._channel + 1}"


def sdp(clip: Clip) -> str:
    """What DESCRIBE tells about a camera."""
    sps, pps = clip.parameter_sets
    sets = ",".join(base64.b64encode(unit).decode() for unit in (sps, pps))
    lines = [
        "v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0", "a=range:npt=now-",
        f"m=video 0 RTP/AVP {rtp.PAYLOAD_TYPE}", f"a=rtpmap:{rtp.PAYLOAD_TYPE} H264/{rtp.CLOCK}",
        f"a=fmtp:{rtp.PAYLOAD_TYPE} packetization-mode=1;profile-level-id={sps[1:4].hex()};"
        f"sprop-parameter-sets={sets}",
        "a=control:track1",
    ]  # fmt: skip
    return "\r\n".join(lines) + "\r\n"
