"""The way of the sensors' data on the hardworker: gathers the evidence, has it judged, and acts at once.

It looks ten times a second, and reads nothing of the program as long as the logger in use answers that all is
well. A switch is one word in the program's memory; then the connections of the destination that is gone are
ended, and no others. What waits for the kernel is done by a thread of its own, which no compiler holds up.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from midstream.daemon.failover import MISSED, PATIENT, UNWATCHED, Choice, Evidence, Limits, choose
from midstream.daemon.heartbeat import INTERVAL, WAITS, Watched
from midstream.daemon.log import log
from midstream.daemon.retention import Retention
from midstream.daemon.spool import Spool
from midstream.daemon.witness import Witness
from midstream.ebpf.control import Open
from midstream.ebpf.records import HERE
from midstream.errors import NetworkError
from midstream.lost import Lost
from midstream.network import Topology

SPOOL = "spool"  # how status calls the destination that is this host
EXPECTED = "no logger has been heard to listen yet"  # the reason until one is


class AttachedProgram(Protocol):
    """The hardworker's program, as it is attached now (host.py)."""

    def destination(self) -> int: ...
    def send_to(self, destination: int) -> None: ...
    def look(self) -> tuple[list[Open], Any]: ...
    def reset(self, destination: int, before_ns: int = ...) -> int: ...


