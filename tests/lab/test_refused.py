"""A logger refuses for as long as it likes; when it is there, the next connection is a good one."""

import socket
from pathlib import Path

from tests.lab.triangle import HARDWORKER, PORT, TOS, collect, logged, send, started, variant

from midstream.ebpf import libbpf, pins
from midstream.hardworker import Hardworker
from midstream.lab import Lab, programs

CONNECTIONS, TIMES = 16, 100
SIZE = 64
LAB = {"sensors": 1, "data": {"size": SIZE}}


def test_a_logger_that_refuses_and_then_comes_up(lab: Lab, tmp_path: Path) -> None:
    variant(lab, "config.toml", hardworker={"connections": CONNECTIONS})
    programs.attach(lab)
    assert lab.call("sensor", refused, TIMES) == TIMES
    assert entries() == CONNECTIONS
    data = bytes(range(SIZE)) * 20
    arguments = ("logger", "--config", lab.config, "--json")
    with (
        started(lab, "logger", tmp_path, *arguments, ready="listening"),
        Hardworker(lab.config) as application,
    ):
        port, _ = lab.call("sensor", send, HARDWORKER, data)
        peer = str(lab.host("sensor").ip), port
        # Told of all that made room, one of them for this one, and of its end.
        assert collect(application, TIMES - CONNECTIONS + 2)[peer] == data
        assert logged(lab.run_dir / "midstream.db", peer) == data


def refused(times: int) -> int:
    """So many connects in vain."""
    count = 0
    for _ in range(times):
        with socket.socket() as client:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
            client.settimeout(5)
            try:
                client.connect((HARDWORKER, PORT))
            except ConnectionRefusedError:
                count += 1
    return count


def entries() -> int:
    """In the hardworker's table."""
    fd = pins.open_map(Path("/sys/fs/bpf/midstream-lab/hardworker"), "connections")
    with open(fd, "rb", closefd=True):
        return sum(1 for _ in libbpf.keys(fd, 8))
