"""A full table: what never became a connection, or was forgotten, makes room; what lives does not."""

import random
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from tests.program.bench import TOPOLOGY, XDP_DROP, XDP_TX, Bench, Sensor, assert_valid_as_before
from tests.program.ring import HEAD, Record

from midstream import packet
from midstream.ebpf import libbpf, records
from midstream.packet import Flags, Packet

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
SECOND = 10**9
SILENCE = 10 * SECOND
TABLE = 8
QUESTIONS = 3


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench(connections=TABLE)) as bench:
        yield bench


def ago(nanoseconds: int) -> int:
    return (time.monotonic_ns() - nanoseconds) % 2**64


def opened(bench: Bench, *, sensor: int = 0, silent: int | None = None, port: int | None = None) -> Sensor:
    """An established connection; silent: for so many nanoseconds."""
    found = Sensor(bench, sensor=sensor, isn=random.randrange(2**32), port=port)
    found.open()
    found.establish()
    found.store(0, b"data")
    if silent is not None:
        found.change(seen=ago(silent))
    return found


def opened_at_the_cost_of(sensor: Sensor, lost: Sensor, held: int = 0) -> None:
    """The reader is told of both."""
    sensor.number = sensor.bench.last_number() + 1
    reset = lost.record(held, b"", records.RESET)
    before = {row: int(sensor.bench.share(row)["open"]) for row in range(3)}
    found = sensor.bench
    found.expect(
        sensor.frame(SYN, -1), "opened", reset, sensor.record(0, b"", records.OPEN), sensor=sensor.sensor
    )
    before[lost.sensor] -= 1
    before[sensor.sensor] += 1
    assert before == {row: int(found.share(row)["open"]) for row in range(3)}


def asked(late: Sensor, silent: Sensor, outcome: str = "table_full") -> Packet:
    """The SYN becomes a question to the sensor of a silent connection."""
    bench, state = late.bench, silent.state
    before = bench.counters()
    frame = late.frame(SYN, -1, tcp_options=bytes([2, 4, 5, 180]))
    verdict, output = bench.run(frame)
    assert (verdict, bench.counters() - before) == (XDP_TX, {(late.sensor, outcome): 1})
    assert not bench.ring.take()
    question, host = Packet.parse(output), TOPOLOGY.sensors[silent.sensor]
    assert_valid_as_before(frame, output)
    assert question.ip.is_intact and question.tcp.is_intact(question.ip, question.payload)
    macs = question.ethernet.source.hex(":"), question.ethernet.destination.hex(":")
    assert macs == (TOPOLOGY.hardworker.mac, host.mac)
    assert (question.ip.source, question.ip.destination) == (TOPOLOGY.hardworker.ip, host.ip)
    assert question.ip.tos == TOPOLOGY.tos
    assert (question.tcp.source_port, question.tcp.destination_port) == (TOPOLOGY.port, silent.port)
    assert (question.tcp.flags, question.payload) == (ACK, b"")
    assert question.tcp.sequence == (int(state["acknowledged"]) - 1) % 2**32
    assert question.tcp.acknowledgment == int(state["first"])  # nothing new
    return question


