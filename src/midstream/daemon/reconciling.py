"""Compares what is with what should be, and makes it so: repair, plan, put in force.

The order of events does not matter, and doing it again changes nothing. So whatever happens only marks that
something may have changed.
"""

import time
from collections import deque

from midstream import network
from midstream.config import Config
from midstream.daemon.concurrency import WorkerThread
from midstream.daemon.destinations import Destinations
from midstream.daemon.host import ThisHost
from midstream.daemon.log import log
from midstream.daemon.plan import TopologyPlan, addresses, is_about, make_plan, own_plan
from midstream.daemon.talking import Talker
from midstream.errors import MidstreamError, NetworkError
from midstream.network import Topology

_TURN = 10.0  # seconds that a comparison may take before it counts as a hang,
_COMPILING = 300.0  # and if it compiles, on a slow board too
_KEPT = 20  # repairs that status remembers


class Reconciler:
    """plan: what should be. fault: what is wrong now. ready_after: seconds until all was in force, or 0.
    repaired: how many repairs there were, of which `repairs` has the last.

    Raises NetworkError when it is made: no interface.
    """

    def __init__(
        self, config: Config, host: ThisHost, talker: Talker, destinations: Destinations, worker: WorkerThread
    ) -> None:
        self._config, self._host, self._talker = config, host, talker
        self._destinations, self._worker = destinations, worker
        self.interface = host.read_interface()
        self.plan = TopologyPlan(None, "nothing has been heard yet", waiting=True)
        self.fault = ""
        self.repaired = 0
        self.repairs: deque[str] = deque(maxlen=_KEPT)
        self.started = self._due = time.monotonic()
        self.ready_after = 0.0

    @property
    def reason(self) -> str:
        """What is being waited for, and what holds meanwhile."""
        if self.plan.reason and self._host.in_force:
            return f"{self.plan.reason}; what was in force before holds until then"
        return self.plan.reason

    @property
    def hangs(self) -> bool:
        """Does what is done now take longer than it may?"""
        return time.monotonic() >= self._due

    async def talk(self) -> None:
        """Begin to talk at the interface's address. Raises NetworkError."""
        await self._talker.move(self._host.announcement(self.interface), self.interface.name)

    async def restore(self) -> None:
        """Put in force at once what was when this host went down, whichever other host is off."""
        topology = self._host.previous()
        if topology is None or not is_about(topology, self._host.announcement(self.interface)):
            return
        self._expect(_TURN)
        try:
            logger = await self._destinations.is_logger_there(topology)
            if await self._enforce(topology, again=True, logger=logger):
                await self._destinations.take_up(topology, logger=logger)
        except MidstreamError as error:
            self._report(str(error))
            return
        self._log_topology("restored", topology)

    async def settle(self, *, once: bool) -> None:
        """Make what is what should be. A fault is kept for status, logged once, and tried again; with once it
        is raised."""
        self._expect(_TURN)
        try:
            await self._compare()
        except MidstreamError as error:
            if once:
                raise
            self._report(str(error))
            return
        late = time.monotonic() - self.started > self._config.daemon.timeout
        if self.plan.topology is None and (late or not self.plan.waiting):
            if once:
                raise NetworkError(self.plan.reason)
            self._report(self.reason)
        else:
            self._report("")

    def note_repair(self, repair: str) -> None:
        """Count and log what was put right again."""
        self.repaired += 1
        self.repairs.append(repair)
        log("repaired", level="warning", what=repair)

    async def _compare(self) -> None:
        # First what costs messages: a neighbour through which nothing reaches a peer.
        if in_force := self._host.in_force:
            for repair in await self._worker(self._host.repair, in_force, self.interface):
                self.note_repair(repair)
        found = await self._worker(self._host.read_interface)
        moved, self.interface = found != self.interface, found
        if found.ip != self._talker.ip:
            await self.talk()
        self._talker.hearing.expire()
        self.plan = self._make_plan()
        self._destinations.heard = self.plan.loggers
        if self.plan.topology:
            await self._put_in_force(self.plan.topology)
        if in_force := self._host.in_force:  # it holds until there is a better one
            self._destinations.watch(in_force)
        # What is announced is in force: a sensor must not learn a new address before the program.
        await self._talker.say(self._host.announcement(self.interface))
        if moved:
            log("interface", name=found.name, ip=found.ip, mac=found.mac, mtu=found.mtu)

    def _make_plan(self) -> TopologyPlan:
        own = self._host.announcement(self.interface)
        if self._config.daemon.explore:
            return make_plan(self._config, own, self._talker.hearing.peers, self._host.known())
        return own_plan(network.load(self._config.const_path), own)

    async def _put_in_force(self, topology: Topology) -> None:
        began = time.monotonic()
        before, attached = self._host.in_force, self._host.attachment
        changed = await self._enforce(topology)
        if not changed and self.ready_after:
            return
        if changed and attached and before == topology:
            self.note_repair(f"program on {attached.interface}: gone, attached again")
        if before is None:
            await self._destinations.take_up(topology)
        else:
            await self._destinations.hold()
        if first := not self.ready_after:
            self.ready_after = time.monotonic() - self.started
        seconds = round(self.ready_after if first else time.monotonic() - began, 3)
        self._log_topology("in force" if first else "changed", topology, seconds=seconds)

    async def _enforce(self, topology: Topology, *, again: bool = False, logger: bool = True) -> bool:
        self._expect(_COMPILING)
        try:
            return await self._worker(
                self._host.put_in_force, topology, self.interface, again=again, logger=logger
            )
        finally:
            self._expect(_TURN)

    def _expect(self, seconds: float) -> None:
        """What is done now takes no longer."""
        self._due = time.monotonic() + seconds

    def _log_topology(self, event: str, topology: Topology, **facts: object) -> None:
        attachment = self._host.attachment
        log(
            event,
            **facts,  # type: ignore[arg-type]  # none of them is the level
            sensors=len(topology.sensors),
            hardworker=topology.hardworker.ip,
            loggers=", ".join(addresses(topology)),
            program=f"{attachment.mode} on {attachment.interface}" if attachment else "none",
        )

    def _report(self, fault: str) -> None:
        if fault and fault != self.fault:
            log("fault", level="error", reason=fault)
        self.fault = fault
