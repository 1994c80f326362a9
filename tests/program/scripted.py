"""TCP clients that do what they are told, segment by segment, and what TCP clients may be told.

A client takes the place of a sensor whose address no stack of its host has: `placed` takes it off, so no
reset disturbs the script. Every script opens one connection and ends it.
"""

import random
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import packet
from midstream.network import Topology
from midstream.packet import Flags, Packet

ACK, CWR, ECE, FIN, PSH, RST, SYN, URG = (
    Flags[name] for name in ("ACK", "CWR", "ECE", "FIN", "PSH", "RST", "SYN", "URG")
)
PATIENCE = 10.0  # seconds for an answer
AGAIN = 0.05  # seconds after which something is sent again
LENGTH = 400  # bytes of a stream
_ETH_P_IP = 0x0800


class Leg(Protocol):
    """A packet socket, or what stands for one."""

    def send(self, frame: bytes, /) -> object: ...
    def recv(self, size: int, /) -> bytes: ...
    def fileno(self) -> int: ...


@dataclass
class Client:
    """One connection from a sensor. Positions are offsets in `data`, the stream."""

    topology: Topology
    sensor: int
    port: int
    data: bytes
    isn: int
    wire: Leg
    options: Callable[[], bytes] = bytes  # of every segment behind the handshake
    irs: int = 0  # the peer's first number
    acked: int = -1  # up to this position the peer has acknowledged
    received: int = 1  # what the peer has sent takes so many numbers: its SYN, perhaps its FIN
    stamp: int = 0  # the peer's last timestamp
    reset: bool = field(default=False)

    def send(
        self, position: int, length: int = 0, flags: Flags = ACK | PSH, *, urgent: int = 0, **fields: Any
    ) -> None:
        """A segment with so many bytes of the stream, or with `payload`."""
        payload = fields.pop("payload", self.data[max(0, position) : max(0, position + length)])
        fields.setdefault("tcp_options", self.options())
        fields.setdefault("ack", self.irs + self.received)
        frame = packet.craft(
            self.topology,
            self.sensor,
            flags,
            self.isn + 1 + position,
            payload=payload,
            peer_port=self.port,
            **fields,
        )
        if urgent:
            parsed = Packet.parse(frame)
            frame = replace(parsed, tcp=replace(parsed.tcp, urgent=urgent)).with_checksums().pack()
        self.wire.send(frame)

    def connect(
        self, *, flags: Flags = SYN, options: bytes = b"", answer: bool = True, **fields: Any
    ) -> None:
        """Until the peer has answered the SYN; answer: and acknowledge that."""
        self.until(
            lambda: self.acked >= 0, lambda: self.send(-1, flags=flags, tcp_options=options, ack=0, **fields)
        )
        if answer:
            self.send(0, flags=ACK)

    def settle(self, end: int | None = None, size: int = 100) -> None:
        """Send what the peer has not acknowledged, in order and again, until it has all up to `end`."""
        end = len(self.data) if end is None else end

        def rest() -> None:
            for position in range(self.acked, end, size):
                self.send(position, min(size, end - position))

        self.until(lambda: self.acked >= end, rest)

    def finish(self, position: int | None = None) -> None:
        """A FIN behind the stream, until the peer has sent its own."""
        end = len(self.data) if position is None else position
        self.until(
            lambda: self.reset or (self.acked > end and self.received == 2),
            lambda: self.send(end, flags=FIN | ACK),
        )
        self.send(end + 1, flags=ACK)

    def until(self, done: Callable[[], bool], act: Callable[[], None]) -> None:
        deadline, again = time.monotonic() + PATIENCE, 0.0
        while not done():
            now = time.monotonic()
            assert now < deadline, f"no answer to {self}"
            if now >= again:
                act()
                again = now + AGAIN
            self.listen(AGAIN / 5)

    def listen(self, seconds: float = 0.01) -> None:
        """Take what the peer has sent."""
        while select.select([self.wire], [], [], seconds)[0]:
            seconds = 0
            frame = self.wire.recv(4096)
            if len(frame) < 54 or frame[12:14] != b"\x08\0" or frame[23] != socket.IPPROTO_TCP:
                continue
            parsed = Packet.parse(frame)
            if parsed.tcp.destination_port == self.port and parsed.ip.source == self.topology.hardworker.ip:
                self.take(parsed)

    def take(self, answer: Packet) -> None:
        tcp = answer.tcp
        if RST in tcp.flags:
            self.reset = True
            return
        if SYN in tcp.flags:
            self.irs = tcp.sequence
        place = tcp.options.find(b"\x08\x0a")
        if place >= 0:
            (self.stamp,) = struct.unpack_from("!I", tcp.options, place + 2)
        self.acked = max(self.acked, (tcp.acknowledgment - self.isn - 1 + 2**31) % 2**32 - 2**31)
        if FIN in tcp.flags:
            self.received = 2

    def stamps(self) -> bytes:
        """Timestamps, as RFC 7323 recommends them."""
        now = time.monotonic_ns() // 10**6 % 2**32
        return struct.pack("!BBBBII", 1, 1, 8, 10, now, self.stamp)


