"""The daemon at work: hear, plan, put into force, watch, heal; until it is told to stop.

One event loop does all the talking; what waits for the kernel or the compiler is done by one worker thread
(host.py). Whatever happens only marks that something may have changed; `_settle` then compares what is with
what should be. So the order of events does not matter, and doing it again changes nothing.
"""

import asyncio
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from midstream import network
from midstream.config import Config
from midstream.daemon import heartbeat, interface, status
from midstream.daemon.announcement import Announcement, Word
from midstream.daemon.awake import Awake
from midstream.daemon.backlog import Backlog, is_listening
from midstream.daemon.discovery import ANSWER, INTERVAL, Discovery
from midstream.daemon.failover import Limits
from midstream.daemon.freshness import Stamp, Voice
from midstream.daemon.heartbeat import Heartbeat, Told
from midstream.daemon.host import ThisHost
from midstream.daemon.interface import Interface
from midstream.daemon.log import Seldom, log
from midstream.daemon.notify import notify
from midstream.daemon.peers import Peers
from midstream.daemon.plan import TopologyPlan, decide_mark, make_plan, preferred
from midstream.daemon.retention import Retention
from midstream.daemon.role import find_role
from midstream.daemon.seal import Key
from midstream.daemon.sockets import Sockets
from midstream.daemon.spool import Spool
from midstream.daemon.teller import Teller
from midstream.daemon.watch import NetworkWatch
from midstream.daemon.way import SPOOL, UNWATCHED, Way
from midstream.errors import ConfigError, KernelError, MidstreamError, NetworkError
from midstream.network import Host, Topology

P = ParamSpec("P")
T = TypeVar("T")

_VERSION = version("midstream")
_TICK = 1.0  # seconds after which everything is compared again, whatever was heard
_PAUSE = 0.02  # seconds between two comparisons: the kernel tells of every neighbour it learns
_PULSE = 1.0  # seconds between two signs of life to the service manager
_TURN = 10.0  # seconds that a comparison may take before it counts as a hang,
_COMPILING = 300.0  # and if it compiles, on a slow board too
_KEPT = 20  # repairs that status remembers
_ASK = 0.5  # seconds for which the loggers are asked whether they are there, before a program is put back


