"""uvloop with a Protocol, the fastest way that asyncio has: callbacks, and no coroutine.

python -m midstream_bench.receivers.protocol ADDRESS LOGGER TOS PORT FRAMING SIZE [PORT FRAMING SIZE …]
"""

import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial

import uvloop

from midstream.load import Incoming
from midstream_bench.receivers.application import Application, Stream, places


class Outer(asyncio.Protocol):
    """The connection to the logger, which says nothing."""


class Inner(asyncio.Protocol):
    """A sensor's connection; `outer` continues it to the logger, if there is one."""

    def __init__(self, application: Application, logger: str, tos: int, kind: Incoming) -> None:
        self._application = application
        self._target = (logger, kind.port, tos)
        self._stream = Stream(application, kind)
        self._outer: asyncio.WriteTransport | None = None
        self._early: list[bytes] | None = [] if logger else None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        del transport  # the sensor is told nothing
        if self._early is not None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        self._application.woken()
        self._stream.feed(data)
        if self._outer is not None:
            self._outer.write(data)
        elif self._early is not None:
            self._early.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self._outer is not None:
            self._outer.close()

    async def _connect(self) -> None:
        logger, port, tos = self._target
        outer, _ = await asyncio.get_running_loop().create_connection(Outer, logger, port)
        outer.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        outer.writelines(self._early or [])
        self._outer, self._early = outer, None


async def serve(*words: str) -> Application:
    """Serve until SIGTERM."""
    address, logger, tos, incoming = places(words)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    application = Application(lambda: loop.call_soon_threadsafe(stopped.set))
    async with AsyncExitStack() as servers:
        for kind in incoming:
            made = partial(Inner, application, logger, tos, kind)
            server = await loop.create_server(made, address, kind.port, backlog=1024)
            await servers.enter_async_context(server)
        application.ready()
        await stopped.wait()
    return application


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:])).finish()