# What a client may do. Each opens, sends all of its stream and ends, unless it says otherwise.


def plain(client: Client) -> None:
    client.connect()
    client.settle()
    client.finish()


def flagged(flags: Flags) -> Callable[[Client], None]:
    """Every segment has these flags."""

    def script(client: Client) -> None:
        client.connect()
        for position in range(0, LENGTH, 50):
            client.send(position, 50, flags | ACK)
        client.settle()
        client.finish()

    return script


def urgent(pointers: list[int], length: int = 50) -> Callable[[Client], None]:
    """Urgent data: the pointer is the place behind the urgent byte, counted from the segment's start."""

    def script(client: Client) -> None:
        client.data = client.data[: 50 * length]
        client.connect()
        for number, position in enumerate(range(0, len(client.data), length)):
            client.send(position, length, ACK | PSH | URG, urgent=pointers[number % len(pointers)])
        client.settle()
        client.finish()

    return script


def urgent_end(client: Client) -> None:
    """The last byte is urgent, and has the FIN too."""
    client.connect()
    client.settle(LENGTH - 10)
    client.send(LENGTH - 10, 10, ACK | FIN | URG, urgent=10)
    client.settle()
    client.finish()


def urgent_behind_a_hole(client: Client) -> None:
    client.connect()
    client.send(200, 100, ACK | URG, urgent=100)
    client.send(100, 100, ACK | URG, urgent=1)
    client.settle()
    client.finish()


def with_options(options: bytes, later: bytes = b"") -> Callable[[Client], None]:
    def script(client: Client) -> None:
        client.options = lambda: later
        client.connect(options=options)
        client.settle()
        client.finish()

    return script


def with_timestamps(client: Client) -> None:
    syn = client.stamps()
    client.options = client.stamps
    client.connect(options=syn)
    client.settle(size=30)
    client.finish()


def congested(client: Client) -> None:
    """ECN asked for, and congestion seen on the way (RFC 3168)."""
    client.connect(flags=SYN | ECE | CWR)
    for position in range(0, LENGTH, 40):
        client.send(position, 40, ACK | CWR, tos=client.topology.tos | 3)
    client.settle()
    client.finish()


def single_bytes(client: Client) -> None:
    client.data = client.data[:100]
    client.connect(options=b"\2\4\0\x40")  # the longest segment is 64 bytes
    client.settle(size=1)
    client.finish()


def data_at_once(client: Client) -> None:
    """The handshake's acknowledgement is the first data."""
    client.connect(answer=False)
    client.settle()
    client.finish()


def all_with_fin(client: Client) -> None:
    client.connect()
    client.send(0, LENGTH, ACK | FIN)
    client.finish()


