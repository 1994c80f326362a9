"""The hardworker's program against midstream.packet, which shares no line with it, on random headers."""

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.program.bench import TOPOLOGY, XDP_DROP, XDP_PASS, XDP_TX, Bench, Sensor
from tests.support.examples import examples

from midstream import packet
from midstream.packet import Flags, Packet


@st.composite
def changed_headers(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Any bytes of the headers but the sequence number and the sensor's port, and any length."""
    positions = st.integers(0, 53).filter(lambda position: not (34 <= position < 36 or 38 <= position < 42))
    # Small changes of real values come further than random bytes, which are almost always somebody else's.
    changes = draw(
        st.lists(st.tuples(positions, st.integers(0, 255) | st.sampled_from([1, 2, 4, 8, 16])), max_size=4)
    )
    length = draw(st.none() | st.integers(14, 80))
    flags = draw(st.none() | st.integers(0, 255))

    def change(frame: bytes) -> bytes:
        changed = bytearray(frame)
        for position, value in changes:
            changed[position] ^= value
        if flags is not None:
            changed[47] = flags
        return bytes(changed[:length])

    return change


@settings(max_examples=examples(150))
@given(change=changed_headers(), size=st.integers(0, 30))
def test_judged_alike(session_bench: Bench, change: Callable[[bytes], bytes], size: int) -> None:
    sensor = Sensor(session_bench)
    sensor.open()
    frame = change(sensor.frame(Flags.ACK, 0, random.Random(size).randbytes(size)))
    before = session_bench.counters()
    verdict, output = session_bench.run(frame)
    counted = session_bench.counters() - before
    stored = session_bench.ring.take()

    action = packet.judge(frame, TOPOLOGY).action
    assert verdict == {"relay": XDP_TX, "pass": XDP_PASS, "drop": XDP_DROP}[action]
    assert output == (packet.rewrite(frame, TOPOLOGY) if action == "relay" else frame)
    assert counted.total() <= 1
    if action == "relay":
        assert counted.total() == 1
        parsed = Packet.parse(frame)
        if parsed.payload and not parsed.tcp.flags & Flags.RST:
            assert [record.payload for record in stored] == [parsed.payload]
    else:
        assert not stored
