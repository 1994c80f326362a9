"""uvloop with a Protocol, the fastest way that asyncio has: callbacks, and no coroutine.

python -m midstream_bench.receivers.protocol ADDRESS PORT SIZE [LOGGER TOS]
"""

import asyncio
import socket
import sys

import uvloop

from midstream_bench.receivers.application import Application, Stream


class Outer(asyncio.Protocol):
    """The connection to the logger, which says nothing."""


class Inner(asyncio.Protocol):
    """A sensor's connection; `outer` continues it to the logger, if there is one."""

    def __init__(self, application: Application, logger: str, port: int, tos: int) -> None:
        self._application = application
        self._target = (logger, port, tos)
        self._stream = Stream(application)
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


async def serve(address: str, port: str, size: str, logger: str = "", tos: str = "0") -> Application:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    application = Application(int(size), lambda: loop.call_soon_threadsafe(stopped.set))
    server = await loop.create_server(
        lambda: Inner(application, logger, int(port), int(tos)), address, int(port), backlog=1024
    )
    async with server:
        application.ready()
        await stopped.wait()
    return application


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:])).finish()
