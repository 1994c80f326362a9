"""asyncio's streams, as its documentation recommends them: a coroutine for each connection.

python -m midstream_bench.receivers.streams ADDRESS LOGGER TOS PORT FRAMING SIZE [PORT FRAMING SIZE …]
"""

import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial

from midstream.framing import NEWLINE, PREFIX
from midstream.load import Incoming
from midstream_bench.receivers.application import Application, Stream, places

_LIMIT = 1 << 16  # bytes that a stream buffers: asyncio's own


async def serve(*words: str) -> Application:
    """Serve until SIGTERM."""
    address, logger, tos, incoming = places(words)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    application = Application(lambda: loop.call_soon_threadsafe(stopped.set))

    async def connected(kind: Incoming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outer = None
        if logger:
            _, outer = await asyncio.open_connection(logger, kind.port)
            outer.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        stream = Stream(application, kind)
        try:
            while True:
                before, message, behind = await _next_message(reader, kind)
                application.woken()
                application.bytes += len(before) + len(message) + len(behind)
                stream.deliver(message)
                if outer:
                    outer.write(before + message + behind)
                    await outer.drain()
        except asyncio.IncompleteReadError:
            writer.close()
            if outer:
                outer.close()

    async with AsyncExitStack() as servers:
        for kind in incoming:
            # as long as the longest line, or message that is read at once
            limit = max(_LIMIT, 2 * kind.size)
            server = asyncio.start_server(
                partial(connected, kind), address, kind.port, backlog=1024, limit=limit
            )
            await servers.enter_async_context(await server)
        application.ready()
        await stopped.wait()
    return application


async def _next_message(reader: asyncio.StreamReader, kind: Incoming) -> tuple[bytes, bytes, bytes]:
    """The message, and what of its frame is before and behind it."""
    if kind.framing == "fixed":
        return b"", await reader.readexactly(kind.size), b""
    if kind.framing == "length":
        prefix = await reader.readexactly(PREFIX)
        return prefix, await reader.readexactly(int.from_bytes(prefix, "big")), b""
    line = await reader.readuntil(NEWLINE)
    return b"", line[:-1], NEWLINE


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:])).finish()
