"""The logger: listens, has everything stored until it is stopped, and sums up."""

import errno
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from midstream.config import Config
from midstream.config import load as load_config
from midstream.errors import ConfigError, MidstreamError, NetworkError
from midstream.logger.companion import Companion
from midstream.logger.holder import Child, Holder
from midstream.logger.replay_process import ReplayProcess
from midstream.logger.summary import LoggerSummary
from midstream.network import load as load_topology

BACKLOG = 4096  # connections that wait to be accepted
RECEIVE_BUFFER = 1 << 20  # bytes a connection; the kernel doubles it for what it needs besides
DELAYED_ACK = 8000  # microseconds for which a single segment may wait; a kernel of 250 Hz admits no less

_TCP_DELACK_MAX_US = 46  # linux/tcp.h, since 6.15
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Logger:
    """Receives on the logger's address of const.toml and stores in `[logger] database`.

    `config` is config.toml's path or its content. Entering the context listens (NetworkError), and starts a
    worker process that opens the database (StoreError): from then on sensors can connect. `serve` does the
    work. The worker may be killed at any moment: another one takes its place, no connection notices, and
    every message is stored once.
    """

    def __init__(self, config: str | Path | Config) -> None:
        self._config = config if isinstance(config, Config) else load_config(config)
        self._topology = load_topology(self._config.const_path)
        self._size = self._config.message_size(self._topology.size)
        self._holder: Holder | None = None
        self._replay: ReplayProcess | None = None
        self._pruning: Companion | None = None
        self._summary = LoggerSummary()

    def __enter__(self) -> Self:
        prunes = _prunes(self._config)
        _allow_many_sockets()
        settings = {
            "config": self._config.model_dump_json(),
            "path": str(self._config.path),
            "size": self._size,
        }
        holder = Holder(self._listen(), settings, _start_worker, self._summary)
        try:
            if self._config.logger.replay_port:
                self._replay = ReplayProcess(self._config, str(self._topology.logger.ip), settings)
            holder.start()
            if prunes:
                self._pruning = Companion("midstream.logger.pruning", settings)
        except (MidstreamError, KeyboardInterrupt):
            holder.close()
            self.close()
            raise
        self._holder = holder
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def serve(self, stop: Callable[[], bool] | None = None, timeout: float = 0.0) -> LoggerSummary:
        """Receive and store until `stop()` or for `timeout` seconds (0: without end). Once per context.

        Everything received is committed before it returns, also on KeyboardInterrupt; connections still open
        then are closed, and recorded so. A database that takes nothing makes the sensors wait, however long
        that lasts; if it takes nothing at the end either, StoreError tells how much is lost.
        """
        if self._holder is None:
            raise NetworkError("the logger does not listen: call serve once, in a `with` block")
        holder, self._holder = self._holder, None
        started = time.monotonic()
        try:
            holder.run(lambda: self._asked_to_stop(stop), started + (timeout or float("inf")))
        finally:
            holder.close()
            self.close()
            self._summary.seconds = time.monotonic() - started
        return self.summary

    def close(self) -> None:
        """Stop listening and end the worker. Closing twice is allowed."""
        if self._holder is not None:
            self._holder.close()
            self._holder = None
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        if self._pruning is not None:
            self._pruning.close()
            self._pruning = None

    @property
    def summary(self) -> LoggerSummary:
        """What was received and stored so far."""
        return replace(self._summary)

    def _asked_to_stop(self, stop: Callable[[], bool] | None) -> bool:
        if self._replay is not None:
            self._replay.keep()
        if self._pruning is not None:
            self._pruning.keep()
        return stop is not None and stop()

    def _listen(self) -> socket.socket:
        address = (str(self._topology.logger.ip), self._topology.port)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit all of them. The return path knows replies (resets too) by the
            # mark; without keepalive a sensor that lost its power would leave its connection open for ever.
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, self._topology.tos)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent bytes are bytes
            _set_receive_buffer(listener)
            with suppress(OSError):  # an older kernel, or one with a coarser clock
                listener.setsockopt(socket.IPPROTO_TCP, _TCP_DELACK_MAX_US, DELAYED_ACK)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
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


def _prunes(config: Config) -> bool:
    """Does the logger remove what is too old or too much? ConfigError if it should, and cannot."""
    logger = config.logger
    wanted = bool(logger.keep_age or logger.keep_size)
    if wanted and logger.database.startswith("nats://"):
        name = "keep_age" if logger.keep_age else "keep_size"
        raise ConfigError(
            f"{config.path}: logger.{name}: only SQL databases are pruned; set it to 0 (what a JetStream "
            "keeps is a setting of its own: `nats stream edit`)"
        )
    return wanted


def _set_receive_buffer(listener: socket.socket) -> None:
    """A fixed size: the kernel's own tuning does not see that a worker takes what it only peeks at."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER
        )  # as far as net.core.rmem_max


def _start_worker(channel: socket.socket) -> Child:
    command = [sys.executable, "-P", "-m", "midstream.logger", str(channel.fileno())]
    return subprocess.Popen(
        command, pass_fds=[channel.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def _allow_many_sockets() -> None:
    """The soft limit on open files is often 1024, fewer than there may be sensors: raise it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