def fin_first(client: Client) -> None:
    """The end of the stream overtakes its data."""
    client.connect()
    client.send(LENGTH, 0, FIN | ACK)
    client.listen()
    client.settle()
    client.finish()


def fin_with_data_first(client: Client) -> None:
    client.connect()
    client.send(LENGTH - 100, 100, FIN | ACK)
    client.listen()
    client.settle()
    client.finish()


def beyond_the_end(client: Client) -> None:
    client.connect()
    client.settle()
    client.send(LENGTH, 0, FIN | ACK)
    client.send(LENGTH, payload=b"more")
    client.send(LENGTH + 1, payload=b"and more")
    client.finish()


def half_closed(client: Client) -> None:
    """Long after its FIN it still answers."""
    client.connect()
    client.settle()
    client.send(LENGTH, 0, FIN | ACK)
    for _ in range(5):
        client.listen()
        client.send(LENGTH + 1, flags=ACK)
    client.finish()


def nothing(client: Client) -> None:
    """A stream without a byte."""
    client.connect()
    client.data = b""
    client.finish()


def keepalives(client: Client) -> None:
    """With one byte, which need not be the stream's (RFC 9293, section 3.8.4), and without."""
    client.connect()
    for position in (0, 100, 200, LENGTH):
        client.settle(position)
        client.send(position - 1, payload=b"?")
        client.send(position - 1, flags=ACK)
        client.listen()
    client.finish()


def no_window(client: Client) -> None:
    """It can take nothing of its peer, which has nothing to say."""
    client.connect()
    for position in range(0, LENGTH, 50):
        client.send(position, 50, window=0)
    client.settle()
    client.finish()


def in_reverse(client: Client) -> None:
    client.connect()
    for position in range(LENGTH - 100, -100, -100):
        client.send(position, 100)
    client.settle()
    client.finish()


def twice(client: Client) -> None:
    client.connect()
    for _ in range(2):
        for position in range(0, LENGTH, 100):
            client.send(position, 100)
    client.settle()
    client.finish()


def other_segments(client: Client) -> None:
    """Sent again in segments with other boundaries, behind a hole and across it."""
    client.connect()
    for position, length in ((150, 100), (100, 100), (50, 120), (300, 50), (140, 180), (20, 200), (0, 60)):
        client.send(position, length)
    client.settle()
    client.finish()


def contradictions(seed: int) -> Callable[[Client], None]:
    """A faulty sensor: every segment has other bytes, and they overlap at random; the end is honest."""

    def script(client: Client) -> None:
        numbers = random.Random(seed)
        client.connect()
        for _ in range(60):
            position = client.acked + numbers.choice([0, 1, 5, 20, 50])
            length = min(numbers.randrange(1, 80), LENGTH - position)
            if length > 0:
                client.send(position, payload=numbers.randbytes(length))
            client.listen(0.002)
        client.settle(size=7)
        client.finish()

    return script


def contradictions_with_fin(client: Client) -> None:
    """The same of the end: data with it, upon data without it."""
    client.connect()
    client.send(LENGTH - 50, payload=b"A" * 50)
    client.send(LENGTH - 50, payload=b"B" * 50, flags=ACK | FIN)
    client.send(LENGTH - 60, payload=b"C" * 60, flags=ACK | FIN)
    client.send(LENGTH - 70, payload=b"D" * 50)
    client.listen()
    client.settle()
    client.finish()


def a_before_b(client: Client) -> None:
    """Behind a hole A = [150, 200) and then B = [100, 230) with other bytes; then the hole."""
    client.connect()
    client.send(150, payload=b"A" * 50)
    client.send(100, payload=b"B" * 130)
    client.settle()
    client.finish()


def reset_in_the_middle(client: Client) -> None:
    """When all so far is acknowledged."""
    client.connect()
    client.settle(200)
    client.send(200, flags=RST)


