"""Whatever a TCP client does, the eBPF receiver, the socket receiver and the logger have the same bytes.

Scripted clients drive them all. The logger's TCP, and that of the socket receiver, are this machine's.
tests/lab/test_same_stream.py does the same with the programs as they run.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.program.bench import TOPOLOGY, Bench
from tests.program.scripted import SCRIPTS, Client, play_on
from tests.program.stack import EbpfPath, Path, SocketPath, Stack

FAULTY = ("contradictions", "more contradictions", "contradictions with FIN", "A before B")
MAY_LOSE = "a reset behind data"
"""TCP need not deliver what a reset follows; whoever has any of it has the beginning."""


@pytest.fixture(scope="module")
def logger() -> Iterator[Stack]:
    with closing(Stack(TOPOLOGY.logger, listens=True)) as logger:
        yield logger


@pytest.fixture(scope="module")
def hardworker() -> Iterator[Stack]:
    with closing(Stack(TOPOLOGY.hardworker, listens=False)) as hardworker:
        yield hardworker


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("receiver", ["ebpf", "socket"])
def test_the_same_stream(bench: Bench, logger: Stack, hardworker: Stack, name: str, receiver: str) -> None:
    with EbpfPath(bench, logger) if receiver == "ebpf" else SocketPath(hardworker, logger) as path:
        sent = play_on(path, name, TOPOLOGY, 1, bench.new_port())
        reset = name.startswith("a reset")
        found = settled(path, lambda: reset or len(path.logged()) == len(path.application) == len(sent))
    if name == MAY_LOSE:
        assert all(sent.startswith(one) and len(one) >= 200 for one in found)
    elif reset:
        assert found[0] == found[1] and sent.startswith(found[0]) and len(found[0]) >= 200
    elif name in FAULTY:
        assert found[0] == found[1] and len(found[0]) == len(sent)
    else:
        assert found == (sent, sent)


def settled(path: Path, done: Callable[[], bool]) -> tuple[bytes, bytes]:
    """What application and logger have when that is so, or after a while."""
    deadline = time.monotonic() + 2
    while not done() and time.monotonic() < deadline:
        time.sleep(0.002)
    return path.application, path.logged()


steps = st.lists(st.tuples(st.integers(-20, 120), st.integers(1, 100), st.booleans()), max_size=40)


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_a_faulty_sensor_and_a_real_kernel(bench: Bench, logger: Stack, examples: int) -> None:
    """Random segments that overlap, many of them with other bytes; then the honest stream."""

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(steps, st.sampled_from([0, 2**32 - 100, 2**31 - 100]))
    def run(history: list[tuple[int, int, bool]], isn: int) -> None:
        numbers = random.Random(isn)
        with EbpfPath(bench, logger) as path:
            client = Client(TOPOLOGY, 1, bench.new_port(), numbers.randbytes(300), isn, path)
            client.connect()
            for ahead, length, other in history:
                position = max(0, client.acked + ahead)
                end = min(position + length, len(client.data))
                payload = numbers.randbytes(max(0, end - position))
                client.send(position, payload=payload if other else client.data[position:end])
                client.listen(0)
                assert path.logged() == path.application
            client.settle(size=40)
            client.finish()
            found = settled(path, lambda: len(path.logged()) == len(client.data))
        assert found[0] == found[1]

    run()
