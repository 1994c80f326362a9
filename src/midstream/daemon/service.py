"""The daemon at work: makes its parts, runs them until it is told to stop, and ends them.

One event loop does all the talking; what waits for the kernel or the compiler is done by two threads. The
way of the data has one of its own, which no compiler holds up.
"""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from midstream.config import Config
from midstream.daemon import heartbeat, status
from midstream.daemon.awake import Awake
from midstream.daemon.backlog import LoggerState
from midstream.daemon.concurrency import WorkerThread, beside
from midstream.daemon.destinations import Destinations
from midstream.daemon.heartbeat import Told
from midstream.daemon.host import ThisHost
from midstream.daemon.identity import Identity
from midstream.daemon.log import log
from midstream.daemon.notify import notify
from midstream.daemon.peers import Peers
from midstream.daemon.reconciling import Reconciler
from midstream.daemon.snapshot import DaemonSnapshot
from midstream.daemon.talking import Hearing, Talker
from midstream.daemon.watch import watch_network

_TICK = 1.0  # seconds after which everything is compared again, whatever was heard
_PULSE = 1.0  # seconds between two signs of life to the service manager
_PAUSE = 0.02  # seconds between two comparisons: the kernel tells of every neighbour it learns


class Service:
    """A host's daemon. Raises MidstreamError when it is made: no role, no key, no interface."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._changed = asyncio.Event()
        self._awake = Awake(2 * heartbeat.INTERVAL)
        self._worker, self._quick = WorkerThread("daemon"), WorkerThread("way")
        identity = Identity(config)
        self._host = ThisHost(config, identity)
        hearing = Hearing(Peers(config.daemon.clock), self._changed.set)
        tell = LoggerState(self._host.known).tell if identity.role == "logger" else Told
        self._talker = Talker(config, identity.key, hearing, tell, self._awake.now)
        self._destinations = Destinations(config, self._host, self._talker, self._quick, self._awake.now)
        self._reconciler = Reconciler(config, self._host, self._talker, self._destinations, self._worker)
        self._snapshot = DaemonSnapshot(self._host, hearing, self._destinations, self._reconciler)

    def state(self) -> dict[str, Any]:
        """What `midstream status` shows."""
        return self._snapshot.state()

    async def run(self, stop: asyncio.Event, *, once: bool = False) -> None:
        """Work until `stop` is set; with once, until everything is in force, and leave it so.

        Raises MidstreamError; with once also NetworkError or ConfigError that says what is missing after
        daemon.timeout.
        """
        path = Path(self._config.daemon.socket)
        async with AsyncExitStack() as opened:
            opened.callback(self._quick.close)
            opened.callback(self._worker.close)
            # First the socket: where another daemon answers, what that has set on the host is left alone. For
            # the same reason the socket ends before the neighbours are taken away.
            server = None if once else await status.serve(path, self.state)
            opened.push_async_callback(self._destinations.release)
            if not once:
                opened.push_async_callback(self._leave)
                opened.push_async_callback(self._worker, path.unlink, missing_ok=True)
                opened.callback(lambda: server.close() if server else None)
            opened.push_async_callback(self._talker.close)
            opened.enter_context(watch_network(self._changed.set))
            opened.callback(notify, "STOPPING=1")
            await self._reconciler.talk()
            notify("READY=1")
            self._snapshot.tell()
            if not once:
                self._destinations.start()
            async with beside(self._beat(), self._wake(stop)):
                if self._config.daemon.explore and not once:
                    await self._reconciler.restore()
                while not stop.is_set():
                    self._changed.clear()
                    if server and not await self._worker(path.exists):
                        server.close()
                        server = await status.serve(path, self.state)
                        self._reconciler.note_repair(f"{path}: removed, made again")
                    await self._reconciler.settle(once=once)
                    self._snapshot.tell()
                    if once and self._reconciler.ready_after:
                        return
                    await self._wait()

    async def _beat(self) -> None:
        """What waits for no comparison: signs of life, announcements, and the way of the data."""
        pulsed, unlinked = time.monotonic(), False
        while True:
            await asyncio.sleep(heartbeat.INTERVAL)
            self._awake.tick()
            before, unlinked = unlinked, self._host.is_unlinked
            if unlinked and not before:
                self._changed.set()
            if (now := time.monotonic()) >= pulsed + _PULSE and not self._reconciler.hangs:
                pulsed = now
                notify("WATCHDOG=1")
            self._talker.repeat()
            await self._destinations.beat()

    async def _wake(self, stop: asyncio.Event) -> None:
        """To be told to stop is news, too."""
        await stop.wait()
        self._changed.set()

    async def _wait(self) -> None:
        """For news, or until it is time to compare again."""
        await asyncio.sleep(_PAUSE)
        with suppress(TimeoutError):
            async with asyncio.timeout(_TICK):
                await self._changed.wait()

    async def _leave(self) -> None:
        """Take the neighbours away. The program serves on."""
        await self._worker(self._host.release, self._reconciler.interface)
        log("stopped", program="stays attached" if self._host.attachment else "none")
