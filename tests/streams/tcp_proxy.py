"""A network between a client and a server on this machine, with faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from streams.lab import free_port

End = Literal["client", "server"]

_CHUNK = 16 * 1024


@dataclass
class Link:
    """What is wrong with the network. Every direction is named by the end that sends.

    Attributes:
        hole: directions in which nothing arrives, and both ends think that the connection is alive. What was
            sent comes when the hole closes, as TCP sends it again.
        rate: bytes a second that it carries; None is unlimited.
        delay_s: each piece is late by a random time of this mean (exponential), in order: delay and bursts.
    """

    hole: frozenset[End] = frozenset()
    rate: float | None = None
    delay_s: float = 0.0


class TcpProxy:
    """Forwards a port to another one, in a thread. `link` may be changed at any time.

    Args:
        target: port of the server.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.link = Link()
        self.connections = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.open()

    def open(self) -> None:
        """Listen (again)."""
        self._do(self._listen())

    def shut(self) -> None:
        """Listen no more: connecting is refused. Connections that are there stay."""
        self._do(self._unlisten())

    def cut(self, how: Literal["rst", "fin"]) -> None:
        """End all connections, on both sides."""
        self._do(self._cut(how))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self) -> None:
        # Small buffers: a slow link must be felt at its other end, and loopback buffers hold megabytes.
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _CHUNK)
        plain.bind(("127.0.0.1", self.port))
        self._listener = await asyncio.start_server(self._connected, sock=plain, limit=2 * _CHUNK)

    async def _unlisten(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None

    async def _cut(self, how: str) -> None:
        for writer in list(self._writers):
            plain = writer.get_extra_info("socket")
            if how == "rst" and plain.fileno() >= 0:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()

    async def _end(self) -> None:
        await self._cut("rst")
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _CHUNK)
        plain.setblocking(False)
        try:
            await self._loop.sock_connect(plain, ("127.0.0.1", self._target))
        except OSError:
            plain.close()
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=plain, limit=2 * _CHUNK)
        self._writers |= {writer, far_writer}
        ways = [self._carry("client", reader, far_writer), self._carry("server", far_reader, writer)]
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends
            await asyncio.gather(*ways, return_exceptions=True)
        self._writers -= {writer, far_writer}

    async def _carry(self, end: End, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK if self.link.rate is None else 1400):
                if self.link.delay_s:
                    await asyncio.sleep(random.expovariate(1 / self.link.delay_s))
                if self.link.rate:
                    await asyncio.sleep(len(data) / self.link.rate)
                await self._pass_hole(end)
                writer.write(data)
                await writer.drain()
            await self._pass_hole(end)
        finally:
            writer.close()

    async def _pass_hole(self, end: End) -> None:
        while end in self.link.hole:
            await asyncio.sleep(0.02)