def forgets(silent: Sensor, question: Packet, held: int = 4) -> None:
    """What a kernel answers that knows no such connection (RFC 9293, section 3.10.7.1)."""
    assert question.tcp.acknowledgment == (silent.isn + 1) % 2**32
    silent.expect(silent.frame(RST, 0, ack=0), "reset", silent.record(held, b"", records.RESET))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [400, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("kind", ["refused", "half-open", "abandoned"])
def test_floods_and_then_a_good_one(kind: str, count: int) -> None:
    """The logger refuses, or never answers, or the sensor forgets: who is open goes on, a new one opens."""
    size = 4096 if count > 10_000 else 16
    with closing(Bench(connections=size)) as bench:
        # The flood comes from every port from 1024 on, and again from the first.
        good = [opened(bench, sensor=number, port=1000 + number) for number in (0, 1)]
        connections = bench.program.map_fd("connections")
        for number in range(1, count + 1):
            sensor = Sensor(bench, isn=number * 7919)
            verdict, output = bench.run(sensor.frame(SYN, -1))
            if kind == "abandoned":
                if number > size - 2:
                    forget(bench, Packet.parse(output))
                    verdict, _ = bench.run(sensor.frame(SYN, -1))
                assert bench.run(sensor.frame(ACK, 0))[0] == XDP_TX
                sensor.change(seen=ago(SILENCE + SECOND))
            elif kind == "half-open":
                assert bench.run(sensor.frame(SYN, -1))[0] == XDP_TX  # again
            assert verdict == XDP_TX
            if number % 500 == 0:
                bench.ring.take()
                for alive in good:
                    alive.change(seen=ago(0))
        assert sum(1 for _ in libbpf.keys(connections, 8)) == size
        assert [int(bench.share(number)["open"]) for number in range(3)] == [size - 1, 1, 0]
        bench.ring.take()
        for alive in good:
            alive.store(4, b"goes on")
        late = Sensor(bench, sensor=2)
        verdict, output = bench.run(late.frame(SYN, -1))
        if kind == "abandoned":
            forget(bench, Packet.parse(output))
            verdict, _ = bench.run(late.frame(SYN, -1))
        late.number = bench.last_number()
        bench.ring.take()
        late.store(0, b"good")


def forget(bench: Bench, question: Packet) -> None:
    """As `forgets`, whoever was asked."""
    forgotten = Sensor(bench, isn=question.tcp.acknowledgment - 1, port=question.tcp.destination_port)
    assert question.ip.source == TOPOLOGY.hardworker.ip
    assert bench.run(forgotten.frame(RST, 0))[0] == XDP_TX


def test_the_oldest_opening_makes_room(bench: Bench) -> None:
    live = [opened(bench, sensor=number % 3, silent=3600 * SECOND) for number in range(3)]
    openings = [Sensor(bench, sensor=number % 3) for number in range(TABLE - 3)]
    for opening in openings:
        opening.open()
    for lost in openings:
        opened_at_the_cost_of(Sensor(bench, sensor=1), lost)
    for sensor in live:
        sensor.store(4, b"still here")
    # The first word of a connection that was lost: its sensor is reset and comes again.
    openings[0].expect(openings[0].frame(ACK, 0, b"x"), "no_connection")


def test_a_sensor_pays_for_itself() -> None:
    """Who has his share gives up an opening of his own, though others have older ones."""
    with closing(Bench(connections=TABLE, open_quota=3)) as bench:
        other = Sensor(bench, sensor=1)
        other.open()
        own = [Sensor(bench) for _ in range(3)]
        for sensor in own:
            sensor.open()
        opened_at_the_cost_of(Sensor(bench), own[0])
        silent = opened(bench, sensor=2, silent=3600 * SECOND)
        full = [opened(bench, sensor=2) for _ in range(2)]
        late = Sensor(bench, sensor=2)
        question = asked(late, silent, "quota_full")
        forgets(silent, question)
        late.open()
        for sensor in full:
            sensor.store(4, b"goes on")


def test_an_answer_or_a_voice_keeps_a_connection(bench: Bench) -> None:
    """Who was heard within ten seconds is not asked; who answers, in whatever place of its stream, stays."""
    live = [opened(bench, silent=(8 + number) * SECOND) for number in range(TABLE)]
    late = Sensor(bench, sensor=1)
    for silent in reversed(live[2:]):  # the most silent first, each once a second
        asked(late, silent)
    late.expect(late.frame(SYN, -1), "table_full")
    for number, silent in enumerate(live[2:]):
        assert silent.state["questions"] == 1
        silent.expect(silent.frame(ACK, 4 + 100 * (number % 2)), "pure_ack")
        assert silent.state["questions"] == 0
    for sensor in live:
        sensor.store(4, b"more")
    late.expect(late.frame(SYN, -1), "table_full")
    assert bench.open_connections() == TABLE


def test_a_sensor_that_never_answers(bench: Bench) -> None:
    """Its host is gone, or swallows resets: asked three times, a second each."""
    gone = opened(bench, silent=SILENCE + SECOND)
    live = [opened(bench) for _ in range(TABLE - 1)]
    late = Sensor(bench, sensor=1)
    for number in range(QUESTIONS):
        asked(late, gone)
        assert gone.state["questions"] == number + 1
        late.expect(late.frame(SYN, -1), "table_full")  # not before a second has gone by
        gone.change(asked=ago(SECOND + 1))
    opened_at_the_cost_of(late, gone, 4)
    for sensor in live:
        sensor.store(4, b"more")


def test_a_voice_between_the_questions_begins_anew(bench: Bench) -> None:
    silent = opened(bench, silent=SILENCE + SECOND)
    live = [opened(bench) for _ in range(TABLE - 1)]
    late = Sensor(bench, sensor=1)
    for _ in range(QUESTIONS):
        asked(late, silent)
        silent.change(asked=ago(SECOND + 1))
    silent.store(4, b"here")
    silent.change(seen=ago(SILENCE + 1), asked=ago(2 * SILENCE))
    asked(late, silent)
    assert silent.state["questions"] == 1
    assert all(sensor.state["questions"] == 0 for sensor in live)


def test_nobody_else_answers(bench: Bench) -> None:
    """A reset elsewhere ends nothing, nor one in the first place that nobody asked for."""
    silent = opened(bench, silent=SILENCE + SECOND)
    silent.refused(silent.frame(RST, 0), "reset_ignored")
    for _ in range(TABLE - 1):
        opened(bench)
    asked(Sensor(bench, sensor=1), silent)
    for position in (1, 3, 5, 100, 2**31, 2**32 - 1):
        silent.refused(silent.frame(RST, position), "reset_ignored")


def test_what_the_reader_cannot_be_told_is_counted_once() -> None:
    """There is room in the ring for one record, and two are needed."""
    with closing(Bench(connections=2, ring_size=4096)) as bench:
        openings = [Sensor(bench) for _ in range(2)]
        for opening in openings:
            opening.open()
        corrupt = packet.corrupt(openings[0].frame(ACK, 0, bytes(64)), "tcp")
        empty, taken = HEAD + records.RECORD.itemsize, bench.ring.produced
        for _ in range(2):
            bench.run(packet.corrupt(openings[0].frame(ACK, 0, bytes(512)), "tcp"))
        while (free := 4096 - 8 - (bench.ring.produced - taken)) >= 2 * empty:
            bench.run(corrupt)
        assert free >= empty
        before = bench.counters()
        assert bench.run(Sensor(bench, sensor=1).frame(SYN, -1))[0] == XDP_DROP
        assert bench.counters() - before == {(0, "ring_full"): 1}
        assert bench.open_connections() == 2


def test_room_only_where_the_reader_can_be_told() -> None:
    """The ring is full: nothing is given up, and the SYN comes again."""
    with closing(Bench(connections=2, ring_size=4096)) as bench:
        opening = Sensor(bench)
        opening.open()
        sensor = opened(bench)
        position = 4
        for size in (1024, 512, 1):
            while bench.run(sensor.frame(ACK, position, bytes(size)))[0] == XDP_TX:
                position += size
        while bench.run(sensor.frame(ACK | FIN, position + 9))[0] == XDP_TX:
            sensor.change(fin=2**64 - 1)
        late, before = Sensor(bench, sensor=1), bench.last_number()
        bench.expect_outcome(late.frame(SYN, -1), "ring_full", sensor=1)
        assert bench.connection(0, opening.port) is not None
        bench.ring.take()
        opened_at_the_cost_of(late, opening)
        assert bench.last_number() == before + 1


FARS = [1, 10, 1000, 1 << 19, (1 << 20) + 5, 1 << 25, -1, -10, -1000, -(1 << 25), (1 << 31) - 9]


@pytest.mark.parametrize("far", FARS)
@pytest.mark.parametrize("answered", ["the first", "the last"])
@pytest.mark.parametrize("handshake", ["acknowledged", "lost"])
def test_a_refused_port_comes_again(session_bench: Bench, far: int, answered: str, handshake: str) -> None:
    """With another number, near or far: the first word of the sensor shows which of its SYNs the logger has
    answered. Nothing of another is stored or sent on."""
    bench = session_bench
    first = Sensor(bench, isn=5000)
    first.open()
    tries = [Sensor(bench, isn=(5000 + step * far) % 2**32, port=first.port) for step in (1, 2)]
    for sensor in tries:
        sensor.number = first.number
        sensor.expect(sensor.frame(SYN, -1), "syn_ignored")
    first.refused(tries[0].frame(ACK, 0, b"refused"), "stale")
    first.refused(tries[1].frame(ACK, 5, b"behind the first word"), "stale")
    live, other = (first, tries[1]) if answered == "the first" else (tries[1], first)
    if handshake == "acknowledged":
        live.expect(live.frame(ACK, 0, ack=2**31), "pure_ack")
    live.store(0, b"first", ack=2**31)
    live.store(5, b"second", ack=2**31)
    verdict, _ = bench.run(other.frame(ACK, 11, b"of another", ack=77))
    assert verdict != XDP_TX and not bench.ring.take()
    live.expect(live.frame(ACK | FIN, 11, ack=2**31), "stored", live.record(11, b"", records.FIN))


@dataclass
class Table:
    """What must be true of the table, whatever comes: the reader's account of it, and who lives."""

    bench: Bench
    open: dict[int, tuple[int, int]] = field(default_factory=dict)  # number: sensor, port
    live: list[Sensor] = field(default_factory=list)

    def check(self) -> None:
        for record in self.bench.ring.take():
            self.account(record)
        for row in range(3):
            mine = sum(sensor == row for sensor, _ in self.open.values())
            assert int(self.bench.share(row)["open"]) == mine
        assert self.bench.open_connections() == len(self.open) <= TABLE
        for sensor in self.live:
            assert sensor.number in self.open, "an established connection is gone"

    def account(self, record: Record) -> None:
        if record.flags & records.OPEN:
            self.open[record.connection] = record.sensor, record.port
        elif record.flags & (records.RESET | records.FIN):
            del self.open[record.connection]


@pytest.mark.parametrize("seed", range(2))
def test_any_history_of_a_table(seed: int) -> None:
    numbers = random.Random(seed)
    with closing(Bench(connections=TABLE, open_quota=5)) as bench:
        table, openings = Table(bench), list[Sensor]()
        for _ in range(500):
            action = numbers.choice(["open", "open", "open", "answer", "say", "end", "age"])
            if action == "open":
                sensor = Sensor(bench, sensor=numbers.randrange(3), isn=numbers.randrange(2**32))
                before, last = bench.counters(), bench.last_number()
                verdict, _ = bench.run(sensor.frame(SYN, -1))
                ((_, outcome),) = bench.counters() - before
                assert bench.last_number() == last + (outcome in ("opened", "table_full"))
                assert (verdict == XDP_TX) or (
                    verdict == XDP_DROP and outcome in ("table_full", "quota_full")
                )
                if outcome == "opened":
                    sensor.number = last + 1
                    openings.append(sensor)
            elif action == "answer" and openings:
                sensor = openings.pop(numbers.randrange(len(openings)))
                table.check()
                if sensor.number in table.open:
                    sensor.establish()
                    table.live.append(sensor)
            elif table.live and action in ("say", "end", "age"):
                sensor = numbers.choice(table.live)
                if action == "age":
                    sensor.change(seen=ago(numbers.choice([1, 20, 60]) * SECOND))
                    bench.run(sensor.frame(ACK, 1 + numbers.randrange(3)))  # it answers every question
                    continue
                flags = {"say": ACK, "end": numbers.choice([RST, ACK | FIN])}[action]
                position = int(sensor.state["next"])
                assert bench.run(sensor.frame(flags, position, b"x" * (action == "say")))[0] == XDP_TX
                if action == "end":
                    table.live.remove(sensor)
            table.check()
