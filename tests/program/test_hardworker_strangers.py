"""Packets that are well-formed, and not of this stream: guessed, old, or of another connection.

RFC 5961 (blind attacks), RFC 7323 (timestamps), and a port that its sensor uses again without an end.
Nothing of them is delivered, the state does not move, and what is sent on with data was held before.
"""

import time

import pytest
from tests.program.bench import XDP_TX, Bench, Sensor

from midstream.ebpf import records
from midstream.packet import Flags

ACK, FIN, SYN, RST, PSH = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST, Flags.PSH
EARLY_WINDOW, KNOWN_WINDOW, ACK_WINDOW = 1 << 20, 1 << 24, 1 << 20
SECOND = 10**9
DAY = 86400 * SECOND
PLACES = [  # initial sequence number, length of the stream so far
    (1000, 0),
    (2**32 - 3, 0),
    (2**31 - 2, 2 * KNOWN_WINDOW),
    (2**32 - 3, 5 << 32),
]


@pytest.fixture(params=PLACES, ids=str)
def sensor(bench: Bench, request: pytest.FixtureRequest) -> Sensor:
    """A connection that is established: the logger's numbers are around 77."""
    isn, base = request.param
    connected = Sensor(bench, isn=isn)
    connected.open(base)
    connected.store(0, b"data")
    return connected


def ago(nanoseconds: int) -> int:
    """That time as the program's clock told it; it wraps where the machine was not yet running."""
    return (time.monotonic_ns() - nanoseconds) % 2**64


# Blind attacks


@pytest.mark.parametrize("far", [1, 2, 3, 100, EARLY_WINDOW, KNOWN_WINDOW, 2**31 - 1, 2**31, 2**32 - 1])
def test_blind_reset(sensor: Sensor, far: int) -> None:
    for flags in (RST, RST | ACK, RST | FIN):
        sensor.refused(sensor.frame(flags, 4 + far), "reset_ignored")
    sensor.store(4, b"more")


@pytest.mark.parametrize("far", [0, 1, 5, EARLY_WINDOW, KNOWN_WINDOW, 2**31 - 1, 2**31, 2**32 - 1])
def test_blind_syn(sensor: Sensor, far: int) -> None:
    """It is remembered, in case that it is none; the stream goes on as if it had not come."""
    sensor.store(4, b"all")
    before = sensor.state
    sensor.expect(sensor.frame(SYN, 4 + far), "syn_ignored")
    after = sensor.state
    assert after["other_first"] == (sensor.isn + 1 + sensor.base + 4 + far + 1) % 2**32
    after["other_first"] = 0
    assert after == before
    sensor.store(7, b"more")
    assert sensor.state["other_first"] == 0


@pytest.mark.parametrize("ahead", [ACK_WINDOW + 1, 2**31 - 1, 2**31, 2**32 - ACK_WINDOW - 1])
def test_wrong_acknowledgement(sensor: Sensor, ahead: int) -> None:
    """Whoever does not see the stream does not know what the logger has sent."""
    for flags, position, payload in (
        (ACK, 4, b"x"),
        (ACK | PSH, 0, b"data"),
        (ACK, 10, b"behind a hole"),
        (ACK, 0, b"data and more"),
        (ACK | FIN, 4, b""),
        (ACK | FIN, 4, b"last"),
    ):
        sensor.refused(sensor.frame(flags, position, payload, ack=77 + ahead), "bad_ack")
    sensor.refused(sensor.frame(ACK, 4, ack=77 + ahead), "pure_ack")
    sensor.store(4, b"more")


@pytest.mark.parametrize("ahead", [1, ACK_WINDOW, 2**32 - 1, 2**32 - ACK_WINDOW])
def test_plausible_acknowledgement(sensor: Sensor, ahead: int) -> None:
    """A logger that says something is acknowledged, and old segments acknowledge less."""
    sensor.store(4, b"more", ack=77 + ahead)
    assert sensor.state["acknowledged"] == (77 + ahead) % 2**32


