"""A real ring, in which what the logger has not committed stays until its reader may give it back."""

import random
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from tests.program.bench import TOPOLOGY, Bench, Sensor
from tests.program.reference import source
from tests.support.fake_ring import begun, used
from tests.support.hosts import topology

from midstream.ebpf import libbpf, records
from midstream.ebpf.pins import ensure_bpffs
from midstream.ebpf.retained import Committed, retained
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Format, SensorAddresses
from midstream.hardworker.ring import Ring
from midstream.hardworker.views import Rows
from midstream.packet import Flags

SIZE, RING = 48, 1 << 16
STRIDE = 8 + records.RECORD.itemsize + 64  # of a record
TOPOLOGY_48 = replace(TOPOLOGY, size=SIZE)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    size = getattr(request, "param", RING)
    with closing(Bench(TOPOLOGY_48, ring_size=size, connections=64)) as made:
        yield made


@pytest.fixture
def folder(bench: Bench) -> Iterator[Path]:
    """Where the daemon finds the maps."""
    folder = Path("/sys/fs/bpf/midstream-test-retained")
    ensure_bpffs(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("ring", "committed"):
        libbpf.pin(bench.program.map_fd(name), folder / name)
    yield folder
    shutil.rmtree(folder)


class Sent:
    """A connection, what was sent on it, and what the logger has committed of that."""

    def __init__(self, bench: Bench) -> None:
        self.sensor = Sensor(bench)
        self.sensor.number = bench.last_number() + 1
        bench.run(self.sensor.frame(Flags.SYN, -1))
        self.data = b""
        self.committed = 0

    def send(self, bench: Bench, data: bytes) -> None:
        bench.run(self.sensor.frame(Flags.ACK, len(self.data), data))
        self.data += data


def read(ring: Ring) -> None:
    """All that there is; and be done with it."""
    ring.look()
    ring.rows()
    assert ring.commit()


def held(folder: Path, sent: Sent) -> bytes:
    """What the ring has of a connection from what the logger has committed on, without a hole."""
    found = retained(folder).get(sent.sensor.number)
    data, end = b"", sent.committed
    for record in found.records if found else ():
        if record.offset <= end < record.offset + len(record.data):
            data += record.data[end - record.offset :]
            end = record.offset + len(record.data)
    return data


@pytest.mark.parametrize("seed", range(5))
def test_what_is_not_committed_is_in_the_ring(bench: Bench, folder: Path, seed: int) -> None:
    """Whatever is sent, committed and told in which order, and wherever the reader begins anew."""
    numbers = random.Random(seed)
    word = Committed.open(folder)
    connections = [Sent(bench) for _ in range(4)]
    ring = begun(source(bench, retain=RING // 2), SIZE)
    word.tell({one.sensor.number: 0 for one in connections}, known=bench.last_number())
    for step in range(400):
        sent = numbers.choice(connections)
        if numbers.random() < 0.7:
            sent.send(bench, numbers.randbytes(SIZE))
        else:
            sent.committed = numbers.randint(sent.committed, len(sent.data))
        if numbers.random() < 0.5:
            offsets = {one.sensor.number: one.committed for one in connections}
            word.tell(offsets, known=bench.last_number())
        if numbers.random() < 0.3:
            read(ring)
        if numbers.random() < 0.05:
            ring.close()
            ring = begun(source(bench, retain=RING // 2), SIZE)
        for one in connections:
            assert held(folder, one) == one.data[one.committed :], f"seed {seed}, step {step}"
    assert word.forfeited == 0
    for one in connections:
        one.committed = len(one.data)
    word.tell({}, known=bench.last_number())
    connections[0].send(bench, bytes(SIZE))
    read(ring)
    assert used(ring) == 0 and retained(folder) == {}
    ring.close()


def test_a_ring_that_fills_is_given_back(bench: Bench, folder: Path) -> None:
    """No sensor is refused, although the logger commits nothing."""
    word = Committed.open(folder)
    sent = Sent(bench)
    with closing(begun(source(bench, retain=RING // 2), SIZE)) as ring:
        for number in range(3 * RING // 100):
            word.tell({sent.sensor.number: 0}, known=bench.last_number())
            sent.send(bench, bytes(SIZE))
            if number % 16 == 15:
                read(ring)
                assert used(ring) < RING // 2
    outcomes = {name for (_, name), count in bench.counters().items() if count}
    assert "stored" in outcomes and not outcomes & {"ring_full", "quota_full"}
    assert 2 * RING < word.forfeited < 4 * RING


def test_what_is_retained_is_of_nobodys_quota(folder: Path) -> None:
    """A sensor may have a share of what the reader is not done with."""
    quota = RING // 8
    with closing(Bench(TOPOLOGY_48, ring_size=RING, connections=64, ring_quota=quota)) as bench:
        libbpf.pin(bench.program.map_fd("committed"), folder / "committed", replace=True)
        word = Committed.open(folder)
        sent = Sent(bench)
        with closing(begun(source(bench, retain=RING // 2), SIZE)) as ring:
            word.tell({sent.sensor.number: 0}, known=bench.last_number())
            for _ in range(2 * quota // STRIDE + 1):
                sent.send(bench, bytes(SIZE))
                read(ring)
            assert used(ring) > 2 * quota
            assert bench.counters()[0, "quota_full"] == 0
            for _ in range(quota // SIZE):
                sent.send(bench, bytes(SIZE))
            assert bench.counters()[0, "quota_full"] > 0, "what it has not read counts"
        assert word.forfeited == 0


def test_a_reader_that_retains_sleeps_until_something_is_stored(bench: Bench, folder: Path) -> None:
    """The kernel calls a ring readable as long as anything in it is not given back."""
    word = Committed.open(folder)
    sent = Sent(bench)
    word.tell({sent.sensor.number: 0}, known=bench.last_number())
    with closing(begun(source(bench, retain=RING // 2), SIZE)) as ring:
        read(ring)
        poll = select.poll()
        poll.register(ring.fileno(), select.POLLIN)
        for _ in range(5):
            assert not poll.poll(5)
            sent.send(bench, bytes(SIZE))
            assert poll.poll(5000)
            read(ring)
        assert used(ring) == 5 * STRIDE


def read_by_cycles(bench: Bench, told: int) -> None:
    """Read in cycles until killed, and say after each how far."""
    with suppress(KeyboardInterrupt), closing(source(bench, retain=bench.ring.size // 2)) as ring:
        ring.begin(Format("fixed", SIZE, SensorAddresses(topology)), Cadence(0.0002), told)
        cycle = ring.prepare(Rows(SIZE))
        while True:
            cycle.run()


@pytest.mark.parametrize(
    "bench", [64 * RING], indirect=True
)  # half of it is more than a reader's life brings
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment(bench: Bench, folder: Path, kills: int) -> None:
    """Nothing that is not committed is given back, and the journal is never behind what is."""
    numbers = random.Random(1)
    word = Committed.open(folder)
    connections = [Sent(bench) for _ in range(4)]
    with closing(begun(source(bench, retain=bench.ring.size // 2), SIZE)) as first:
        read(first)
    fork = get_context("fork")
    never = select.epoll()
    for _ in range(kills):
        reader = fork.Process(target=read_by_cycles, args=(bench, never.fileno()))
        reader.start()
        end = time.monotonic() + numbers.uniform(0.01, 0.05)
        while time.monotonic() < end:
            for one in connections:
                one.send(bench, numbers.randbytes(SIZE))
                one.committed = numbers.randint(max(one.committed, len(one.data) - 20 * SIZE), len(one.data))
            word.tell({one.sensor.number: one.committed for one in connections}, bench.last_number())
            time.sleep(0.0005)
        assert reader.pid
        reader.kill()
        reader.join()
        assert reader.exitcode == -signal.SIGKILL
        for one in connections:
            assert held(folder, one) == one.data[one.committed :]
        with closing(source(bench, retain=bench.ring.size // 2)) as ring:
            assert bench.ring.produced - used(ring) <= ring._reader.committed <= bench.ring.produced
    never.close()
    assert word.forfeited == 0
