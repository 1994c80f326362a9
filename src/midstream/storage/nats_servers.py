"""A connection to the servers of a nats:// URL, for programs that wait for each answer."""

import asyncio
import random
import re
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig

from midstream.errors import StoreError
from midstream.nats_url import EXPECTED, NatsUrl
from midstream.storage.store import Unavailable

VERSION = 1  # of subjects, headers and JSON; in the stream's metadata
CONNECT_TIMEOUT = 2.0  # seconds for each server
API_TIMEOUT = 2.0  # seconds for a question to the stream
ADVICE = "see that the servers run, most of the stream's replicas among them, and have room"

_Result = TypeVar("_Result")


def address(url: str) -> NatsUrl:
    """The parts of a nats:// URL. Raises StoreError."""
    try:
        return NatsUrl.parse(url)
    except ValueError as error:
        shown = re.sub("//.*@", "//***@", url)
        raise StoreError(f"{shown}: {error}. {EXPECTED}") from error


class NatsServers:
    """Has one connection at a time, in an event loop in a thread of its own, which answers pings too."""

    def __init__(self, address: NatsUrl) -> None:
        self.address = address
        self._client: Client | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="midstream-nats", daemon=True)
        self._thread.start()

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def connect(self) -> None:
        """Connect to any of the servers unless there is a connection. Raises StoreError or Unavailable."""
        if self._client is None or not self._client.is_connected:
            self.disconnect()
            self._client = self.run(self._connect())

    def disconnect(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            with suppress(NatsError, OSError, TimeoutError):
                asyncio.run_coroutine_threadsafe(client.close(), self._loop).result(CONNECT_TIMEOUT)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do it in the loop's thread. Faults of server and network become Unavailable."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except (NatsError, OSError, TimeoutError) as error:
            reason = (str(error) or "no answer").removeprefix("nats: ")
            raise Unavailable(f"{self.address.name}: {reason}. What to do: {ADVICE}") from error

    def check(self, config: StreamConfig) -> None:
        """StoreError if the stream is not midstream's, or a newer one's."""
        version = (config.metadata or {}).get("midstream")
        if version is None:
            raise StoreError(
                f"{self.address.name}: the stream {config.name} is not midstream's. "
                "Name another one ([logger] database)"
            )
        if int(version) > VERSION:
            raise StoreError(
                f"{self.address.name}: the stream {config.name} has version {version}, and this midstream "
                f"knows those up to {VERSION}. Install the newer midstream, or name another stream"
            )

    def close(self) -> None:
        if self._thread.is_alive():
            self.disconnect()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _connect(self) -> Client:
        """No reconnecting in the background: a failure shall be noticed."""
        options: dict[str, Any] = {
            "allow_reconnect": False,
            "connect_timeout": CONNECT_TIMEOUT,
            "max_reconnect_attempts": 1,  # by default even the first connection is tried for minutes
            "reconnect_time_wait": 0.05,
            "error_cb": _ignore,
        }
        if self.address.password is None:
            options["token"] = self.address.user
        else:
            options |= {"user": self.address.user, "password": self.address.password}
        failures = []
        for server in random.sample(self.address.servers, len(self.address.servers)):
            client = Client()
            try:
                await client.connect(server, **options)
                return client
            except (NatsError, OSError, TimeoutError) as error:
                failures.append(error)
                with suppress(NatsError, OSError):
                    await client.close()  # a server that refuses leaves a socket behind
        if any("authorization" in str(error).lower() for error in failures):
            raise StoreError(f"{self.address.name}: the servers refuse user or password. {EXPECTED}")
        raise failures[-1]


async def _ignore(_: Exception) -> None:
    """What goes wrong shows in the answer that does not come."""