def test_acknowledgements_move_with_the_stream(sensor: Sensor) -> None:
    """Bare ones too, if they are in sequence."""
    for step in range(1, 9):
        ack = 77 + step * ACK_WINDOW
        sensor.expect(sensor.frame(ACK, 4, ack=ack), "pure_ack")
        assert sensor.state["acknowledged"] == ack
        assert 0 <= time.monotonic_ns() - int(sensor.state["seen"]) < SECOND
    sensor.change(seen=5)
    for position, flags in ((3, ACK), (5, ACK), (4, PSH), (0, ACK)):
        sensor.refused(sensor.frame(flags, position, ack=ack + 5), "pure_ack")
    sensor.store(4, b"more", ack=ack + ACK_WINDOW)


def test_the_first_acknowledgement_is_believed(bench: Bench) -> None:
    sensor = Sensor(bench)
    sensor.open()
    assert not sensor.state["established"]
    sensor.expect(sensor.frame(ACK, 0, ack=2**31 + 5), "pure_ack")
    assert (sensor.state["established"], sensor.state["acknowledged"]) == (1, 2**31 + 5)
    sensor.refused(sensor.frame(ACK, 0, b"x"), "bad_ack")
    sensor.store(0, b"x", ack=2**31 + 5)


@pytest.mark.parametrize(
    ("start", "outcome"),
    [
        (4 + EARLY_WINDOW - 4, "out_of_window"),
        (4 + 2**30, "out_of_window"),
        (2**31 - 2, "out_of_window"),
        (4 - 2**31 - 5, "out_of_window"),  # that is ahead, around the circle
        (4 - 2**31, "stale"),
        (4 - 2**30, "stale"),
        (4 - 5 - KNOWN_WINDOW - 1, "stale"),
        (4 - 5 - KNOWN_WINDOW, "duplicate"),
        (4 - 5 - 1, "duplicate"),
    ],
)
def test_blind_data(sensor: Sensor, start: int, outcome: str) -> None:
    """What a window does not admit is not taken, in both halves of the circle of sequence numbers."""
    sensor.refused(sensor.frame(ACK, start, b"guess"), outcome)
    sensor.store(4, b"more")


@pytest.mark.parametrize(
    ("behind", "outcome"), [(KNOWN_WINDOW, "duplicate"), (KNOWN_WINDOW + 1, "stale"), (2**30, "stale")]
)
def test_what_is_known_of_a_finished_stream(sensor: Sensor, behind: int, outcome: str) -> None:
    sensor.expect(sensor.frame(ACK | FIN, 4, b"last"), "stored", sensor.record(4, b"last", records.FIN))
    sensor.expect(sensor.frame(ACK, 8 - 4 - behind, b"last"), outcome)
    sensor.expect(sensor.frame(ACK, 8 - 2**31, b"last"), "stale")
    for start in (5, 8, 8 + EARLY_WINDOW, 2**31 - 1):
        sensor.expect(sensor.frame(ACK, start, b"more"), "beyond_fin")


# Old duplicates


def timestamps(value: int) -> bytes:
    """As every stack sends them (RFC 7323, appendix A)."""
    return b"\x01\x01\x08\x0a" + value.to_bytes(4) + (99).to_bytes(4)


@pytest.mark.parametrize("now", [1000, 2**31, 2**32 - 1, 2**32 - 500, 1])
@pytest.mark.parametrize("back", [1, 400, 2**31 - 1, 2**31])
def test_stale_timestamp(sensor: Sensor, now: int, back: int) -> None:
    sensor.store(4, b"now", tcp_options=timestamps(now))
    assert sensor.state["timestamp"] == now
    then = (now - back) % 2**32 or (now + 2**31 + 1) % 2**32  # for 0 means none
    old = timestamps(then)
    for flags, start, payload in (
        (ACK, 7, b"next"),
        (ACK, 20, b"behind a hole"),
        (ACK, 0, b"datanow and more"),
        (ACK | FIN, 7, b""),
        (ACK | FIN, 7, b"last"),
        (ACK | FIN, 3, b"xnow"),
    ):
        sensor.refused(sensor.frame(flags, start, payload, tcp_options=old), "stale")
    # What brings nothing new is not asked for its time: the logger answers an old duplicate.
    sensor.refused(sensor.frame(ACK, 4, b"now", tcp_options=old), "duplicate")
    sensor.store(7, b"next", tcp_options=timestamps(now))


