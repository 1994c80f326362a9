"""The logger: listens, has everything stored until it is stopped, and sums up."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from midstream.closing import Closing
from midstream.config import Config
from midstream.config import load as load_config
from midstream.descriptors import raise_limit
from midstream.errors import ConfigError, MidstreamError, NetworkError
from midstream.logger.companion import Companion
from midstream.logger.door import Door
from midstream.logger.exchange_process import ExchangeProcess
from midstream.logger.holder import Child, Holder
from midstream.logger.spool import Backfill, Sensors, path_of
from midstream.logger.summary import LoggerSummary
from midstream.nats_url import is_nats
from midstream.network import load as load_topology
from midstream.storage.formats import described, formats


class Logger(Closing):
    """Receives on the logger's address of const.toml, each stream at its port, and stores in `[logger]
    database`.

    Or, with `spool`, on the hardworker's address, and stores in `[hardworker] spool` what only sensors send.
    doors: descriptors of listening sockets that another process has opened for it, each known by its port.
    `tell` hears why nothing can be stored, and "" when it can be.
    `config` is config.toml's path or its content. Entering the context starts a worker process that opens
    the database. When it is open the logger listens, and sensors can connect. A database that cannot be
    opened just now is waited for, also in `serve`. Both raise StoreError or ConfigError if only a person can
    mend it, and NetworkError if the logger cannot listen. The worker may be killed at any moment: another one
    takes its place, no connection notices, and every message is stored once.
    """

    def __init__(
        self,
        config: str | Path | Config,
        *,
        spool: bool = False,
        doors: Sequence[int] = (),
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._config = config if isinstance(config, Config) else load_config(config)
        self._topology = load_topology(self._config.const_path)
        self._streams = formats(self._config, self._topology, as_bytes=spool)
        self._holder: Holder | None = None
        self._spool = path_of(self._config) if spool else None
        self._descriptors = doors
        self._tell = tell
        self._exchange: ExchangeProcess | None = None
        self._pruning: Companion | None = None
        self._backfill: Backfill | None = None
        self._summary = LoggerSummary()

    def __enter__(self) -> Self:
        prunes = not self._spool and _prunes(self._config)
        raise_limit()
        settings = {
            "config": self._config.model_dump_json(exclude_unset=True),
            "path": str(self._config.path),
            "streams": described(self._streams),
            "spool": str(self._spool) if self._spool else "",
        }
        holder = Holder(self._doors(), settings, _start_worker, self._summary, self._tell)
        try:
            if not self._spool and _exchanges(self._config):
                self._exchange = ExchangeProcess(self._config, str(self._topology.logger.ip), settings)
            holder.start()
            if prunes:
                self._pruning = Companion("midstream.logger.pruning", settings)
        except (MidstreamError, KeyboardInterrupt):
            holder.close()
            self.close()
            raise
        self._holder = holder
        return self

    def serve(
        self,
        stop: Callable[[], bool] | None = None,
        timeout: float = 0.0,
        listening: Callable[[], object] = lambda: None,
        hand_back: Callable[[], bool] = lambda: False,
    ) -> LoggerSummary:
        """Receive and store until `stop()` or for `timeout` seconds (0: without end). Once per context.

        Calls `listening` when sensors can connect. Everything received is committed before it returns, also
        on KeyboardInterrupt; connections still open then are closed, and recorded so. A database that takes
        nothing makes the sensors wait, however long that lasts; if it takes nothing at the end either,
        StoreError tells how much is lost.

        For a spool, once `hand_back()`: nobody is let in any more, each sensor sees the end of our side of
        its stream, and the spool is sent to the logger. It returns when sensors and spool are done.
        """
        if self._holder is None:
            raise NetworkError("the logger does not listen: call serve once, in a `with` block")
        holder, self._holder = self._holder, None
        started = time.monotonic()
        try:
            deadline = started + (timeout or float("inf"))
            holder.run(
                lambda: self._asked_to_stop(stop), deadline, listening, lambda: self._hands_back(hand_back)
            )
            if self._backfill is not None:
                self._backfill.run(lambda: time.monotonic() >= deadline or self._asked_to_stop(stop))
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
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        if self._pruning is not None:
            self._pruning.close()
            self._pruning = None
        if self._backfill is not None:
            self._backfill.close()
            self._backfill = None

    @property
    def summary(self) -> LoggerSummary:
        """What was received and stored so far."""
        return replace(self._summary)

    def _doors(self) -> dict[str, Door]:
        """One per stream. Raises NetworkError."""
        topology, const = self._topology, self._config.const_path
        whose = f"the {'hardworker' if self._spool else 'logger'} of {const}"
        host = topology.hardworker if self._spool else topology.logger
        admits = Sensors(const).has if self._spool else lambda _: True
        given = {_port(descriptor): descriptor for descriptor in self._descriptors}
        if foreign := given.keys() - topology.ports.keys():
            raise NetworkError(
                f"a listening socket at port {min(foreign)} was handed over, where {const} has no stream. "
                "What to do: start it again, as const.toml has changed"
            )
        doors: dict[str, Door] = {}
        try:
            for port, stream in topology.ports.items():
                doors[stream] = Door(
                    (str(host.ip), port),
                    topology.tos,
                    whose,
                    admits,
                    given.get(port),
                    stream=stream,
                    doors=len(topology.ports),
                )
        except NetworkError:
            for door in doors.values():
                door.close()
            raise
        return doors

    def _hands_back(self, hand_back: Callable[[], bool]) -> bool:
        """Has it to? The spool is sent from then on: a sensor may take its time to end."""
        if self._spool and self._backfill is None and hand_back():
            self._backfill = Backfill(self._config)
        return self._backfill is not None

    def _asked_to_stop(self, stop: Callable[[], bool] | None) -> bool:
        if self._exchange is not None:
            self._exchange.keep()
        if self._pruning is not None:
            self._pruning.keep()
        if self._backfill is not None:
            self._backfill.keep()
        return stop is not None and stop()


def _port(descriptor: int) -> int:
    """Of a socket of another owner's."""
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _exchanges(config: Config) -> bool:
    """Does the logger take a hardworker's word? Where nobody asked for it, only if there is a key."""
    asked = "replay_port" in config.logger.model_fields_set
    return bool(config.logger.replay_port) and (asked or config.key_path.exists())


def _prunes(config: Config) -> bool:
    """Does the logger remove what is too old or too much? ConfigError if it should, and cannot."""
    logger = config.logger
    wanted = bool(logger.keep_age or logger.keep_size)
    if wanted and is_nats(logger.database):
        name = "keep_age" if logger.keep_age else "keep_size"
        raise ConfigError(
            f"{config.path}: logger.{name}: only SQL databases are pruned; set it to 0 (what a JetStream "
            "keeps is a setting of its own: `nats stream edit`)"
        )
    return wanted


def _start_worker(channel: socket.socket) -> Child:
    command = [sys.executable, "-P", "-m", "midstream.logger", str(channel.fileno())]
    return subprocess.Popen(
        command, pass_fds=[channel.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
