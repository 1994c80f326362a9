"""NATS (nats-server, nats-py): the server on the logger; hardworker and logger both subscribe."""

import asyncio
import subprocess
from collections.abc import Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from midstream_bench.middlewares import programs
from midstream_bench.middlewares.middleware import PATIENCE, TICK, Ends, Take

_SUBJECT = "midstream"


class Core:
    """Core NATS: at most once, but over TCP and with no limit at which the client would drop."""

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        asyncio.run(_subscribe(ends, take, ready, stopped))

    def log(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        program = programs.find("nats-server")
        assert program is not None
        address = ["--addr", ends.logger, "--port", str(ends.port)]
        with subprocess.Popen(
            [program, *address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as broker:
            try:
                asyncio.run(_subscribe(ends, take, ready, stopped))
            finally:
                broker.terminate()

    def connect(self, ends: Ends) -> "_Sender":
        return _Sender(ends)


class _Sender:
    def __init__(self, ends: Ends) -> None:
        self._loop = asyncio.new_event_loop()
        self._clients = [self._loop.run_until_complete(_connect(ends)) for _ in range(ends.sensors)]

    def send(self, sensor: int, message: bytes) -> None:
        client = self._clients[sensor]
        self._loop.run_until_complete(_publish(client, f"{_SUBJECT}.{sensor}", message))

    def close(self) -> None:
        for client in self._clients:
            self._loop.run_until_complete(client.drain())
        self._loop.close()


async def _publish(client: Client, subject: str, message: bytes) -> None:
    await client.publish(subject, message)
    await asyncio.sleep(0)  # lets the client's own task write


async def _connect(ends: Ends) -> Client:
    end = f"nats://{ends.logger}:{ends.port}"
    return await nats.connect(
        end,
        connect_timeout=1,
        reconnect_time_wait=TICK,
        max_reconnect_attempts=int(PATIENCE / TICK),
        pending_size=1 << 28,
        error_cb=_ignore,  # until the server is up
    )


async def _ignore(_error: Exception) -> None:
    return


async def _subscribe(ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
    async def callback(message: Msg) -> None:
        take(message.data)

    client = await _connect(ends)
    await client.subscribe(f"{_SUBJECT}.*", cb=callback, pending_msgs_limit=0, pending_bytes_limit=0)
    await client.flush()
    ready()
    while not stopped():  # noqa: ASYNC110  what a signal sets is no event of the loop
        await asyncio.sleep(TICK)
    await client.close()