@pytest.mark.parametrize("now", [1000, 2**31, 2**32 - 1, 2**32 - 500])
@pytest.mark.parametrize("on", [0, 1, 499, 2**31 - 1])
def test_timestamps_go_on(sensor: Sensor, now: int, on: int) -> None:
    """Equal or newer, also around the circle."""
    sensor.store(4, b"now", tcp_options=timestamps(now))
    sensor.store(7, b"next", tcp_options=timestamps((now + on) % 2**32))
    assert sensor.state["timestamp"] == (now + on) % 2**32


def test_early_data_does_not_move_the_time(sensor: Sensor) -> None:
    """RFC 7323, section 4.3: only a segment in order does, or what it overtook would be stale."""
    sensor.store(4, b"now", tcp_options=timestamps(1000))
    early = sensor.frame(ACK, 10, b"early", tcp_options=timestamps(2000))
    sensor.expect(early, "out_of_order", sensor.record(10, b"early"))
    sensor.store(7, b"123", tcp_options=timestamps(1001))
    assert sensor.state["timestamp"] == 1001


def test_no_timestamps(sensor: Sensor) -> None:
    """Nor is anything taken for one that lies elsewhere, or is cut off."""
    sensor.store(4, b"a", tcp_options=timestamps(1000))
    for number, options in enumerate(
        (b"", b"\x01" * 8, b"\x08\x0a" + bytes(7) + b"\x01\x01\x01", b"\x01\x01\x08\x0a")
    ):
        sensor.change(timestamp=1000)
        sensor.store(5 + number, b"b", tcp_options=options)


@pytest.mark.parametrize(("silent", "outcome"), [(23 * DAY, "stale"), (25 * DAY, "stored")])
def test_a_timestamp_too_old_to_compare_with(sensor: Sensor, silent: int, outcome: str) -> None:
    """RFC 7323, section 5.5: after 24 days the clock may have gone round."""
    sensor.store(4, b"now", tcp_options=timestamps(1000))
    sensor.change(seen=ago(silent))
    frame = sensor.frame(ACK, 7, b"later", tcp_options=timestamps(999))
    sensor.expect(frame, outcome, *([sensor.record(7, b"later")] if outcome == "stored" else []))


# A port used again without an end: the sensor lost power, and only the hardworker knows of the old connection

FARS = [
    -(2**31),
    -(2**31) + 1,
    -(2**30),
    -KNOWN_WINDOW - 100,
    -KNOWN_WINDOW,
    -KNOWN_WINDOW + 100,
    -5000,
    -1000,
    -1,
    10,
    1000,
    EARLY_WINDOW - 100,
    EARLY_WINDOW + 100,
    KNOWN_WINDOW,
    2**30,
    2**31 - 2000,
]


def reopened(old: Sensor, far: int) -> Sensor:
    """The connection that the sensor opens next; its sequence numbers are `far` from the old one's."""
    new = Sensor(old.bench, isn=(old.isn + old.base + 4 + far) % 2**32, port=old.port)
    new.expect(new.frame(SYN, -1), "syn_ignored")
    return new


@pytest.mark.parametrize("far", FARS)
def test_another_numbering_is_never_sent_on_unheld(sensor: Sensor, far: int) -> None:
    """The logger answers the SYN, so the sensor sends. What it sends here passes only if it is held."""
    new = reopened(sensor, far)
    other_ack = 2**31 + 12345
    before = sensor.bench.counters()
    position = 0
    for length in (1, 300, 1024, 1460):
        verdict, _ = sensor.bench.run(new.frame(ACK, position, bytes(length), ack=other_ack))
        assert verdict != XDP_TX
        position += length
    assert not sensor.bench.ring.take()
    outcomes = {name for _, name in sensor.bench.counters() - before}
    assert outcomes <= {"bad_ack", "stale", "out_of_window"}
    sensor.store(4, b"the old one is as it was")


@pytest.mark.parametrize("far", [-KNOWN_WINDOW - 100, -KNOWN_WINDOW, -KNOWN_WINDOW + 100, -5000, -1000])
def test_another_numbering_whose_acknowledgement_fits(sensor: Sensor, far: int) -> None:
    """By chance, or because nothing was acknowledged yet: what seems known may be the other connection's."""
    new = reopened(sensor, far)
    for ack in (76, 78):
        sensor.refused(new.frame(ACK, 0, b"new", ack=ack), "stale")
    sensor.store(4, b"more")


