"""The logger: listens, receives until it is stopped, and sums up."""

import asyncio
import errno
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from midstream.config import Config
from midstream.config import load as load_config
from midstream.errors import NetworkError
from midstream.framing import Decoder, decoder
from midstream.logger.receiver import LoggerSummary, Receiver
from midstream.logger.store import Store
from midstream.network import load as load_topology

BACKLOG = 4096  # connections that wait to be accepted


class Logger:
    """Receives on the logger's address of const.toml and stores in `[logger] database`.

    `config` is config.toml's path or its content. Entering the context opens the database (StoreError) and
    listens (NetworkError): from then on sensors can connect. `serve` does the work.
    """

    def __init__(self, config: str | Path | Config) -> None:
        self._config = config if isinstance(config, Config) else load_config(config)
        self._topology = load_topology(self._config.const_path)
        self._size = self._config.message_size(self._topology.size)
        self._store: Store | None = None
        self._socket: socket.socket | None = None
        self._summary = LoggerSummary()

    def __enter__(self) -> Self:
        self._store = Store(self._config.database_url, batch_size=self._config.logger.batch_size)
        try:
            self._socket = self._listen()
        except NetworkError:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def serve(self, stop: Callable[[], bool] | None = None, timeout: float = 0.0) -> LoggerSummary:
        """Receive and store until `stop()` or for `timeout` seconds (0: without end). Once per context.

        Everything received is committed before it returns, also on KeyboardInterrupt; connections still open
        then are closed, and recorded so. StoreError if a commit fails; it tells how many messages are lost.
        """
        if self._store is None or self._socket is None:
            raise NetworkError("the logger does not listen: call serve once, in a `with` block")
        listener, self._socket = self._socket, None
        _allow_many_sockets()
        started = time.monotonic()
        with listener:
            try:
                asyncio.run(self._receive(listener, self._store, stop, timeout or float("inf")))
            finally:
                self._summary.seconds = time.monotonic() - started
        return self.summary

    def close(self) -> None:
        """Stop listening and close the database. Closing twice is allowed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._store is not None:
            self._store.close()
            self._store = None

    @property
    def summary(self) -> LoggerSummary:
        """What was received and stored so far."""
        return replace(self._summary)

    def _listen(self) -> socket.socket:
        address = (str(self._topology.logger.ip), self._topology.port)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit both. The return path knows replies (resets too) by the mark;
            # without keepalive a sensor that lost its power would leave its connection open for ever.
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, self._topology.tos)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                advice = f"end the program that uses it (`ss -ltnp sport = :{address[1]}` names it)"
            else:
                advice = (
                    f"this must be the logger of {self._config.const_path}, with that address on an interface"
                )
            raise NetworkError(
                f"cannot listen on {address[0]} port {address[1]}: {error.strerror}. What to do: {advice}"
            ) from error
        return listener

    async def _receive(
        self, listener: socket.socket, store: Store, stop: Callable[[], bool] | None, seconds: float
    ) -> None:
        settings = self._config.logger
        receiver = Receiver(
            store,
            self._new_decoder,
            self._summary,
            batch_interval=settings.batch_interval,
            batch_size=settings.batch_size,
        )
        server = await asyncio.get_running_loop().create_server(
            receiver.new_peer, sock=listener, backlog=BACKLOG
        )
        await receiver.run(server, stop, seconds)

    def _new_decoder(self) -> Decoder:
        data = self._config.data
        return decoder(data.framing, size=self._size, max_size=data.max_size)


def _allow_many_sockets() -> None:
    """The soft limit on open files is often 1024, fewer than there may be sensors: raise it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
