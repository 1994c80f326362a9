"""The judge compares what the application and the log hold of each connection with its client's account.

Wrong, mixed, repeated or out of order: never. Missing: only what docs/guarantees.md allows, with the reason.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tests.lab.chaos.application import ROW
from tests.lab.chaos.client import Connection
from tests.lab.chaos.messages import DATA, Flow

RECEIVE_BUFFER = 2 << 20  # bytes: what the logger's kernel may hold of a connection, and Linux doubles

Row = tuple[int, int]
"""A message as it arrived: its offset in the stream in messages, and its number; -1: nobody sent it."""


class Event(NamedTuple):
    """Something that was done to a host, from when to when (CLOCK_MONOTONIC)."""

    what: str
    begin: float
    end: float


@dataclass
class Verdict:
    """Faults, a line each: none may be there. excused: missing messages by the reason that allows it."""

    connections: int = 0
    sent: int = 0
    acknowledged: int = 0
    delivered: int = 0
    logged: int = 0
    faults: list[str] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)


def judge(
    account: Sequence[Connection],
    lives: Mapping[int, Sequence[np.ndarray]],
    logged: Mapping[int, Sequence[Row]],
    events: Sequence[Event],
    flow: Flow = DATA,
) -> Verdict:
    """Compare what there is of a stream. lives: the application's rows by port, an array a life. logged: the
    database's by port."""
    verdict = Verdict(connections=len(account))
    known = {connection.port: connection for connection in account}
    for port in (lives.keys() | logged.keys()) - known.keys():
        verdict.faults.append(f"port {port}: of no client's connection that was accounted for")
    for port, connection in known.items():
        _judge_connection(connection, lives.get(port, ()), logged.get(port, ()), events, verdict, flow)
    return verdict


def _judge_connection(
    connection: Connection,
    lives: Sequence[np.ndarray],
    logged: Sequence[Row],
    events: Sequence[Event],
    verdict: Verdict,
    flow: Flow,
) -> None:
    acknowledged = flow.whole(connection.first, connection.acknowledged)
    fault = _Faults(f"port {connection.port} of sensor {connection.sensor}", verdict)
    delivered = _delivered(connection, lives, fault, flow)
    for place, (expected, (offset, number)) in enumerate(zip(range(len(logged)), logged, strict=True)):
        if offset != expected or number != connection.first + place:
            fault(f"log: message {number} at {offset} instead of {connection.first + place} at {expected}")
            break
    verdict.sent += flow.whole(connection.first, connection.sent)
    verdict.acknowledged += acknowledged
    verdict.delivered += delivered
    verdict.logged += len(logged)
    if max(delivered, len(logged)) > flow.begun(connection.first, connection.sent):
        fault(f"{delivered} delivered and {len(logged)} logged, but {connection.sent} bytes were sent")

    def happened(*what: str) -> bool:
        """Did one of these happen while the connection was there?"""
        return any(
            event.what in what and event.begin <= connection.ended and event.end >= connection.opened
            for event in events
        )

    if (missing := acknowledged - delivered) > 0:
        if happened("program detached") and happened("application killed", "application ends"):
            verdict.excused["application: gone before it had read a ring that was detached"] += missing
        else:
            fault(f"application: {missing} of {acknowledged} acknowledged messages are missing")
    if (missing := acknowledged - len(logged)) > 0:
        if happened("holder killed") and missing * flow.size <= RECEIVE_BUFFER:
            verdict.excused["log: in the kernel when the holder was killed"] += missing
        else:
            fault(f"log: {missing} of {acknowledged} acknowledged messages are missing")


class _Faults:
    def __init__(self, whose: str, verdict: Verdict) -> None:
        self._whose, self._verdict = whose, verdict

    def __call__(self, text: str) -> None:
        self._verdict.faults.append(f"{self._whose}: {text}")


def _delivered(connection: Connection, lives: Sequence[np.ndarray], fault: _Faults, flow: Flow) -> int:
    """How many messages the application was given, without a gap. A new life gets what was not committed."""
    reached = committed = 0
    for rows in lives:
        if not len(rows):
            continue
        messages = rows[rows["committed"] == 0]
        offsets, remainders = np.divmod(messages["offset"].astype(np.int64), flow.unit)
        expected = connection.first + offsets
        if remainders.any() or not (messages["sensor"] == connection.sensor).all():
            fault("application: a message that this sensor has not sent, or at no message's place")
            return reached
        if (messages["number"] != expected).any():
            fault("application: another message of this sensor, or a wrong one")
            return reached
        if len(offsets) and not committed <= offsets[0] <= reached:
            fault(
                f"application: goes on at {offsets[0]} after {reached}, of which {committed} were committed"
            )
            return reached
        if (np.diff(offsets) != 1).any():
            fault("application: repeated, missing or out of order within a life")
            return reached
        reached = int(offsets[-1]) + 1 if len(offsets) else reached
        ends = np.flatnonzero(rows["committed"])
        if len(ends):
            before = rows[: ends[-1]]
            done = before[before["committed"] == 0]
            committed = int(done["offset"][-1]) // flow.unit + 1 if len(done) else committed
    return reached


# what the ends wrote down


def account(paths: Iterable[Path]) -> list[Connection]:
    """The clients' accounts: of each connection the last line."""
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return list({line["port"]: Connection(**line) for line in lines}.values())


def lives(path: Path) -> dict[int, list[np.ndarray]]:
    """The application's rows by port, and an array a life; a commit's row is in all that it concerns."""
    size = path.stat().st_size
    rows = np.fromfile(path, ROW, size // ROW.itemsize)
    found: defaultdict[int, list[np.ndarray]] = defaultdict(list)
    marks = rows["committed"] == 1
    for life in np.unique(rows["life"]):
        of_life = rows["life"] == life
        for port in np.unique(rows["port"][of_life & ~marks]):
            found[int(port)].append(rows[of_life & (marks | (rows["port"] == port))])
    return dict(found)


def logged(database: Path, flow: Flow = DATA) -> dict[int, list[Row]]:
    """The database's messages of a stream by port."""
    found: dict[int, list[Row]] = {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        query = "SELECT id, port FROM connections WHERE coalesce(stream, 'data') = ? ORDER BY id"
        for number, port in store.execute(query, (flow.name,)).fetchall():
            query = "SELECT sequence, payload FROM messages WHERE connection_id=? ORDER BY sequence"
            for sequence, payload in store.execute(query, (number,)):
                said = flow.identity(payload)
                found.setdefault(port, []).append(
                    (sequence, said.number if said and said.port == port else -1)
                )
    store.close()
    return found


def told_of(database: Path, ports: Iterable[int]) -> list[str]:
    """What the log has heard of connections of these ports, and what connections it has of them."""
    chosen = sorted(set(ports))
    found = []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        for table in ("connections", "held", "pending"):
            query = f"SELECT * FROM {table} WHERE port IN ({', '.join('?' * len(chosen))})"
            found += [f"{table}: {row}" for row in store.execute(query, chosen)]
    store.close()
    return found


def to_the_spool(database: Path, flow: Flow = DATA) -> set[int]:
    """The ports of the stream's connections that the hardworker's spool took, as the log was told."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        query = "SELECT port FROM held WHERE destination_here AND coalesce(stream, 'data') = ?"
        found = {port for (port,) in store.execute(query, (flow.name,))}
    store.close()
    return found
