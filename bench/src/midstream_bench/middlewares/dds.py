"""DDS (Cyclone DDS): a reliable topic over UDP, to which hardworker and logger subscribe.

Peers are named instead of searched for by multicast.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cyclonedds.core import InstanceState, Policy, Qos, ReadCondition, SampleState, ViewState, WaitSet
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, uint8
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from midstream_bench.middlewares.middleware import PATIENCE, TICK, Ends, Take

_CONFIG = """\
<CycloneDDS><Domain>
  <General>
    <Interfaces><NetworkInterface name="eth0"/></Interfaces>
    <AllowMulticast>false</AllowMulticast>
  </General>
  <Discovery>
    <ParticipantIndex>auto</ParticipantIndex>
    <MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>
    <Peers>{peers}</Peers>
  </Discovery>
  <Internal>
    <HeartbeatInterval minsched="{soon}ms" min="{least}ms" max="{most}ms">{beat}ms</HeartbeatInterval>
    <AckDelay>{ack}ms</AckDelay>
    <PreEmptiveAckDelay>{ack}ms</PreEmptiveAckDelay>
  </Internal>
</Domain></CycloneDDS>
"""
# milliseconds: the library's own values
_TIMERS = {"beat": 100, "soon": 20, "least": 5, "most": 8_000, "ack": 10}
_NEW = SampleState.NotRead | ViewState.Any | InstanceState.Any
_MOST = 256  # samples taken at once


@cache
def _kind(size: int) -> type[Any]:
    """The type of a message of `size` bytes: an array of bytes, which the library copies as a whole."""

    @dataclass
    class Sample(IdlStruct, typename="midstream.Sample"):
        payload: array[uint8, size]  # type: ignore[type-arg,valid-type]  # made at run time

    return Sample


class Reliable:
    """Reliable, and with a history that drops nothing."""

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        participant = _participant(ends)
        reader = DataReader(participant, _topic(participant, ends.size))
        waitset = WaitSet(participant)
        waitset.attach(ReadCondition(reader, _NEW))
        kind = _kind(ends.size)
        ready()
        while not stopped():
            waitset.wait(duration(seconds=TICK))
            while samples := reader.take(_MOST):
                for sample in samples:
                    if isinstance(sample, kind):  # and not the news that a writer is gone
                        take(bytes(sample.payload))

    log = receive

    def connect(self, ends: Ends) -> "_Sender":
        return _Sender(ends)


class _Sender:
    def __init__(self, ends: Ends) -> None:
        self._kind = _kind(ends.size)
        self._participants = [_participant(ends) for _ in range(ends.sensors)]
        self._writers = [DataWriter(each, _topic(each, ends.size)) for each in self._participants]
        deadline = time.monotonic() + PATIENCE
        while any(len(writer.get_matched_subscriptions()) < 2 for writer in self._writers):
            if time.monotonic() > deadline:
                raise TimeoutError("DDS: a subscriber is missing")
            time.sleep(TICK)

    def send(self, sensor: int, message: bytes) -> None:
        self._writers[sensor].write(self._kind(message))

    def close(self) -> None:
        for writer in self._writers:
            writer.wait_for_acks(duration(seconds=PATIENCE))


def _participant(ends: Ends) -> DomainParticipant:
    hosts = (ends.sensor, ends.address, ends.logger)
    peers = "".join(f'<Peer address="{host}"/>' for host in hosts)
    os.environ["CYCLONEDDS_URI"] = _CONFIG.format(
        peers=peers, **{name: value * ends.slow for name, value in _TIMERS.items()}
    )
    return DomainParticipant(0)


def _topic(participant: DomainParticipant, size: int) -> "Topic[Any]":
    reliable = Policy.Reliability.Reliable(duration(seconds=PATIENCE))
    return Topic(participant, "midstream", _kind(size), Qos(reliable, Policy.History.KeepAll))