@pytest.mark.parametrize("far", [-KNOWN_WINDOW + 10, -1000, -5])
@pytest.mark.parametrize("silent", [0, 60 * SECOND])
def test_a_guessed_syn_harms_nothing(sensor: Sensor, far: int, silent: int) -> None:
    """Its number lies so that what the sensor sends could belong to it, but the sensor's numbers go on."""
    reopened(sensor, far)
    sensor.change(seen=ago(silent))
    sensor.expect(sensor.frame(ACK, 0, b"data"), "duplicate")
    sensor.store(4, b"more")
    assert sensor.state["other_first"] == 0


def test_a_guessed_syn_and_an_old_timestamp(sensor: Sensor) -> None:
    """A sensor that has started again counts its timestamps anew."""
    sensor.store(4, b"now", tcp_options=timestamps(1000))
    new = reopened(sensor, -1000)
    sensor.change(seen=ago(60 * SECOND))
    data = new.frame(ACK, 1000, b"data", tcp_options=timestamps(999))
    sensor.expect(data, "replaced", sensor.record(7, b"", records.RESET))


@pytest.mark.parametrize("far", FARS)
def test_replaced_after_silence(sensor: Sensor, far: int) -> None:
    """After ten seconds the old connection is given up: the stack's reset lets the sensor begin anew."""
    bench, new = sensor.bench, reopened(sensor, far)
    opened = bench.share(0)["open"]
    data = new.frame(ACK, 0, b"new", ack=2**31 + 12345)
    sensor.change(seen=ago(9 * SECOND))
    verdict, _ = bench.run(data)
    assert verdict != XDP_TX and not bench.ring.take() and bench.connection(0, sensor.port) is not None

    sensor.change(seen=ago(10 * SECOND + 1))
    sensor.expect(data, "replaced", sensor.record(4, b"", records.RESET))
    assert bench.connection(0, sensor.port) is None
    assert bench.share(0)["open"] == opened - 1
    new.expect(data, "no_connection")

    new.open()
    new.store(0, b"new", ack=2**31 + 12345)


def test_silence_alone_ends_nothing(sensor: Sensor) -> None:
    sensor.change(seen=ago(3600 * SECOND))
    sensor.refused(sensor.frame(ACK, 5 - KNOWN_WINDOW // 2 * 5, b"other"), "stale")
    sensor.store(4, b"still here")


def test_data_refutes_a_syn(sensor: Sensor) -> None:
    """The sensor sends on its old connection, so it opened no other."""
    new = reopened(sensor, 2**30)
    sensor.change(seen=ago(60 * SECOND))
    sensor.store(4, b"here")
    assert sensor.state["other_first"] == 0
    sensor.change(seen=ago(60 * SECOND))
    sensor.refused(new.frame(ACK, 0, b"guess"), "out_of_window")


def test_an_acknowledgement_breaks_the_silence(sensor: Sensor) -> None:
    new = reopened(sensor, 2**30)
    sensor.change(seen=ago(60 * SECOND))
    sensor.expect(sensor.frame(ACK, 4), "pure_ack")
    sensor.refused(new.frame(ACK, 0, b"guess"), "out_of_window")
    sensor.store(4, b"here")


def test_replaced_only_where_the_reader_can_be_told(bench: Bench) -> None:
    """The reset needs room in the ring, and counts once."""
    old = Sensor(bench)
    old.open()
    old.store(0, b"data")
    position = 4
    while bench.run(old.frame(ACK, position, bytes(1024)))[0] == XDP_TX:
        position += 1024
    while bench.run(Sensor(bench).frame(SYN, -1))[0] == XDP_TX:
        pass
    new = Sensor(bench, isn=old.isn + 2**30, port=old.port)
    bench.expect_outcome(new.frame(SYN, -1), "syn_ignored")
    old.change(seen=ago(60 * SECOND))
    before = old.state
    bench.expect_outcome(new.frame(ACK, 0, b"new"), "ring_full")
    assert old.state == before
    bench.ring.take()
    old.expect(new.frame(ACK, 0, b"new"), "replaced", old.record(position, b"", records.RESET))
