"""The daemon at work: hear, plan, put into force, watch, heal; until it is told to stop.

One event loop does all the talking; what waits for the kernel or the compiler is done by one worker thread
(host.py). Whatever happens only marks that something may have changed; `_settle` then compares what is with
what should be. So the order of events does not matter, and doing it again changes nothing.
"""

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from midstream import network
from midstream.config import Config
from midstream.daemon import failover, heartbeat, interface, status
from midstream.daemon.announcement import Announcement
from midstream.daemon.discovery import ANSWER, INTERVAL, Discovery
from midstream.daemon.failover import Choice
from midstream.daemon.heartbeat import Heartbeat, is_listening
from midstream.daemon.host import ThisHost
from midstream.daemon.log import Log, Seldom
from midstream.daemon.notify import notify
from midstream.daemon.peers import Peers
from midstream.daemon.plan import Plan, decide_mark, make_plan
from midstream.daemon.role import find_role
from midstream.daemon.seal import Key
from midstream.daemon.watch import Watch
from midstream.errors import ConfigError, MidstreamError, NetworkError
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


class Service:
    """A host's daemon. Raises MidstreamError when it is made: no role, no key, no interface."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config, self._log = config, log
        self._name = config.daemon.name or socket.gethostname()
        self.role = find_role(config, self._name)
        self._key = self._load_key()
        self._interface = interface.read(config.network.interface)
        self._host = ThisHost(config, self.role, self._name)
        self._peers = Peers(config.daemon.clock)
        self._plan = Plan(None, "nothing has been heard yet", waiting=True)
        self._started, self._started_wall = time.monotonic(), time.time()
        self._choice = Choice("fast", "")
        self._choice_since = self._started
        self._repairs: deque[str] = deque(maxlen=_KEPT)
        self._repaired = 0
        self._rejected: Counter[str] = Counter()
        self._seldom = Seldom(10.0, time.monotonic)
        self._fault = ""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="daemon")
        self._changed = asyncio.Event()
        self._discovery: Discovery | None = None
        self._said: Announcement | None = None
        self._newcomer = False
        self._heartbeat: Heartbeat | None = None
        self._expected = self._started + _TURN  # when the comparison in hand has to be done
        self._status = ""
        self.ready_after = 0.0

    async def run(self, stop: asyncio.Event, *, once: bool = False) -> None:
        """Work until `stop` is set; with once, until everything is in force, and leave it so.

        Raises MidstreamError; with once also NetworkError or ConfigError that says what is missing after
        daemon.timeout.
        """
        watch = Watch(self._changed.set)
        server = None if once else await status.serve(Path(self._config.daemon.socket), self.state)
        beating = asyncio.create_task(self._beat())
        try:
            await self._start_talking()
            notify("READY=1")
            self._tell()
            if self._config.daemon.explore and not once:
                await self._restore()
            while not stop.is_set():
                self._changed.clear()
                self._expect(_TURN)
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
                self._log("stopped", program="stays attached" if self._host.attachment else "none")
            self._worker.shutdown()

    def state(self) -> dict[str, Any]:
        """What `midstream status` shows."""
        now = time.monotonic()
        topology = self._host.in_force
        return {
            "role": self.role,
            "name": self._name,
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
            "mode": self._choice.mode,
            "logger": str(topology.logger.ip) if topology else "",
            "mode_reason": self._choice.reason,
            "mode_seconds": round(now - self._choice_since, 1),
            "repaired": self._repaired,
            "repairs": list(self._repairs),
            "rejected": dict(self._rejected),
        }

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
            status = f"working, sensors: {len(self._host.in_force.sensors) if self._host.in_force else 0}"
            status += "" if self._choice.mode == "fast" else f", without a logger: {self._choice.reason}"
        if status != self._status:
            self._status = status
            notify(f"STATUS={self.role}: {status}")

    def _expect(self, seconds: float) -> None:
        """What is done now takes no longer."""
        self._expected = time.monotonic() + seconds

    # talking

    def _load_key(self) -> Key | None:
        if self._config.daemon.explore:
            return Key.load(self._config.key_path)
        with suppress(ConfigError):
            return Key.load(self._config.key_path)
        self._log(
            "unwatched",
            level="warning",
            reason="no key: the logger is not watched",
            key=self._config.key_path,
        )
        return None

    async def _start_talking(self) -> None:
        daemon = self._config.daemon
        if self._key:
            self._heartbeat = Heartbeat(self._key, self._is_serving, self._changed.set)
            await self._heartbeat.start(self._interface.ip, daemon.port)
        if daemon.explore and not daemon.rewrite_const:
            self._log(
                "rewrite_const",
                level="warning",
                reason="daemon.rewrite_const = false, but with explore = true const.toml is rewritten all "
                "the same; set explore = false to keep a file of your own",
            )
        if daemon.explore and self._key:
            self._discovery = Discovery(
                self._interface.ip, self._key, heard=self._hear, rejected=self._reject
            )
            self._said = self._own()
            await self._discovery.start(self._said)
        self._log(
            "started", role=self.role, name=self._name, interface=self._interface.name, ip=self._interface.ip
        )

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
        if mark and self._host.in_force:
            mark = mark.model_copy(update={"logger": self._host.in_force.logger.ip})
        return Announcement(
            role=self.role,
            name=self._name,
            ip=found.ip,
            mac=found.mac,
            mtu=found.mtu,
            port=self._config.daemon.port,
            version=_VERSION,
            started=self._started_wall,
            standby=self._config.daemon.standby,
            mark=mark,
        )

    def _hear(self, said: Announcement) -> None:
        verdict = self._peers.hear(said, wall=time.time(), now=time.monotonic())
        if verdict in ("new", "changed"):
            self._log("heard", host=said, mac=said.mac, what="leaving" if said.leaving else verdict)
            self._changed.set()
            self._newcomer |= verdict == "new"
        elif verdict == "clock":
            self._reject(self._peers.skewed[said.ip], kind="clock")
        elif verdict != "same":
            self._rejected[verdict] += 1

    def _reject(self, reason: str, *, kind: str = "key") -> None:
        self._rejected[kind] += 1
        if (unsaid := self._seldom.admit()) is not None:
            self._log("rejected", level="warning", reason=reason, unsaid=unsaid)

    def _is_serving(self) -> bool:
        # A daemon that was killed and started anew has not found the others yet, and its logger serves.
        topology = self._host.in_force or self._host.previous()
        return self.role == "logger" and topology is not None and is_listening(topology.port)

    async def _beat(self) -> None:
        """Announce now and then and to newcomers, ask the loggers often, and act on what they answer."""
        last_word = last_pulse = time.monotonic()
        while True:
            await asyncio.sleep(heartbeat.INTERVAL)
            now = time.monotonic()
            if now >= last_pulse + _PULSE and now < self._expected:
                last_pulse = now
                notify("WATCHDOG=1")
            # A newcomer may have begun to listen after the last announcement.
            due = last_word + (ANSWER if self._newcomer else INTERVAL)
            if now >= due and self._discovery and self._said:
                last_word, self._newcomer = now, False
                await self._discovery.announce(self._said)
            if self._heartbeat and self._heartbeat.watched:
                self._heartbeat.ask()
                wanted = self._wanted_choice(now)
                if wanted != self._choice:
                    self._changed.set()

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
            if await self._enforce(topology, again=True):
                await self._begin(topology)
        except MidstreamError as error:
            self._report_fault(str(error))
            return
        self._log(
            "restored",
            sensors=len(topology.sensors),
            hardworker=topology.hardworker.ip,
            logger=topology.logger.ip,
            program=self._program(),
        )

    async def _enforce(self, topology: Topology, *, again: bool = False) -> bool:
        self._expect(_COMPILING)
        try:
            return await self._in_worker(self._host.put_in_force, topology, self._interface, again=again)
        finally:
            self._expect(_TURN)

    async def _begin(self, topology: Topology) -> None:
        """The first topology is in force. A program that was there before may send the data another way."""
        self._choice = Choice(await self._in_worker(self._host.mode), str(topology.logger.ip))

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
        # First what costs messages: a logger that is gone, a neighbour through which nothing reaches a peer.
        if self._host.in_force:
            await self._act_on_loggers(self._host.in_force)
            await self._repair(self._host.in_force)
        found = await self._in_worker(interface.read, self._config.network.interface)
        moved, renumbered = found != self._interface, found.ip != self._interface.ip
        if renumbered:  # what is said and heard is bound to the address
            await self._stop_talking()
        self._interface = found
        if renumbered:
            await self._start_talking()
        for said in self._peers.expire(time.monotonic()):
            self._log("silent", level="warning", host=said)
        own = self._own()
        self._plan = self._make_plan(own)
        topology = self._plan.topology
        if topology:
            await self._put_in_force(topology)
            await self._act_on_loggers(topology)
        elif self._host.in_force:  # it holds until there is a better one
            await self._act_on_loggers(self._host.in_force)
        # What is announced is in force: a sensor must not learn a new address before the program.
        if (said := self._own()) != self._said and self._discovery:
            self._said = said
            await self._discovery.announce(said, urgent=True)
        if moved:
            self._log("interface", name=found.name, ip=found.ip, mac=found.mac, mtu=found.mtu)

    def _make_plan(self, own: Announcement) -> Plan:
        if self._config.daemon.explore:
            in_force = self._host.in_force or self._host.previous()
            active = self._choice.logger or (str(in_force.logger.ip) if in_force else "")
            return make_plan(self._config, own, self._peers, in_force, active)
        topology = network.load(self._config.const_path)
        return Plan(_with_own(topology, own))

    async def _put_in_force(self, topology: Topology) -> None:
        began = time.monotonic()
        before = self._host.in_force
        changed = await self._enforce(topology)
        if not changed and self.ready_after:
            return
        if before is None:
            await self._begin(topology)
        if first := not self.ready_after:
            self.ready_after = time.monotonic() - self._started
        if self._heartbeat and changed:
            self._heartbeat.excuse()
        self._log(
            "in force" if first else "changed",
            seconds=round(self.ready_after if first else time.monotonic() - began, 3),
            sensors=len(topology.sensors),
            hardworker=topology.hardworker.ip,
            logger=topology.logger.ip,
            program=self._program(),
        )

    async def _repair(self, topology: Topology) -> None:
        for repair in await self._in_worker(self._host.repair, topology, self._interface):
            self._repaired += 1
            self._repairs.append(repair)
            self._log("repaired", level="warning", what=repair)

    def _wanted_choice(self, now: float) -> Choice:
        watched = self._heartbeat.watched if self._heartbeat else {}
        candidates = [
            str(said.ip) for said in sorted(self._plan.loggers, key=lambda said: (said.standby, said.ip))
        ]
        return failover.choose(self._choice, candidates, watched, now=now, started=self._started)

    async def _act_on_loggers(self, topology: Topology) -> None:
        """Watch the loggers, and send the data where one is."""
        if self.role != "hardworker" or not self._heartbeat or not self._host.attachment:
            return
        hosts = {str(said.ip): said.port for said in self._plan.loggers}
        hosts.setdefault(str(topology.logger.ip), self._config.daemon.port)
        self._heartbeat.watch(hosts)
        wanted = self._wanted_choice(time.monotonic())
        if wanted == self._choice:
            return
        before, self._choice, self._choice_since = self._choice, wanted, time.monotonic()
        began = self._choice_since
        if wanted.logger != before.logger and (said := self._logger(wanted.logger)):
            topology = replace(topology, logger=Host(said.ip, said.mac))
            await self._enforce(topology)
        reset = await self._in_worker(self._host.switch, wanted.mode, topology)
        self._log(
            "way",
            level="warning" if wanted.reason else "info",
            mode=wanted.mode,
            logger=wanted.logger,
            reason=wanted.reason or "the logger serves",
            connections_reset=reset,
            seconds=round(time.monotonic() - began, 3),
        )

    def _logger(self, ip: str) -> Announcement | None:
        return next((said for said in self._plan.loggers if said.ip == IPv4Address(ip)), None)

    def _report_fault(self, fault: str) -> None:
        if fault and fault != self._fault:
            self._log("fault", level="error", reason=fault)
        self._fault = fault

    async def _in_worker(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._worker, lambda: function(*args, **kwargs)
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