class Way:
    """destination: where new connections go. reason: why it is that one; since: by `now`, as all times."""

    def __init__(
        self,
        program: AttachedProgram,
        spool: Spool | None,
        limits: Limits,
        now: Callable[[], float],
        worker: Callable[..., Awaitable[Any]],
        retention: Retention | None = None,
    ) -> None:
        self._program, self._limits, self._now = program, limits, now
        self._worker, self._retention = worker, retention
        self._heard: float | None = None  # when the logger in use answered last
        self._owes = False  # was a logger left, and is not saved yet what it may have lost?
        self._witness = Witness()
        self._failures: dict[str, tuple[int, float]] = {}  # of a logger: how many, and when the last was
        self._fault = ""
        self.spool = spool
        self.destination = 0
        self.reason = ""
        self.since = now()

    @property
    def seconds(self) -> float:
        """For so long new connections have gone there."""
        return self._now() - self.since

    def name(self, topology: Topology) -> str:
        """The destination in words: a logger's address, or the spool."""
        if self.destination == HERE:
            return SPOOL
        loggers = topology.loggers
        return str(loggers[min(self.destination, len(loggers) - 1)].ip)

    async def take_up(self, topology: Topology, *, logger: bool, watched: bool = True) -> None:
        """The program is attached. One that was there before may send the data elsewhere than to the first
        logger, and a spool that an earlier daemon has started goes on. logger: has any logger answered? If
        not, and no connection has brought anything yet, the data goes to the spool from the beginning.
        watched: are the loggers asked at all?"""
        self.destination = await self._worker(self._program.destination)
        self.reason = "" if self.destination == HERE else EXPECTED if watched else UNWATCHED
        if not self.spool:
            return
        await self._worker(self.spool.adopt, topology)
        if self._retention and self.destination == HERE:
            await self._worker(self._retention.withdraw)
        opened, _ = await self._worker(self._program.look)
        if not logger and not any(one.next for one in opened) and self.destination != HERE:
            await self._switch(Choice(HERE, "no answer"), topology)

    async def hold(self) -> None:
        """Maps that are new know nothing of the destination. Raises KernelError."""
        if await self._worker(self._program.destination) != self.destination:
            await self._worker(self._program.send_to, self.destination)

    async def look(self, topology: Topology, order: Sequence[int], watched: dict[str, Watched]) -> None:
        """Once a beat. order: positions of loggers, the preferred one first. Raises MidstreamError."""
        now = self._now()
        addresses = [str(host.ip) for host in topology.loggers]
        if self.destination != HERE and self.destination >= len(addresses):
            await self._switch(Choice(order[0], "it is no logger any more"), topology)
        if self.destination != HERE and _seems_wrong(watched.get(addresses[self.destination]), now):
            opened, counters = await self._worker(self._program.look)
            self._witness.look([self.destination], opened, counters, now=now, ns=time.monotonic_ns())
        else:
            self._witness.forget()
        evidence = {
            position: self._evidence(position, address, watched.get(address), now)
            for position, address in enumerate(addresses)
        }
        choice = choose(self.destination, order, evidence, self._limits, spool=self.spool is not None)
        if choice.destination != self.destination:
            await self._switch(choice, topology)
        elif choice.reason and not self._fault:
            log("way", level="warning", destination=self.name(topology), reason=choice.reason)
        self._fault = choice.reason if choice.destination == self.destination else ""
        if self.reason == EXPECTED and evidence[self.destination].served:
            self.reason = ""
        if self.spool:
            logger = self.destination != HERE and evidence[self.destination].answers
            await self._keep(self.spool, topology, logger=logger)
        if self._retention and self._owes:  # after the spool has started: what sensors send now comes first
            self._owes = False
            await self._save(await self._worker(self._retention.leave))
        await self._retain(watched.get(self.name(topology)))

    def _evidence(self, position: int, address: str, watched: Watched | None, now: float) -> Evidence:
        failures = self._failures_of(address, now)
        trail = self._witness.trail(position)
        if watched is None:
            return Evidence(answered=False)
        answered = watched.answered
        silent = now - (watched.since if answered is None else answered)
        return Evidence(
            watched=now - watched.since,
            silent=silent,
            answered=answered is not None,
            serves=watched.told.serves,
            served=watched.served,
            waits=watched.told.waits,
            steady=now - watched.well if watched.well is not None and silent <= MISSED else 0.0,
            failures=failures,
            still=now - trail.advanced if trail else 0.0,
            repeats=trail.repeats + trail.unanswered if trail else 0,
            probes=trail.probes if trail else 0,
            repeating=now - trail.repeating if trail and trail.repeating is not None else 0.0,
        )

    def _failures_of(self, address: str, now: float) -> int:
        """A logger that has taken the data for a while since it failed last begins anew."""
        failures, last = self._failures.get(address, (0, now))
        if failures and now - last > 2 * PATIENT:
            del self._failures[address]
            return 0
        return failures

    async def _switch(self, choice: Choice, topology: Topology) -> None:
        began, now = time.monotonic(), self._now()
        before, name = self.destination, self.name(topology)
        if choice.destination == HERE and self.spool:
            await self._worker(self.spool.open, topology)
        await self._worker(self._program.send_to, choice.destination)
        self.destination = choice.destination
        broken = 0
        if before != HERE:
            self._failures[name] = self._failures_of(name, now) + 1, now
            if self._retention:
                await self._worker(self._retention.look)
            broken = await self._worker(self._program.reset, before)
        self.reason = f"{name}: {choice.reason}" if choice.reason else ""
        self.since = now
        self._witness.forget()
        log(
            "way",
            level="warning" if choice.reason else "info",
            destination=self.name(topology),
            reason=self.reason or "the logger serves",
            connections_reset=broken,
            seconds=round(time.monotonic() - began, 3),
        )
        self._owes = self._owes or before != HERE

    async def _retain(self, watched: Watched | None) -> None:
        """Tell the reader what the logger has committed. What it said last holds until it is given up. Raises
        NetworkError, KernelError."""
        if not self._retention or not watched or watched.answered is None:
            return
        if watched.answered != self._heard:
            self._heard = watched.answered
            await self._save(await self._worker(self._retention.hear, self.destination, watched.told.word))
        else:
            await self._worker(self._retention.renew)

    async def _save(self, lost: list[Lost]) -> None:
        if not lost or not self.spool:
            return
        try:
            await self._worker(self.spool.save, lost)
        except OSError as error:
            raise NetworkError(
                f"{self.spool.path}: what the logger may have lost cannot be saved ({error.strerror})"
            ) from error

    async def _keep(self, spool: Spool, topology: Topology, *, logger: bool) -> None:
        here = self.destination == HERE
        try:
            ended = await self._worker(spool.keep, topology, here=here, logger=logger)
        except OSError as error:
            raise NetworkError(
                f"{spool.path}: the spool's process cannot be started ({error.strerror or error})"
            ) from error
        # Its sockets are gone, whatever sensors still send to them.
        if ended and (broken := await self._worker(self._program.reset, HERE, ended)):
            log("way", level="warning", reason="the spool has died", connections_reset=broken)


def _seems_wrong(watched: Watched | None, now: float) -> bool:
    """Is there a reason to look at what the sensors do?"""
    if watched is None:
        return False
    if watched.answered is None:
        return True
    return (
        now - watched.answered > 1.5 * INTERVAL or not watched.told.serves or watched.told.waits >= WAITS / 2
    )
