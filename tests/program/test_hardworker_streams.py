"""The hardworker's program, connection by connection: what it holds of a stream, and what it refuses.

A history is a list of packets on one connection. Each is played from several places in the 32 bits of the
sequence numbers and in the 64 bits of a stream, so every case is also one of wrapping around.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.program.bench import Bench, Sensor

from midstream.ebpf import records
from midstream.packet import Flags

ACK, FIN, SYN, RST, PSH = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST, Flags.PSH
WINDOW = 1 << 20  # how far behind a hole data is held
RANGES = 8  # and in how many ranges

FULL = ", ".join(f"out_of_order {20 * i + 10}:{20 * i + 20}" for i in range(RANGES))
"""Nothing at the start, and every range in use: 10:20, 30:40, … 150:160."""
REVERSED = ", ".join(FULL.split(", ")[::-1])

# Each packet is written as: outcome, the bytes of the stream that it holds, and
#   fin, rst, syn, ack   flags; ACK alone if none is named (and with fin)
#   other                its bytes are not those that other packets have in the same place
HISTORIES = {
    # in order
    "data in order": "stored 0:1, stored 1:65, stored 65:1065, stored 1065:2525",
    "bare acknowledgements": "pure_ack 0, stored 0:10, pure_ack 10, pure_ack 10, pure_ack 0, pure_ack 11",
    # known already
    "a duplicate": "stored 0:100, duplicate 0:100, duplicate 0:100, stored 100:200",
    "a duplicate with other bytes": "stored 0:100, duplicate 0:100 other, stored 100:101",
    "a duplicate of a part": (
        "stored 0:100, duplicate 0:50, duplicate 50:100, duplicate 99:100, duplicate 20:30"
    ),
    "sent again in other segments": (
        "stored 0:100, stored 100:200, duplicate 50:150, duplicate 0:200, stored 200:300"
    ),
    "a keep-alive": "pure_ack -1, stored 0:100, pure_ack 99, pure_ack -1, stored 100:101",
    "a keep-alive with a byte": "duplicate -1:0, stored 0:100, duplicate 99:100, duplicate 99:100 other",
    "a window probe with a new byte": "stored 0:100, stored 100:101, duplicate 100:101, stored 101:200",
    "a SYN again": "duplicate -1 syn, stored 0:10, duplicate -1 syn, stored 10:20",
    # partly known
    "old and new": "stored 0:100, stored 50:150 other, stored 150:151",
    "old and one new byte": "stored 0:100, stored 0:101 other, duplicate 0:101",
    "old and new, again and again": "stored 0:10, "
    + ", ".join(f"stored 0:{end}" for end in range(20, 200, 10)),
    "old and new, a full segment": "stored 0:1460, stored 1:1461, stored 1461:2921",
    # a hole
    "a hole, filled": "stored 0:100, out_of_order 200:300, stored 100:200, duplicate 0:300, stored 300:400",
    "a hole at the start": "out_of_order 1:100, stored 0:1, stored 100:200",
    "a hole, filled in parts": (
        "out_of_order 100:200, stored 0:40, stored 40:99, stored 99:100, stored 200:201"
    ),
    "a hole, filled with more than it holds": (
        "out_of_order 100:200, stored 0:150 other, duplicate 150:200, stored 200:210"
    ),
    "a hole, filled with all there is": "out_of_order 100:200, stored 0:300 other, stored 300:310",
    "a hole, filled with old and new": ("stored 0:50, out_of_order 100:200, stored 20:120, stored 200:210"),
    "early data again": (
        "out_of_order 100:200, out_of_window 100:200, out_of_window 120:180, out_of_window 100:101 other, "
        "stored 0:100, duplicate 100:200"
    ),
    "early data, overlapping in front": (
        "out_of_order 100:200, out_of_window 50:150 other, out_of_order 50:100, stored 0:50, "
        "duplicate 50:150 other, stored 200:210"
    ),
    "early data, overlapping behind": (
        "out_of_order 100:200, out_of_window 150:250 other, stored 0:100, stored 150:250 other, "
        "stored 250:260"
    ),
    "early data, overlapping on both sides": (
        "out_of_order 100:200, out_of_window 50:250 other, out_of_window 99:201, stored 0:50, "
        "stored 50:250 other, stored 250:260"
    ),
    "early data that touches": (
        "out_of_order 100:200, out_of_order 200:300, out_of_order 50:100, out_of_window 50:300, "
        "stored 0:50, duplicate 50:300, "
        "stored 300:301"
    ),
    "early data that joins two ranges": (
        "out_of_order 100:200, out_of_order 300:400, out_of_order 200:300, out_of_window 100:400, "
        "stored 0:100, stored 400:401"
    ),
    "early data that covers all ranges": (
        f"{FULL}, out_of_window 5:170 other, out_of_window 200:210, stored 0:165 other, "
        "out_of_order 200:210, stored 165:200"
    ),
    "two holes, the first filled first": (
        "out_of_order 10:20, out_of_order 30:40, stored 0:10, stored 20:30, stored 40:50"
    ),
    "two holes, the second filled first": (
        "out_of_order 10:20, out_of_order 30:40, out_of_order 20:30, stored 0:10, stored 40:50"
    ),
    "a hole, filled up to the next": (
        "out_of_order 10:20, out_of_order 30:40, stored 0:25, duplicate 20:25, stored 25:30, stored 40:41"
    ),
    "all in reverse": ", ".join(f"out_of_order {i}:{i + 1}" for i in range(9, 0, -1))
    + ", stored 0:1, stored 10:11",
    # more than is kept track of
    "most ranges, filled in order": f"{FULL}, "
    + ", ".join(f"stored {20 * i}:{20 * i + 10}" for i in range(RANGES))
    + ", stored 160:170",
    "one range too many": (
        f"{FULL}, out_of_window 170:180, out_of_window 1:2, out_of_window 25:26, stored 0:10, stored 20:30"
    ),
    "one range too many, later accepted": (
        f"{FULL}, out_of_window 170:180, stored 0:10, out_of_order 170:180, stored 20:30"
    ),
    "most ranges, one grows": (
        f"{FULL}, out_of_order 160:170, out_of_order 5:10, out_of_order 22:30, out_of_window 5:20, "
        "stored 0:5, stored 20:22"
    ),
    "most ranges, two joined make room for one": (
        f"{FULL}, out_of_order 20:30, out_of_order 170:180, out_of_window 190:200, stored 0:10"
    ),
    "most ranges, in reverse": f"{REVERSED}, out_of_window 170:180, stored 0:10, out_of_order 170:180",
    "just within the window": (
        f"out_of_order {WINDOW - 10}:{WINDOW}, stored 0:1, out_of_window {WINDOW - 10}:{WINDOW}"
    ),
    "a byte beyond the window": (
        f"out_of_window {WINDOW - 9}:{WINDOW + 1}, stored 0:1, out_of_order {WINDOW - 9}:{WINDOW + 1}"
    ),
    "the window moves with what is held": (
        f"stored 0:10, out_of_order {WINDOW}:{WINDOW + 10}, out_of_window {WINDOW}:{WINDOW + 11}"
    ),
    "far beyond the window": (
        f"out_of_window {1 << 30}:{(1 << 30) + 1}, out_of_window {(1 << 31) - 10}:{(1 << 31) - 1}, stored 0:1"
    ),
    # the end
    "FIN alone": "stored 0:100, stored 100 fin, duplicate 100 fin, duplicate 0:100",
    "FIN with data": "stored 0:100 fin, duplicate 0:100 fin, duplicate 100 fin, duplicate 50:100",
    "FIN without a byte": "stored 0 fin, duplicate 0 fin",
    "FIN with data, partly known": "stored 0:60, stored 30:100 fin other, duplicate 0:100 fin",
    "FIN with known data": "stored 0:100, stored 40:100 fin, duplicate 40:100 fin",
    "FIN early, alone": "out_of_order 100 fin, duplicate 100 fin, stored 0:100, duplicate 100 fin",
    "FIN early, with data": (
        "out_of_order 50:100 fin, out_of_window 50:100 fin, stored 0:50, duplicate 0:100 fin"
    ),
    "FIN early, its data then alone": "out_of_order 50:100 fin, out_of_window 50:100, stored 0:50",
    "FIN early, its data known already": (
        "out_of_order 50:100, out_of_window 50:100 fin, stored 0:50, stored 50:100 fin, duplicate 50:100 fin"
    ),
    "FIN early, then the last data with FIN": (
        "out_of_order 100 fin, out_of_order 50:100 fin, stored 0:50, duplicate 0:50"
    ),
    "FIN early, then everything with FIN": "out_of_order 100 fin, stored 0:100 fin, duplicate 0:100 fin",
    "FIN, one range too many": f"{FULL}, out_of_window 170:180 fin, stored 0:200 fin",
    "FIN alone, every range in use": f"{FULL}, out_of_order 160 fin, stored 0:160, duplicate 160 fin",
    "FIN beyond the window": f"out_of_window {WINDOW - 9}:{WINDOW + 1} fin, stored 0:1 fin",
    "FIN alone beyond the window": f"out_of_window {WINDOW + 1} fin, stored 0:1 fin",
    "FIN sent again in other segments": (
        "stored 0:50, stored 50:100 fin, duplicate 0:100 fin, duplicate 99:100 fin"
    ),
    "data beyond an early FIN": (
        "out_of_order 100 fin, beyond_fin 100:101, beyond_fin 50:101, out_of_order 50:100, stored 0:50"
    ),
    "another FIN behind an early one": (
        "out_of_order 100 fin, beyond_fin 110 fin, beyond_fin 90:99 fin, stored 0:100"
    ),
    "FIN before data that is held": ("stored 0:100, beyond_fin 50 fin, beyond_fin 0:99 fin, stored 100:200"),
    "FIN before early data": (
        "out_of_order 100:200, beyond_fin 150 fin, beyond_fin 0:100 fin, stored 0:100, stored 200:201"
    ),
    "data beyond the end": "stored 0:100 fin, beyond_fin 100:101, beyond_fin 50:150, duplicate 0:100",
    "data with FIN beyond the end": "stored 0:100 fin, beyond_fin 100:101 fin, duplicate 100 fin",
    "acknowledgements behind the end": "stored 0:100 fin, duplicate 101, duplicate 101, duplicate 100",
    # resets and blind attacks (RFC 5961)
    "RST in sequence": "stored 0:100, reset 100 rst, pure_ack 100 rst, no_connection 100:110",
    "RST and ACK in sequence": "reset 0 rst ack, pure_ack 0",
    "RST with data": "stored 0:10, reset_ignored 10:30 rst, stored 10:20",
    "RST and FIN": "stored 0:10, reset 10 rst fin, pure_ack 10 rst",
    "RST not in sequence": (
        "stored 0:100, reset_ignored 101 rst, reset_ignored 99 rst, reset_ignored 0 rst, "
        f"reset_ignored {1 << 31} rst, stored 100:110"
    ),
    "RST behind a hole": "out_of_order 10:20, reset_ignored 20 rst, reset 0 rst",
    "RST where the hole was": "out_of_order 10:20, stored 0:10, reset_ignored 10 rst, reset 20 rst",
    "RST before an early FIN": "out_of_order 10 fin, reset_ignored 10 rst, reset 0 rst",
    "RST after the end": "stored 0:10 fin, duplicate 11 rst, duplicate 0:10",
    "SYN upon an open connection": (
        f"stored 0:100, syn_ignored 0 syn, syn_ignored 100 syn, syn_ignored {1 << 31} syn, stored 100:110"
    ),
    "SYN with data upon an open connection": "syn_data 0:10 syn, stored 0:10",
    "SYN and FIN upon an open connection": "bad_flags 0 syn fin, stored 0:10",
}

PLACES = {
    "at the start": (1000, 0),
    "wrapping behind the SYN": (2**32 - 1, 0),
    "wrapping with the SYN": (2**32 - 2, 0),
    "wrapping in the first bytes": (2**32 - 16, 0),
    "wrapping in the data": (2**32 - 101, 0),
    "around 2^31": (2**31 - 50, 0),
    "behind 4 GiB": (7, 2**32 + 5),
    "around 4 GiB": (2**31, 2**32 - 35),
    "behind 5 TiB, wrapping": (2**32 - 60 - (5 << 40) % 2**32, 5 << 40),
}


@pytest.mark.parametrize(("isn", "base"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_history(bench: Bench, history: str, isn: int, base: int) -> None:
    sensor = Sensor(bench, isn=isn)
    sensor.open(base)
    for step in parsed(history):
        frame = sensor.frame(step.flags, step.start, stream(step.start, step.end, step.version))
        if (
            step.flags & SYN and step.outcome == "duplicate"
        ):  # the first SYN again, however long the stream is
            frame = sensor.frame(step.flags, step.start - base)
        expected = []
        if step.outcome in ("stored", "out_of_order", "reset"):
            expected = [sensor.record(step.start, stream(step.start, step.end, step.version), step.marks)]
        sensor.expect(frame, step.outcome, *expected)


@pytest.mark.parametrize("isn", [1000, 2**32 - 1, 2**32 - 5])
def test_from_before_the_stream(bench: Bench, isn: int) -> None:
    """Nothing honest reaches from before the first byte into the stream; nor is a FIN there."""
    sensor = Sensor(bench, isn=isn)
    sensor.open()
    sensor.expect(sensor.frame(ACK, -1, b"x123456789"), "out_of_window")
    sensor.expect(sensor.frame(ACK, 0, b"0123456789"), "stored", sensor.record(0, b"0123456789"))
    sensor.expect(sensor.frame(ACK, -1, b"x123456789"), "duplicate")
    sensor.expect(sensor.frame(ACK, -1, b"x0123456789+"), "out_of_window")
    sensor.expect(sensor.frame(ACK | FIN, -1, b"x"), "beyond_fin")


@pytest.mark.parametrize("ending", ["FIN", "RST"])
def test_a_port_used_again(bench: Bench, ending: str) -> None:
    """Another connection with another number: nothing of the two is mixed."""
    first = Sensor(bench, isn=1000)
    first.open()
    first.expect(first.frame(ACK, 0, b"old"), "stored", first.record(0, b"old"))
    first.expect(first.frame(ACK, 10, b"early"), "out_of_order", first.record(10, b"early"))
    if ending == "FIN":
        last = first.record(3, b"1234567early", records.FIN)
        first.expect(first.frame(ACK | FIN, 3, b"1234567early"), "stored", last)
    else:
        first.expect(first.frame(RST, 3), "reset", first.record(3, b"", records.RESET))

    second = Sensor(bench, isn=500_000, port=first.port)
    second.open()
    assert second.number == first.number + 1
    second.expect(second.frame(ACK, 0, b"new"), "stored", second.record(0, b"new"))
    state = bench.connection(0, second.port)
    assert state is not None
    assert (state["number"], state["next"], state["early_ranges"]) == (second.number, 3, 0)
    # What is left of the first connection on the way lies far outside the second's window.
    first.expect(first.frame(ACK, 3, b"1234567"), "duplicate")
    # Nor does anything of the first come back when the second has ended in another way.
    second.expect(second.frame(RST, 3), "reset", second.record(3, b"", records.RESET))
    second.expect(second.frame(ACK, 3, b"more"), "no_connection")


def test_the_end_is_remembered_without_the_connection(bench: Bench) -> None:
    """A finished connection takes no room from the open ones."""
    sensor = Sensor(bench)
    sensor.open()
    assert bench.connection(0, sensor.port) is not None
    sensor.expect(sensor.frame(ACK | FIN, 0, b"all"), "stored", sensor.record(0, b"all", records.FIN))
    assert bench.connection(0, sensor.port) is None
    sensor.expect(sensor.frame(ACK | FIN, 0, b"all"), "duplicate")


def test_state_does_not_move_with_what_is_refused(bench: Bench) -> None:
    sensor = Sensor(bench)
    sensor.open()
    sensor.expect(sensor.frame(ACK, 0, b"held"), "stored", sensor.record(0, b"held"))
    sensor.expect(sensor.frame(ACK, 10, b"early"), "out_of_order", sensor.record(10, b"early"))
    before = bench.connection(0, sensor.port)
    assert before is not None
    for flags, position, payload, outcome in (
        (ACK, 0, b"HELD", "duplicate"),
        (ACK, 11, b"ARL", "out_of_window"),
        (ACK, 8, b"behind", "out_of_window"),
        (ACK, WINDOW, b"far behind", "out_of_window"),
        (ACK | FIN, 2, b"", "beyond_fin"),
        (ACK | FIN, 4, b"12345678", "beyond_fin"),
        (PSH, 4, b"no flag", "no_ack"),
        (RST, 5, b"", "reset_ignored"),
        (SYN, 40, b"", "syn_ignored"),
        (ACK, 4, b"", "pure_ack"),
    ):
        sensor.expect(sensor.frame(flags, position, payload), outcome)
        after = bench.connection(0, sensor.port)
        assert after is not None
        assert after["next"] == before["next"] == 4
        assert after["fin"] == before["fin"] == 2**64 - 1
        assert after["out_of_order"].tolist() == before["out_of_order"].tolist()
        assert after["early_ranges"] == before["early_ranges"] == 1


@dataclass(frozen=True)
class Step:
    """A packet, and what becomes of it. marks: the flags of its record, if it is stored."""

    outcome: str
    start: int
    end: int
    flags: Flags
    version: int
    marks: int


def parsed(history: str) -> Iterator[Step]:
    for text in history.split(", "):
        outcome, place, *words = text.split()
        first, _, end = place.partition(":")
        flags = Flags(0)
        for word in words:
            flags |= {"fin": FIN | ACK, "rst": RST, "syn": SYN, "ack": ACK}.get(word, flags)
        marks = records.RESET if outcome == "reset" else records.FIN if flags & FIN else 0
        yield Step(outcome, int(first), int(end or first), flags or ACK | PSH, int("other" in words), marks)


def stream(start: int, end: int, version: int = 0) -> bytes:
    """Bytes of the stream, each another from its neighbours and from other versions."""
    return bytes((7 * position + 101 * version) % 251 for position in range(start, end))