def reset_behind_data(client: Client) -> None:
    """At once behind it."""
    client.connect()
    client.settle(200)
    client.send(200, 150)
    client.send(350, flags=RST)


def reset_with_ack(client: Client) -> None:
    client.connect()
    client.settle(200)
    client.send(100, flags=RST | ACK)  # not in sequence: challenged
    client.settle(300)
    client.send(300, flags=RST | ACK)


def data_in_the_syn(client: Client) -> None:
    """TCP Fast Open without a cookie (RFC 7413); what is not acknowledged comes again."""
    client.send(-1, flags=SYN, tcp_options=b"\x22\2\1\1", ack=0, payload=client.data[:100])
    client.listen()
    client.connect(options=b"\x22\2\1\1")
    client.settle()
    client.finish()


def syn_again(client: Client) -> None:
    """Upon the open connection: the same, and one with another number."""
    client.connect()
    client.settle(100)
    client.send(-1, flags=SYN, ack=0)
    client.send(5000, flags=SYN, ack=0)
    client.listen()
    client.settle()
    client.finish()


SCRIPTS: dict[str, Callable[[Client], None]] = {
    "plain": plain,
    "no PSH": flagged(ACK),
    "every flag of congestion": flagged(PSH | ECE | CWR),
    "URG without a pointer": flagged(PSH | URG),
    "urgent, the last byte": urgent([50]),
    "urgent, the first byte": urgent([1]),
    "urgent, in the middle": urgent([25]),
    "urgent, behind the segment": urgent([80, 1000]),
    "urgent, single bytes": urgent([1], 1),
    "urgent, here and there": urgent([3, 50, 17, 1]),
    "urgent, with FIN": urgent_end,
    "urgent, behind a hole": urgent_behind_a_hole,
    "timestamps": with_timestamps,
    "window scale, SACK, MSS": with_options(b"\2\4\5\xb4\3\3\x0e\1\4\2\1\1"),
    "an unknown option": with_options(b"\xfd\4\1\2", b"\xfd\4\1\2"),
    "only padding": with_options(b"\1\1\1\0", b"\1" * 40),
    "ECN": congested,
    "single bytes": single_bytes,
    "data at once": data_at_once,
    "all with FIN": all_with_fin,
    "FIN first": fin_first,
    "FIN with data first": fin_with_data_first,
    "beyond the end": beyond_the_end,
    "half-closed": half_closed,
    "nothing": nothing,
    "keep-alives": keepalives,
    "no window": no_window,
    "in reverse": in_reverse,
    "twice": twice,
    "other segments": other_segments,
    "contradictions": contradictions(1),
    "more contradictions": contradictions(2),
    "contradictions with FIN": contradictions_with_fin,
    "A before B": a_before_b,
    "a reset in the middle": reset_in_the_middle,
    "a reset behind data": reset_behind_data,
    "a reset with ACK": reset_with_ack,
    "data in the SYN": data_in_the_syn,
    "SYN again": syn_again,
}


def placed(address: str) -> None:
    """Take the address off this host's eth0: clients speak for it."""
    with IPRoute() as ipr:
        ipr.addr("del", index=ipr.link_lookup(ifname="eth0")[0], address=address, prefixlen=24)


def play(name: str, topology: Topology, sensor: int, port: int) -> bytes:
    """Run a script on this host; the stream of its client."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP)) as wire:
        wire.bind(("eth0", _ETH_P_IP))
        return play_on(wire, name, topology, sensor, port)


def play_on(wire: Leg, name: str, topology: Topology, sensor: int, port: int) -> bytes:
    """The same where the frames go another way."""
    numbers = random.Random(name)
    client = Client(topology, sensor, port, numbers.randbytes(LENGTH), numbers.randrange(2**32), wire)
    SCRIPTS[name](client)
    client.listen(0.02)
    return client.data