class Service:
    """A host's daemon. Raises MidstreamError when it is made: no role, no key, no interface."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._name = config.daemon.name or socket.gethostname()
        self.role = find_role(config, self._name)
        self._key = self._load_key()
        self._host = ThisHost(config, self.role, self._name)
        self._interface = self._read_interface()
        self._peers = Peers(config.daemon.clock)
        self._plan = TopologyPlan(None, "nothing has been heard yet", waiting=True)
        self._started = time.monotonic()
        self._awake = Awake(2 * heartbeat.INTERVAL)
        self._backlog: Backlog | None = None
        self._sockets: Sockets | None = None
        self._repairs: deque[str] = deque(maxlen=_KEPT)
        self._repaired = 0
        self._rejected: Counter[str] = Counter()
        self._seldom, self._troubles = (Seldom(10.0, time.monotonic) for _ in range(2))
        self._fault = ""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="daemon")
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="way")  # what no compiler may hold up
        self._retention = self._make_retention()
        self._way = self._make_way()
        self._changed = asyncio.Event()
        self._discovery: Discovery | None = None
        self._said: Announcement | None = None
        self._voice = Voice()
        self._heartbeat: Heartbeat | None = None
        self._expected = self._started + _TURN  # when the comparison in hand has to be done
        self._status = ""
        self._is_on_the_way = False  # has the way of the data been taken up?
        self._teller = self._make_teller()
        self.ready_after = 0.0

    async def run(self, stop: asyncio.Event, *, once: bool = False) -> None:
        """Work until `stop` is set; with once, until everything is in force, and leave it so.

        Raises MidstreamError; with once also NetworkError or ConfigError that says what is missing after
        daemon.timeout.
        """
        watch = NetworkWatch(self._changed.set)
        server = None if once else await status.serve(Path(self._config.daemon.socket), self.state)
        beating = asyncio.create_task(self._beat())
        try:
            await self._start_talking()
            notify("READY=1")
            self._tell()
            if self._teller and not once:
                self._teller.start()
            if self._config.daemon.explore and not once:
                await self._restore()
            while not stop.is_set():
                self._changed.clear()
                self._expect(_TURN)
                if server and not await self._in_worker(Path(self._config.daemon.socket).exists):
                    server.close()
                    server = await status.serve(Path(self._config.daemon.socket), self.state)
                    self._note_repair(f"{self._config.daemon.socket}: removed, made again")
                await self._settle(once)
                self._tell()
                if beating.done():
                    beating.result()  # only an error ends it
                if once and self.ready_after:
                    return
                await self._wait(stop)
        finally:
            notify("STOPPING=1")
            watch.close()
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            await self._stop_talking()
            if server:
                server.close()
                await self._in_worker(Path(self._config.daemon.socket).unlink, missing_ok=True)
            if not once:
                await self._in_worker(self._host.release, self._interface)
                log("stopped", program="stays attached" if self._host.attachment else "none")
            if self._way.spool:
                self._way.spool.close()
            if self._teller and not once:
                await self._in_worker(self._teller.close)
            self._worker.shutdown()
            self._quick.shutdown()

    def state(self) -> dict[str, Any]:
        """What `midstream status` shows."""
        now = time.monotonic()
        topology = self._host.in_force
        return {
            "role": self.role,
            "name": self._name,
            "pid": os.getpid(),
            "state": "error" if self._fault else "working" if self.ready_after else "exploring",
            "reason": self._fault or self._reason(),
            "seconds": round(now - self._started, 1),
            "ready_after": round(self.ready_after, 3),
            "interface": self._interface.name,
            "ip": str(self._interface.ip),
            "mac": self._interface.mac,
            "peers": [
                {
                    "role": peer.said.role,
                    "name": peer.said.name,
                    "ip": str(peer.said.ip),
                    "mac": peer.said.mac,
                    "standby": peer.said.standby,
                    "age": round(now - peer.heard, 1),
                }
                for peer in self._peers.all()
            ],
            "sensors": [str(host.ip) for host in topology.sensors] if topology else [],
            "program": self._host.attachment.mode if self._host.attachment else None,
            "loggers": _addresses(topology) if topology else [],
            "destination": self._way.name(topology) if topology else "",
            "destination_reason": self._way.reason,
            "destination_seconds": round(self._awake.now() - self._way.since, 1),
            "spool": self._way.spool.state if self._way.spool else None,
            "spool_fault": self._way.spool.fault() if self._way.spool else "",
            "retains": self._retention.retains if self._retention else None,
            "forfeited": self._forfeited(),
            "unsaved": self._way.spool.unsaved if self._way.spool else 0,
            "held": self._teller.state() if self._teller else None,
            "repaired": self._repaired,
            "repairs": list(self._repairs),
            "rejected": dict(self._rejected),
        }

    def _forfeited(self) -> int | None:
        """Bytes that the ring could not retain for the logger; None if it retains nothing."""
        with suppress(KernelError):  # there is no program just now
            return self._host.forfeited() if self._retention else None
        return None

    def _reason(self) -> str:
        """What is being waited for, and what holds meanwhile."""
        if self._plan.reason and self._host.in_force:
            return f"{self._plan.reason}; what was in force before holds until then"
        return self._plan.reason

    def _tell(self) -> None:
        """The service manager's status line."""
        if self._fault:
            status = self._fault
        elif not self.ready_after:
            status = f"exploring: {self._reason()}"
        else:
            topology = self._host.in_force
            status = f"working, sensors: {len(topology.sensors) if topology else 0}"
            if topology and self._way.reason:
                name = self._way.name(topology)
                where = "the spool" if name == SPOOL else name
                status += f", data goes to {where}: {self._way.reason}"
        if status != self._status:
            self._status = status
            notify(f"STATUS={self.role}: {status}")

    def _expect(self, seconds: float) -> None:
        """What is done now takes no longer."""
        self._expected = time.monotonic() + seconds

    # talking

    def _read_interface(self) -> Interface:
        """A const.toml of the user's says which of several addresses counts."""
        topology = None if self._config.daemon.explore else self._host.previous()
        hosts = (*topology.sensors, topology.hardworker, *topology.loggers) if topology else ()
        return interface.read(self._config.network.interface, [host.ip for host in hosts])

    def _load_key(self) -> Key | None:
        if self._config.daemon.explore:
            return Key.load(self._config.key_path)
        with suppress(ConfigError):
            return Key.load(self._config.key_path)
        log(
            "unwatched",
            level="warning",
            reason=UNWATCHED,
            key=self._config.key_path,
        )
        return None

    async def _start_talking(self) -> None:
        daemon = self._config.daemon
        if self._key:
            self._heartbeat = Heartbeat(self._key, self._tell_of_logger, self._awake.now)
            await self._heartbeat.start(self._interface.ip, daemon.port)
        if daemon.explore and not daemon.rewrite_const:
            log(
                "rewrite_const",
                level="warning",
                reason="daemon.rewrite_const = false, but with explore = true const.toml is rewritten all "
                "the same; set explore = false to keep a file of your own",
            )
        if daemon.explore and self._key:
            self._discovery = Discovery(
                self._interface.ip, self._key, stamp=self._stamp, heard=self._hear, rejected=self._reject
            )
            self._voice = Voice()  # the one before has said goodbye
            self._said = self._own()
            await self._discovery.start(self._said)
        log("started", role=self.role, name=self._name, interface=self._interface.name, ip=self._interface.ip)

    async def _stop_talking(self) -> None:
        discovery, self._discovery = self._discovery, None
        if discovery and self._said:
            await discovery.close(self._said)
        if self._heartbeat:
            self._heartbeat.close()
            self._heartbeat = None

    def _own(self) -> Announcement:
        found = self._interface
        mark = decide_mark(self._config, self._host.previous()) if self.role == "hardworker" else None
        return Announcement(
            role=self.role,
            name=self._name,
            ip=found.ip,
            mac=found.mac,
            mtu=found.mtu,
            port=self._config.daemon.port,
            version=_VERSION,
            standby=self._config.daemon.standby,
            mark=mark,
        )

    def _stamp(self) -> Stamp:
        ear = self._peers.ear
        return self._voice.stamp(ear.challenge() if ear.wants else None)

    def _hear(self, word: Word) -> None:
        said = word.said
        if word.stamp.run == self._voice.run:
            self._rejected["old"] += 1  # our own, from somebody else
            return
        if word.stamp.asks:
            self._voice.answer(word.stamp.asks)
        verdict = self._peers.hear(word, wall=time.time(), now=time.monotonic())
        if verdict in ("new", "changed"):
            log("heard", host=said, mac=said.mac, what="leaving" if said.leaving else verdict)
            self._changed.set()
            if skewed := self._peers.skewed.get(said.ip):
                log("clock", level="warning", reason=skewed)
        elif verdict in ("old", "full"):
            self._rejected[verdict] += 1

    def _reject(self, reason: str, *, kind: str = "key") -> None:
        self._rejected[kind] += 1
        if (unsaid := self._seldom.admit()) is not None:
            log("rejected", level="warning", reason=reason, unsaid=unsaid)

    def _tell_of_logger(self) -> Told:
        # A daemon that was killed and started anew has not found the others yet, and its logger serves.
        topology = self._host.in_force or self._host.previous()
        if self.role != "logger" or topology is None:
            return Told()
        if self._backlog is None or self._backlog.port != topology.port:
            self._backlog = Backlog(topology.port, topology.size)
        if self._sockets is None or self._sockets.port != topology.port:
            self._sockets = Sockets(topology.port)
        word = self._sockets.look()
        waits = max(self._backlog.waits(), self._sockets.deaf)
        return Told(is_listening(topology.port), waits, word)

    async def _beat(self) -> None:
        """Announce now and then and to newcomers, ask the loggers often, and act on what they answer."""
        last_word = last_pulse = time.monotonic()
        unlinked = False
        while True:
            await asyncio.sleep(heartbeat.INTERVAL)
            self._awake.tick()
            before, unlinked = unlinked, self._host.is_unlinked
            if unlinked and not before:
                self._changed.set()
            now = time.monotonic()
            if now >= last_pulse + _PULSE and now < self._expected:
                last_pulse = now
                notify("WATCHDOG=1")
            # Whether somebody speaks now is asked and answered at once.
            due = last_word + (ANSWER if self._voice.owes or self._peers.ear.wants else INTERVAL)
            if now >= due and self._discovery and self._said:
                last_word = now
                await self._discovery.announce(self._said)
            if self._heartbeat and self._heartbeat.watched:
                await self._look_at_loggers()
                self._heartbeat.ask()

    async def _wait(self, stop: asyncio.Event) -> None:
        await asyncio.sleep(_PAUSE)
        waiting = [asyncio.create_task(event.wait()) for event in (self._changed, stop)]
        await asyncio.wait(waiting, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    # comparing

    async def _restore(self) -> None:
        """Put in force at once what was when this host went down, whichever other host is off."""
        topology, own = self._host.previous(), self._own()
        if topology is None or not _is_about(topology, own):
            return
        try:
            logger = await self._is_logger_there(topology)
            if await self._enforce(topology, again=True, logger=logger):
                await self._begin(topology, logger=logger)
        except MidstreamError as error:
            self._report_fault(str(error))
            return
        log(
            "restored",
            sensors=len(topology.sensors),
            hardworker=topology.hardworker.ip,
            loggers=", ".join(_addresses(topology)),
            program=self._program(),
        )

    async def _is_logger_there(self, topology: Topology) -> bool:
        """Does a logger's daemon answer? Then the self-test need not wait in vain."""
        if self.role != "hardworker" or not self._heartbeat:
            return True
        self._watch_loggers(topology)
        deadline = time.monotonic() + _ASK
        while time.monotonic() < deadline:
            if any(watched.answered is not None for watched in self._heartbeat.watched.values()):
                return True
            await asyncio.sleep(heartbeat.INTERVAL / 2)
        return False

    async def _enforce(self, topology: Topology, *, again: bool = False, logger: bool = True) -> bool:
        self._expect(_COMPILING)
        try:
            return await self._in_worker(
                self._host.put_in_force, topology, self._interface, again=again, logger=logger
            )
        finally:
            self._expect(_TURN)

    async def _begin(self, topology: Topology, *, logger: bool = True) -> None:
        """The first topology is in force. A program that was there before may send the data another way."""
        if self.role == "hardworker" and self._host.attachment:
            await self._way.take_up(topology, logger=logger, watched=self._heartbeat is not None)
            self._is_on_the_way = True

    def _program(self) -> str:
        attachment = self._host.attachment
        return f"{attachment.mode} on {attachment.interface}" if attachment else "none"

    async def _settle(self, once: bool) -> None:
        """Make what is what should be. A fault is kept for status, logged once, and tried again."""
        try:
            await self._compare()
        except MidstreamError as error:
            if once:
                raise
            self._report_fault(str(error))
            return
        late = time.monotonic() - self._started > self._config.daemon.timeout
        if self._plan.topology is None and (late or not self._plan.waiting):
            if once:
                raise NetworkError(self._plan.reason)
            self._report_fault(self._reason())
        else:
            self._report_fault("")

    async def _compare(self) -> None:
        # First what costs messages: a neighbour through which nothing reaches a peer.
        if self._host.in_force:
            await self._repair(self._host.in_force)
        found = await self._in_worker(self._read_interface)
        moved, renumbered = found != self._interface, found.ip != self._interface.ip
        if renumbered:  # what is said and heard is bound to the address
            await self._stop_talking()
        self._interface = found
        if renumbered:
            await self._start_talking()
        for said in self._peers.expire(time.monotonic()):
            log("silent", level="warning", host=said)
        if repeated := self._peers.ear.unanswered():
            self._rejected["old"] += repeated
        own = self._own()
        self._plan = self._make_plan(own)
        topology = self._plan.topology
        if topology:
            await self._put_in_force(topology)
        if in_force := self._host.in_force:  # it holds until there is a better one
            self._watch_loggers(in_force)
        # What is announced is in force: a sensor must not learn a new address before the program.
        if (said := self._own()) != self._said and self._discovery:
            self._said = said
            await self._discovery.announce(said, urgent=True)
        if moved:
            log("interface", name=found.name, ip=found.ip, mac=found.mac, mtu=found.mtu)

    def _make_plan(self, own: Announcement) -> TopologyPlan:
        if self._config.daemon.explore:
            return make_plan(self._config, own, self._peers, self._host.in_force or self._host.previous())
        topology = network.load(self._config.const_path)
        return TopologyPlan(_with_own(topology, own))

    async def _put_in_force(self, topology: Topology) -> None:
        began = time.monotonic()
        before, attached = self._host.in_force, self._host.attachment
        changed = await self._enforce(topology)
        if not changed and self.ready_after:
            return
        if changed and attached and before == topology:
            self._note_repair(f"program on {attached.interface}: gone, attached again")
        if before is None:
            await self._begin(topology)
        elif self._is_on_the_way:
            await self._way.hold()
        if first := not self.ready_after:
            self.ready_after = time.monotonic() - self._started
        log(
            "in force" if first else "changed",
            seconds=round(self.ready_after if first else time.monotonic() - began, 3),
            sensors=len(topology.sensors),
            hardworker=topology.hardworker.ip,
            loggers=", ".join(_addresses(topology)),
            program=self._program(),
        )

    async def _repair(self, topology: Topology) -> None:
        for repair in await self._in_worker(self._host.repair, topology, self._interface):
            self._note_repair(repair)

    def _note_repair(self, repair: str) -> None:
        self._repaired += 1
        self._repairs.append(repair)
        log("repaired", level="warning", what=repair)

    def _make_way(self) -> Way:
        config, now = self._config, self._awake.now
        spool = Spool(config, config.spool_path, now) if config.spool_path else None
        limits = Limits(config.daemon.silence, config.daemon.stall)
        return Way(self._host, spool, limits, now, self._in_quick, self._retention if spool else None)

    def _make_retention(self) -> Retention | None:
        """None where what is retained could not be sent to the logger: it would have no use."""
        config = self._config
        sends = bool(config.logger.replay_port and config.spool_path and self._key)
        if self.role != "hardworker" or config.hardworker.receiver != "ebpf" or not sends:
            return None
        return Retention(self._host, config.logger.batch_interval) if config.hardworker.retain else None

    def _make_teller(self) -> Teller | None:
        """What tells the loggers what is held; None where nobody would be heard, or nothing is held."""
        config = self._config
        if self.role != "hardworker" or config.hardworker.receiver != "ebpf":
            return None
        if not config.logger.replay_port or not self._key:
            return None

        def loggers() -> list[str]:
            return _addresses(self._host.in_force) if self._host.in_force else []

        def saving() -> bool:
            return self._way.spool is not None and self._way.spool.unsaved > 0

        seen = self._retention.note_ends if self._retention else lambda *_: None
        return Teller(config, self._host.folder, loggers, seen=seen, saving=saving)

    def _watch_loggers(self, topology: Topology) -> None:
        if self.role == "hardworker" and self._heartbeat:
            ports = {said.ip: said.port for said in self._plan.loggers}
            self._heartbeat.watch(
                {str(host.ip): ports.get(host.ip, self._config.daemon.port) for host in topology.loggers}
            )

    async def _look_at_loggers(self) -> None:
        """Send the data where a logger takes it. A fault is told, and tried again by the next beat."""
        topology = self._host.in_force
        if not self._is_on_the_way or topology is None or self._heartbeat is None:
            return
        order = _order(topology, self._plan.loggers)
        try:
            await self._way.look(topology, order, self._heartbeat.watched)
        except MidstreamError as error:
            if (unsaid := self._troubles.admit()) is not None:
                log("way", level="error", reason=error, unsaid=unsaid)

    def _report_fault(self, fault: str) -> None:
        if fault and fault != self._fault:
            log("fault", level="error", reason=fault)
        self._fault = fault

    async def _in_worker(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await _in(self._worker, function, *args, **kwargs)

    async def _in_quick(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await _in(self._quick, function, *args, **kwargs)


async def _in(pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: function(*args, **kwargs))


def _addresses(topology: Topology) -> list[str]:
    """The loggers, by position."""
    return [str(host.ip) for host in topology.loggers]


def _order(topology: Topology, heard: tuple[Announcement, ...]) -> list[int]:
    """The loggers' positions, the preferred one first; those that are not heard last."""
    preference = [said.ip for said in preferred(heard)]
    ips = [host.ip for host in topology.loggers]
    return sorted(
        range(len(ips)),
        key=lambda n: (preference.index(ips[n]) if ips[n] in preference else len(preference), n),
    )


def _own_places(topology: Topology, own: Announcement) -> tuple[Host, ...]:
    return topology.sensors if own.role == "sensor" else (getattr(topology, own.role),)


def _is_about(topology: Topology, own: Announcement) -> bool:
    """Was this topology made for this host as it is now: same addresses, marks and MTU?"""
    told = (topology.tos, topology.port, topology.size)
    marks = told if own.mark is None else (own.mark.tos, own.mark.port, own.mark.size)
    return Host(own.ip, own.mac) in _own_places(topology, own) and told == marks and topology.mtu == own.mtu


def _with_own(topology: Topology, own: Announcement) -> Topology:
    """A topology of const.toml, which must name this host. Raises ConfigError."""
    if own.ip not in {host.ip for host in _own_places(topology, own)}:
        raise ConfigError(
            f"const.toml names no {own.role} {own.ip}, which is this host's address; correct it, or set "
            "explore = true in [daemon]"
        )
    return topology
