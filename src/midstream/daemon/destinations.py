"""What a hardworker's daemon does about its loggers. On other hosts it has nothing to do.

It asks them, sends the data where one takes it, and tells them what is held.
"""

import asyncio
import time
from collections.abc import Callable

from midstream.config import Config
from midstream.daemon.announcement import Announcement
from midstream.daemon.concurrency import WorkerThread
from midstream.daemon.failover import Limits
from midstream.daemon.heartbeat import INTERVAL
from midstream.daemon.host import ThisHost
from midstream.daemon.log import Seldom, log
from midstream.daemon.plan import addresses, order
from midstream.daemon.retention import Retention
from midstream.daemon.spool import Spool
from midstream.daemon.talking import Talker
from midstream.daemon.teller import Teller
from midstream.daemon.way import Way
from midstream.errors import MidstreamError
from midstream.network import Topology

_ASK = 0.5  # seconds for which the loggers are asked whether they are there, before a program is put back
_SELDOM = 10.0  # seconds between two lines of what went wrong


class Destinations:
    """heard: the loggers that were heard, which tells who is preferred. retention, teller: None where nothing
    is retained, or nobody is told. now: this daemon's own time (awake.py)."""

    def __init__(
        self, config: Config, host: ThisHost, talker: Talker, worker: WorkerThread, now: Callable[[], float]
    ) -> None:
        self._port, self._host, self._talker, self._worker = config.daemon.port, host, talker, worker
        self._is_hardworker = host.identity.role == "hardworker"
        self._troubles = Seldom(_SELDOM, time.monotonic)
        self._is_taken_up = False
        self.heard: tuple[Announcement, ...] = ()
        spool = Spool(config, config.spool_path, now) if config.spool_path else None
        # What is held can be told, and what is retained be sent, where loggers have a line for it.
        tells = self._is_hardworker and config.hardworker.receiver == "ebpf"
        tells = tells and bool(config.logger.replay_port and host.identity.key)
        retains = tells and spool is not None and config.hardworker.retain
        self.retention = (
            Retention(host, config.logger.batch_interval, ask=self._ask, streams=host.ports)
            if retains
            else None
        )
        limits = Limits(config.daemon.silence, config.daemon.stall)
        self.way = Way(host, spool, limits, now, worker, self.retention)
        self.teller = (
            Teller(
                config,
                host.folder,
                lambda: addresses(host.in_force),
                seen=self.retention.note_ends if self.retention else lambda *_: None,
                saving=lambda: bool(spool and spool.unsaved),
            )
            if tells
            else None
        )

    def _ask(self) -> None:
        if self.teller:
            self.teller.ask()

    def watch(self, topology: Topology) -> None:
        """Ask these loggers from now on."""
        if self._is_hardworker and (heartbeat := self._talker.heartbeat):
            ports = {said.ip: said.port for said in self.heard}
            heartbeat.watch({str(host.ip): ports.get(host.ip, self._port) for host in topology.loggers})

    async def is_logger_there(self, topology: Topology) -> bool:
        """Does a logger's daemon answer? Then the self-test need not wait in vain."""
        if not self._is_hardworker or not (heartbeat := self._talker.heartbeat):
            return True
        self.watch(topology)
        deadline = time.monotonic() + _ASK
        while time.monotonic() < deadline:
            if any(watched.answered is not None for watched in heartbeat.watched.values()):
                return True
            await asyncio.sleep(INTERVAL / 2)
        return False

    async def take_up(self, topology: Topology, *, logger: bool = True) -> None:
        """The first topology is in force. A program that was there before may send the data another way.
        logger: has one answered? Raises MidstreamError."""
        if self._is_hardworker and self._host.attachment:
            await self.way.take_up(topology, logger=logger, watched=self._talker.heartbeat is not None)
            self._is_taken_up = True

    async def hold(self) -> None:
        """A program has taken the place of another one. Raises KernelError."""
        if self._is_taken_up:
            await self.way.hold()

    async def beat(self) -> None:
        """Send the data where a logger takes it, and ask them all. A fault is told, and tried again."""
        heartbeat = self._talker.heartbeat
        if not heartbeat or not heartbeat.watched:
            return
        if self._is_taken_up and (topology := self._host.in_force):
            try:
                await self.way.look(topology, order(topology, self.heard), heartbeat.watched)
            except MidstreamError as error:
                if (unsaid := self._troubles.admit()) is not None:
                    log("way", level="error", reason=error, unsaid=unsaid)
        heartbeat.ask()

    def start(self) -> None:
        """Tell the loggers what is held, until `release`."""
        if self.teller:
            self.teller.start()

    async def release(self) -> None:
        """Let the spool's process run, without us."""
        if self.way.spool:
            self.way.spool.close()
        if self.teller:
            await self._worker(self.teller.close)
