"""One side of a middleware: `python -m midstream_bench.middlewares NAME SIDE ENDS [PLANS]`.

SIDE is receive, log or send. ENDS is a JSON object, the fields of middleware.Ends; for send PLANS is a list
of objects, each the fields of a load.Plan. Each connection of the plans has a topic of its own. A sender
connects, says ready, and begins at the time (time.monotonic_ns) that it reads from standard input.
"""

import json
import sys
import time
from typing import Any

import numpy as np

from midstream.load import JointPlan, Plan
from midstream.load import message as wire
from midstream_bench.middlewares import Ends, Middleware
from midstream_bench.middlewares import load as load_middleware
from midstream_bench.middlewares.work import CONNECTION_SHIFT, Work


def main(name: str, side: str, ends: str, plans: str = "[]") -> None:
    """Run one side."""
    middleware = load_middleware(name)
    work = Work()
    work.listen()
    if side == "send":
        send(
            middleware,
            Ends(**json.loads(ends)),
            JointPlan([Plan(**each) for each in json.loads(plans)]),
            work,
        )
        return
    run = middleware.receive if side == "receive" else middleware.log
    run(Ends(**json.loads(ends)), work.take, work.ready, lambda: work.stopped)
    work.report()


def send(middleware: Middleware, ends: Ends, plan: JointPlan, work: Work) -> None:
    """Send a plan's messages at their times, then print what `Load` says at its end."""
    events = np.concatenate(list(plan.events()))
    fillers = _fillers(events)
    connections, times = events["connection"].tolist(), events["at"].tolist()
    counts = [0] * plan.sensors
    late = np.zeros(len(times), np.int64)
    sender = middleware.connect(ends)
    work.ready()
    start = int(sys.stdin.readline())
    first = last = 0
    for index, (connection, due) in enumerate(zip(connections, times, strict=True)):
        while (left := start + due - time.monotonic_ns()) > 0 and not work.stopped:
            time.sleep(left / 1e9)
        if work.stopped:
            break
        last = time.monotonic_ns()
        first = first or last
        late[index] = last - start - due
        number = connection << CONNECTION_SHIFT | counts[connection]
        head = number.to_bytes(8, "little") + time.time_ns().to_bytes(8, "little")
        sender.send(connection, head + fillers[index])
        counts[connection] += 1
    sender.close()
    print(json.dumps(_summary(counts, late, (last - first) / 1e9)), flush=True)


def _fillers(events: np.ndarray) -> list[bytes]:
    """What follows the head of each message: made before anything is sent."""
    found = [b""] * len(events)
    for connection in np.unique(events["connection"]).tolist():
        (places,) = np.nonzero(events["connection"] == connection)
        sizes = events["size"][places]
        for size in np.unique(sizes).tolist():
            (numbers,) = np.nonzero(sizes == size)
            every = wire.filler(connection, numbers, size)
            for place, filler in zip(places[numbers].tolist(), every, strict=True):
                found[place] = filler.tobytes()
    return found


def _summary(counts: list[int], late: np.ndarray, seconds: float) -> dict[str, Any]:
    sent = late[: sum(counts)] / 1e3
    names = ("late_p50_us", "late_p99_us", "late_p999_us", "late_max_us")
    quantiles = np.percentile(sent, [50, 99, 99.9, 100]).tolist() if len(sent) else [0.0] * 4
    return {
        "messages": sum(counts),
        "seconds": seconds,
        "connections": [{"messages": count} for count in counts],
        **dict(zip(names, quantiles, strict=True)),
    }


main(*sys.argv[1:])
