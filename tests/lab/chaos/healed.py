"""What has to be true when the last of many single faults has healed: log and application have all.

Of each connection the log has what the hardworker held, from its first message on and without a gap: all that
was acknowledged, and maybe some that were not any more. Those come again at the reconnect, which TCP cannot
spare a sensor; connection and number tell them apart. The application has the same, with two exceptions. What
was in the ring when the hardworker lost its power: that it can ask the logger for. And the last messages
of a connection that the spool ended, or the hardworker's power: nobody has acknowledged them, and the log has
them by the next one.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from tests.lab.chaos.client import LIFE, Connection
from tests.lab.chaos.judge import Event, Row
from tests.lab.chaos.messages import DATA, Flow

HARDWORKER_OUT = "hardworker's power cut"
_SEEN = 30.0  # seconds around a power cut within which an application may have lost what was in the ring


@dataclass
class Healed:
    """Counts of messages, and faults, a line each: none may be there."""

    connections: int = 0
    acknowledged: int = 0
    logged: int = 0
    delivered: int = 0
    again: int = 0  # logged on more than one connection: inherent to a reconnect
    only_logged: int = 0  # in the ring when the hardworker lost its power
    only_delivered: int = 0  # on a connection that the spool ended, or the power, and not acknowledged
    faults: list[str] = field(default_factory=list)

    @property
    def ports(self) -> set[int]:
        """Those that the faults name."""
        return {int(port) for fault in self.faults for port in re.findall(r"port (\d+)", fault)}


def judge(
    account: Sequence[Connection],
    lives: Mapping[int, Sequence[np.ndarray]],
    logged: Mapping[int, Sequence[Row]],
    events: Sequence[Event],
    spooled: AbstractSet[int],
    flow: Flow = DATA,
) -> Healed:
    """Compare what there is of a stream. lives: the application's rows by port, an array a life. logged: the
    database's by port. spooled: the ports of which the spool took the connection."""
    found = Healed(connections=len(account))
    known = {connection.port for connection in account}
    for port in (lives.keys() | logged.keys()) - known:
        found.faults.append(f"port {port}: of no connection that a client has opened")
    numbers: defaultdict[int, list[range]] = defaultdict(list)
    for connection in account:
        count = _log(connection, logged.get(connection.port, ()), found, flow)
        here = connection.port in spooled
        _application(connection, lives.get(connection.port, ()), count, events, found, flow, here=here)
        numbers[connection.sensor].append(range(connection.first, connection.first + count))
    for sensor, ranges in numbers.items():
        _without_gaps(sensor, ranges, found)
    return found


def _log(connection: Connection, rows: Sequence[Row], found: Healed, flow: Flow) -> int:
    """How many messages the log has of it."""
    whose = f"log, port {connection.port} of sensor {connection.sensor}"
    for place, (offset, number) in enumerate(rows):
        if (offset, number) != (place, connection.first + place):
            found.faults.append(
                f"{whose}: message {number} at {offset} instead of {connection.first + place}"
            )
            break
    acknowledged = flow.whole(connection.first, connection.acknowledged)
    found.acknowledged += acknowledged
    found.logged += len(rows)
    if len(rows) < acknowledged:
        found.faults.append(f"{whose}: {acknowledged - len(rows)} of {acknowledged} acknowledged are missing")
    if connection.how and len(rows) > (sent := flow.begun(connection.first, connection.sent)):
        found.faults.append(f"{whose}: {len(rows)} of {sent} that were sent")
    return len(rows)


def _application(
    connection: Connection,
    lives: Sequence[np.ndarray],
    logged: int,
    events: Sequence[Event],
    found: Healed,
    flow: Flow,
    *,
    here: bool,
) -> None:
    whose = f"application, port {connection.port} of sensor {connection.sensor}"
    places: set[int] = set()
    for rows in lives:
        messages = rows[rows["committed"] == 0]
        offsets, remainders = np.divmod(messages["offset"].astype(np.int64), flow.unit)
        wrong = messages["number"] != connection.first + offsets
        if wrong.any() or remainders.any() or not (messages["sensor"] == connection.sensor).all():
            found.faults.append(f"{whose}: another message than was sent")
        if (np.diff(offsets) != 1).any():
            found.faults.append(f"{whose}: repeated, missing or out of order within a life")
        places.update(offsets.tolist())
    found.delivered += len(places)
    if places == set(range(logged)):
        return
    cut = any(
        event.what == HARDWORKER_OUT
        and event.begin - _SEEN <= (connection.ended or event.begin)
        and connection.opened <= event.end + _SEEN
        for event in events
    )
    if cut and places < set(range(logged)):
        found.only_logged += logged - len(places)
    elif (
        (here or cut) and connection.how != "clean" and places == set(range(len(places))) > set(range(logged))
    ):
        found.only_delivered += len(places) - logged
    else:
        found.faults.append(f"{whose}: {len(places)} messages, and the log has {logged}")


def _without_gaps(sensor: int, ranges: list[range], found: Healed) -> None:
    """Over all connections of a client's life every number, the first to the last, is in the log."""
    lives: defaultdict[int, list[range]] = defaultdict(list)
    for numbers in ranges:
        lives[numbers.start // LIFE].append(numbers)
    for life, pieces in lives.items():
        reached = life * LIFE
        for numbers in sorted(pieces, key=lambda numbers: numbers.start):
            if numbers.start > reached:
                found.faults.append(f"log, sensor {sensor}: {reached} to {numbers.start - 1} are missing")
            found.again += max(0, min(reached, numbers.stop) - numbers.start)
            reached = max(reached, numbers.stop)
