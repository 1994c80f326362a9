"""Each message with the time at which it came to the hardworker, where a hardworker has told it."""

from collections.abc import Sequence

from midstream.storage.stored import Arrival, Log, StoredMessage
from midstream.told import ArrivalTimes


def with_arrivals(log: Log, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
    """Messages of one connection, in order. One that is read right after it was logged has none yet: the
    hardworker tells what has come once a second."""
    first, end = messages[0], messages[-1].end
    if first.connection.first is None or first.offset is None or end is None:
        return list(messages)
    told = log.arrivals(first.connection, first.offset, end, first.received_ns)
    if not told:
        return list(messages)
    arrivals = _arrivals(told, messages)
    return [
        StoredMessage(*message[:-1], arrival) for message, arrival in zip(messages, arrivals, strict=True)
    ]


def _arrivals(told: Sequence[ArrivalTimes], messages: Sequence[StoredMessage]) -> list[Arrival | None]:
    """Of each message, by the step that its last byte came with: of several the earliest. What came by the
    hardworker's spool was received by the hardworker's clock, too; some of its connection maybe not."""
    import numpy as np  # here: not every reader needs it

    steps = [np.frombuffer(each.steps, "<u4").reshape(-1, 2).astype("i8") for each in told]
    counts = [len(each) for each in steps]
    start, time, ahead, error = (
        np.repeat(values, counts)
        for values in zip(
            *((each.start, each.time_ns, each.ahead_ns, each.error_ns) for each in told), strict=True
        )
    )
    behind = start + np.concatenate([each[:, 0].cumsum() for each in steps])
    time += np.concatenate([each[:, 1].cumsum() for each in steps])
    order = np.lexsort((time, behind))
    last = np.array([-1 if (end := message.end) is None else end for message in messages])
    places = np.minimum(np.searchsorted(behind[order], last), len(order) - 1)
    step = order[places]
    sizes = np.concatenate([each[:, 0] for each in steps])[step]
    holds = (behind[step] - sizes < last) & (last <= behind[step])
    if messages[0].connection.spooled:
        ahead, error = np.zeros_like(ahead), error + abs(ahead)
    received = np.array([message.received_ns for message in messages])
    delays = received - time[step] - ahead[step]
    values = zip(holds.tolist(), time[step].tolist(), delays.tolist(), error[step].tolist(), strict=True)
    return [Arrival(*found) if known else None for known, *found in values]
