"""Zenoh (eclipse-zenoh): peers over TCP without scouting; hardworker and logger both subscribe.

Reliable, and a publisher that waits where it could drop (CongestionControl.BLOCK). Batching stays on, as
the documentation recommends for throughput; the callback runs in Zenoh's own thread.
"""

import json
import time
from collections.abc import Callable

import zenoh

from midstream_bench.middlewares.middleware import PATIENCE, TICK, Ends, Take

_KEY = "midstream"
# milliseconds: after which a silent peer is given up, and is asked; for which a batch waits for more
_LEASE, _ASK, _BATCH = 600_000, 2_500, 1


class Peers:
    """Sensors connect to hardworker and logger."""

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        _subscribe(ends.address, ends, take, ready, stopped)

    def log(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        _subscribe(ends.logger, ends, take, ready, stopped)

    def connect(self, ends: Ends) -> "_Sender":
        return _Sender(ends)


class _Sender:
    def __init__(self, ends: Ends) -> None:
        hosts = [f"tcp/{address}:{ends.port}" for address in (ends.address, ends.logger)]
        self._sessions = [zenoh.open(_config(ends.slow, connect=hosts)) for _ in range(ends.sensors)]
        self._publishers = [
            session.declare_publisher(
                f"{_KEY}/{number}",
                congestion_control=zenoh.CongestionControl.BLOCK,
                reliability=zenoh.Reliability.RELIABLE,
            )
            for number, session in enumerate(self._sessions)
        ]
        deadline = time.monotonic() + PATIENCE
        while not (
            all(len(session.info.peers_zid()) == len(hosts) for session in self._sessions)
            and all(publisher.matching_status for publisher in self._publishers)
        ):
            if time.monotonic() > deadline:
                raise TimeoutError("Zenoh: a subscriber is missing")
            time.sleep(TICK)
        time.sleep(1)  # matching tells of one subscriber; both peers are there, and tell of theirs soon

    def send(self, sensor: int, message: bytes) -> None:
        self._publishers[sensor].put(message)

    def close(self) -> None:
        time.sleep(TICK)
        for session in self._sessions:
            session.close()  # type: ignore[no-untyped-call]  # zenoh's stubs forgot it


def _subscribe(
    address: str,
    ends: Ends,
    take: Take,
    ready: Callable[[], None],
    stopped: Callable[[], bool],
) -> None:
    def callback(sample: zenoh.Sample) -> None:
        take(sample.payload.to_bytes())

    with zenoh.open(_config(ends.slow, listen=[f"tcp/{address}:{ends.port}"])) as session:
        session.declare_subscriber(f"{_KEY}/*", callback)
        ready()
        while not stopped():
            time.sleep(TICK)


def _config(slow: int, **ends: list[str]) -> zenoh.Config:
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("peer"))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("scouting/gossip/enabled", "false")
    # In slow motion a peer is silent for longer than the usual ten seconds; it is asked as often as ever.
    config.insert_json5("transport/link/tx/lease", str(_LEASE))
    config.insert_json5("transport/link/tx/keep_alive", str(_LEASE // (_ASK * slow)))
    config.insert_json5("transport/link/tx/queue/batching/time_limit", str(_BATCH * slow))
    for kind in ("listen", "connect"):
        config.insert_json5(f"{kind}/endpoints", json.dumps(ends.get(kind, [])))
    return config
