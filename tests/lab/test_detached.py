"""The program goes under a running application, in whatever way: the application is told, or follows."""

import ctypes
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lab.interfaces import attach_pass, make_bridge, remove_bridge, remove_xdp
from tests.lab.triangle import HARDWORKER, PATIENCE, PINS, PORT, TOS, command, started, variant

from midstream.ebpf import libbpf
from midstream.errors import KernelError
from midstream.hardworker import Hardworker
from midstream.lab import Lab

LAB = {"sensors": 1}
FOLDER = PINS / "hardworker"
SIZE = 1024


def attach(lab: Lab, config: Path, *options: str) -> None:
    ended = command(lab, "hardworker", "attach", "hardworker", "--no-self-test", "--config", config, *options)
    assert ended.code == 0, ended.err


def detach(lab: Lab) -> None:
    ended = command(lab, "hardworker", "detach", "hardworker", "--config", lab.config)
    assert ended.code == 0, ended.err


def detach_link() -> None:
    """As `bpftool link detach` does."""
    link = libbpf.get(FOLDER / "link")
    assert ctypes.CDLL("libbpf.so.1").bpf_link_detach(link) == 0
    os.close(link)


def by_detach(lab: Lab) -> None:
    detach(lab)


def by_detach_and_attach(lab: Lab) -> None:
    detach(lab)
    attach(lab, variant(lab, "larger.toml", hardworker={"ring_size": "8MiB"}))


def by_removed_pins(lab: Lab) -> None:
    shutil.rmtree(FOLDER)


def by_a_removed_link(lab: Lab) -> None:
    (FOLDER / "link").unlink()


def by_a_detached_link(lab: Lab) -> None:
    detach_link()


def by_another_program(lab: Lab) -> None:
    detach_link()
    lab.call("hardworker", attach_pass, lab.const, libbpf.XDP_FLAGS_DRV_MODE)


WAYS = [
    by_detach_and_attach,
    *(
        pytest.param(way, marks=pytest.mark.slow)
        for way in (by_detach, by_removed_pins, by_a_removed_link, by_a_detached_link, by_another_program)
    ),
]


@pytest.fixture(autouse=True)
def detached(lab: Lab) -> Iterator[None]:
    yield
    detach(lab)
    lab.call("hardworker", remove_xdp, "eth0")


@pytest.mark.parametrize("way", WAYS)
def test_the_application_is_told_within_a_second(lab: Lab, way: Callable[[Lab], None]) -> None:
    attach(lab, lab.config)
    with Hardworker(lab.config) as application:
        assert not application.wait(0.1)  # nothing arrives, and nothing is wrong
        way(lab)
        begun = time.monotonic()
        with pytest.raises(
            KernelError, match=r"hardworker: .*nothing writes into.*midstream attach hardworker"
        ):
            next(iter(application))
        assert time.monotonic() - begun < 1.2  # and 0.2 s for a busy machine


@pytest.mark.slow
def test_an_interface_that_is_deleted(lab: Lab) -> None:
    lab.call("hardworker", make_bridge, lab.host("hardworker").mac)
    try:
        attach(lab, lab.config, "--interface", "bridge0")
        with Hardworker(lab.config, follow=True) as follower:
            lab.call("hardworker", remove_bridge)
            assert not follower.wait(1.2)
        with pytest.raises(KernelError, match="no interface"), Hardworker(lab.config):
            pytest.fail("it began to read what nothing writes into")
    finally:
        lab.call("hardworker", ensure_no_bridge)


def ensure_no_bridge() -> None:
    if "bridge0" in {name for _, name in socket.if_nameindex()}:
        remove_bridge()


def test_a_follower_gets_each_message_once_and_in_order(lab: Lab, tmp_path: Path) -> None:
    """Detached and attached anew with another ring, between two connections; the logger hears both."""
    command(lab, "logger", "attach", "logger", "--config", lab.config)
    attach(lab, lab.config)
    larger = variant(lab, "larger.toml", hardworker={"ring_size": "8MiB"})
    own = variant(lab, "own.toml")
    arguments = ("logger", "--config", lab.config)
    numbers: list[int] = []
    connections: list[tuple[int, int]] = []
    with (
        started(lab, "logger", tmp_path, *arguments, ready="listening"),
        Hardworker(own, follow=True) as reader,
    ):
        for begin in (0, 500):
            lab.call("sensor", send_numbered, begin, 500)
            if not begin:
                detach(lab)
                own.write_text(larger.read_text())
                attach(lab, own)
            deadline = time.monotonic() + PATIENCE
            while len(numbers) < begin + 500 and time.monotonic() < deadline:
                reader.wait(1)
                for message in reader.messages():
                    numbers.append(int.from_bytes(message.payload, "little"))
                    connections.append((message.connection, message.sequence))
        totals = reader.totals
    command(lab, "logger", "detach", "logger", "--config", lab.config)
    assert numbers == list(range(1000))
    assert len(set(connections)) == 1000, "a number of a connection came twice"
    assert (totals.messages, totals.opened, totals.finished) == (1000, 2, 2)


def send_numbered(begin: int, count: int) -> None:
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.connect((HARDWORKER, PORT))
        client.sendall(b"".join(number.to_bytes(SIZE, "little") for number in range(begin, begin + count)))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
