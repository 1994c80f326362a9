"""Each message with the time at which it came to the hardworker, where a hardworker has told it."""

from collections.abc import Sequence

from midstream.storage.stored import Arrival, Log, StoredMessage
from midstream.told import STEP


def with_arrivals(log: Log, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
    """Messages of one connection, in order. One that is read right after it was logged has none yet: the
    hardworker tells what has come once a second."""
    first, end = messages[0], messages[-1].end
    if first.connection.first is None or first.offset is None or end is None:
        return list(messages)
    steps = []
    for told in log.arrivals(first.connection, first.offset, end, first.received_ns):
        at, moment = told.start, told.time_ns
        for size, passed in STEP.iter_unpack(told.steps):
            moment += passed
            steps.append((at + size, moment, at, told))
            at += size
    steps.sort(key=lambda step: step[:2])
    found, place = [], 0
    for message in messages:
        arrival = None
        if message.end is not None:
            while place < len(steps) and steps[place][0] < message.end:
                place += 1
            if place < len(steps) and steps[place][2] < message.end:
                _, moment, _, told = steps[place]
                delay = message.received_ns - moment - told.ahead_ns
                arrival = Arrival(moment, delay, told.error_ns)
        found.append(message._replace(arrival=arrival))
    return found
