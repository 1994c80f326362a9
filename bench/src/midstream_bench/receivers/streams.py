"""asyncio's streams, as its documentation recommends them: a coroutine for each connection.

python -m midstream_bench.receivers.streams ADDRESS PORT SIZE [LOGGER TOS]
"""

import asyncio
import socket
import sys

from midstream_bench.receivers.application import Application, Stream


async def serve(address: str, port: str, size: str, logger: str = "", tos: str = "0") -> Application:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    application = Application(int(size), lambda: loop.call_soon_threadsafe(stopped.set))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outer = None
        if logger:
            _, outer = await asyncio.open_connection(logger, int(port))
            outer.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_TOS, int(tos))
        stream = Stream(application)
        try:
            while True:
                message = await reader.readexactly(application.size)
                application.woken()
                application.bytes += len(message)
                stream.deliver(message)
                if outer:
                    outer.write(message)
                    await outer.drain()
        except asyncio.IncompleteReadError:
            writer.close()
            if outer:
                outer.close()

    async with await asyncio.start_server(connected, address, int(port), backlog=1024):
        application.ready()
        await stopped.wait()
    return application


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:])).finish()
