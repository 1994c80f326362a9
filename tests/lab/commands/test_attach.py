"""Attach and detach on real interfaces: what is refused and why, and that nothing stays behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.lab.interfaces import (
    add_filter,
    attach_pass,
    make_bridge,
    pinned_programs,
    programs_of_the_kernel,
    remove_bridge,
    remove_clsact,
    remove_xdp,
    set_link,
    turn_off_gro,
    what_is_attached,
)
from tests.lab.triangle import (
    HARDWORKER,
    LOGGER,
    PINS,
    Result,
    command,
    send,
    variant,
    wait_until,
)

from midstream import network
from midstream.ebpf import compiler, libbpf, loader, selftest
from midstream.hardworker import Hardworker
from midstream.lab import Lab, links

ROLES = ("hardworker", "logger", "sensor")
KILLS = 20
NOTHING = {"filters": 0, "clsact": 0, "xdp": 0}

# A process that is killed cannot be this one's own child on the host (that would only get SIGTERM).
ATTACHER = """
import os, signal, sys
from midstream import config, network
from midstream.ebpf import loader
from midstream.lab import enter

settings = config.load(sys.argv[1])
topology = network.load(settings.const_path)
enter.enter("ms-hardworker")
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        loader.attach("hardworker", settings, topology)
        signal.pause()
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(autouse=True)
def detached(lab: Lab) -> Iterator[None]:
    """Each test begins with nothing attached, and detach leaves nothing."""
    yield
    try:
        for host in ROLES:
            detach(lab, host)
            assert lab.call(host, what_is_attached) == NOTHING
        assert not [*PINS.glob("*")]
    finally:  # one failure is enough
        shutil.rmtree(PINS, ignore_errors=True)


def attach(lab: Lab, role: str, *options: str | Path) -> Result:
    return command(lab, role, "attach", role, "--config", lab.config, "--json", *options)


def detach(lab: Lab, role: str) -> Result:
    return command(lab, role, "detach", role, "--config", lab.config)


def assert_refused(result: Result, code: int, *words: str) -> None:
    """The exit code, one message without a traceback, and what it has to name."""
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("midstream: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


# attach, detach


@pytest.mark.parametrize(("role", "mode"), [("hardworker", "native"), ("logger", "tc"), ("sensor", "native")])
def test_attach_twice_is_attach_once(lab: Lab, role: str, mode: str) -> None:
    first = attach(lab, role).object
    before = lab.call(role, what_is_attached), pinned_programs(role)
    assert (first["interface"], first["mode"], first["reused"]) == ("eth0", mode, False)
    assert attach(lab, role).object == first | {"reused": True}
    assert (lab.call(role, what_is_attached), pinned_programs(role)) == before
    shown = command(lab, role, "status", "--config", lab.config, "--json")
    assert shown.object[role]["mode"] == mode


@pytest.mark.parametrize("role", ["hardworker", "logger", pytest.param("sensor", marks=pytest.mark.slow)])
def test_detach_leaves_no_program(lab: Lab, role: str) -> None:
    assert attach(lab, role).code == 0
    ours = pinned_programs(role)
    assert ours <= programs_of_the_kernel()
    result = detach(lab, role)
    assert (result.code, result.err) == (0, f"{PINS / role}: detached and removed\n")
    # A program goes a moment after its last user.
    wait_until(lambda: not ours & programs_of_the_kernel(), 5)
    assert detach(lab, role).err == f"{PINS / role}: nothing is pinned there\n"


def test_a_filter_of_the_users_own_stays(lab: Lab) -> None:
    lab.call("logger", add_filter)
    try:
        assert attach(lab, "logger").code == 0
        assert detach(lab, "logger").code == 0
        assert lab.call("logger", what_is_attached) == {"filters": 1, "clsact": 1, "xdp": 0}
    finally:
        lab.call("logger", remove_clsact)


@pytest.mark.slow
def test_attach_works_after_one_that_was_killed(lab: Lab) -> None:
    """Killed at twenty different moments; half an attachment is cleared away by the next one."""
    duration = timed_attach(lab)
    moments = random.Random(1)
    half_done = 0
    with subprocess.Popen(
        [sys.executable, "-c", ATTACHER, lab.config], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as attacher:
        assert attacher.stdin
        assert attacher.stdout
        for _ in range(KILLS):
            attacher.stdin.write(b"\n")
            attacher.stdin.flush()
            victim = int(attacher.stdout.readline())
            time.sleep(moments.uniform(0, duration))
            os.kill(victim, signal.SIGKILL)
            assert attacher.stdout.readline() == b"ended\n"
            half_done += (PINS / "hardworker").exists() and not (PINS / "hardworker/link").exists()
            result = attach(lab, "hardworker")
            assert result.code == 0, result.err
            assert detach(lab, "hardworker").code == 0
        attacher.stdin.close()
    assert half_done, "no attach was killed half-way: the moments are badly chosen"


# pins


def test_pins_of_other_files_are_refused(lab: Lab) -> None:
    """Another ring size, another MTU: both stamps are named, and what is attached goes on."""
    assert attach(lab, "hardworker").code == 0
    before, pinned = lab.call("hardworker", what_is_attached), sorted(PINS.rglob("*"))
    other_ring = variant(lab, "ring.toml", hardworker={"ring_size": "1MiB"})
    other_const = variant(lab, "other.toml", const="other-const.toml")
    text = lab.const.read_text()
    (lab.run_dir / "other-const.toml").write_text(text.replace("mtu = 1500", "mtu = 1501"))
    for path in (other_ring, other_const):
        result = command(lab, "hardworker", "attach", "hardworker", "--config", path)
        assert_refused(result, 4, "stamp", "midstream detach", str(PINS / "hardworker"))
        assert len([word for word in result.err.split() if len(word.strip(",);")) == 12]) >= 2
        result = command(lab, "hardworker", "hardworker", "--config", path)
        assert_refused(result, 4, "stamp", "midstream detach")
    assert lab.call("hardworker", what_is_attached) == before
    assert sorted(PINS.rglob("*")) == pinned


@pytest.mark.parametrize("role", ROLES)
def test_foreign_pins_are_refused_and_left_alone(lab: Lab, role: str) -> None:
    with libbpf.Object(compiler.compile_program("pass", network.load(lab.const))) as foreign:
        foreign.load()
        (PINS / role).mkdir(parents=True)
        libbpf.pin(foreign.program_fd("midstream_pass"), PINS / role / "theirs")
    try:
        assert_refused(attach(lab, role), 4, str(PINS / role), "no stamp of midstream")
        assert_refused(detach(lab, role), 4, str(PINS / role), "nothing was removed")
        assert [path.name for path in (PINS / role).iterdir()] == ["theirs"]
        assert lab.call(role, what_is_attached) == NOTHING
    finally:
        shutil.rmtree(PINS / role)


def test_a_folder_outside_a_bpffs(lab: Lab, tmp_path: Path) -> None:
    assert_refused(attach(lab, "hardworker", "--pins", tmp_path / "pins"), 4, "bpffs", "network.pins")
    assert not (tmp_path / "pins").exists()


@pytest.mark.slow
def test_attached_in_another_namespace(lab: Lab) -> None:
    """The pins are the machine's, the interface is not."""
    assert attach(lab, "hardworker").code == 0
    result = command(lab, "logger", "attach", "hardworker", "--config", lab.config)
    assert_refused(result, 4, "another network namespace")
    assert lab.call("hardworker", what_is_attached)["xdp"]


def test_no_program_is_attached(lab: Lab) -> None:
    arguments = ("--config", lab.config)
    assert_refused(command(lab, "hardworker", "hardworker", *arguments), 4, "midstream attach")
    assert_refused(command(lab, "hardworker", "status", *arguments), 4, "midstream attach")


# self-test


@pytest.mark.slow
def test_a_switch_that_swallows_is_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch's end of the pair without program and GRO: it takes nothing that XDP transmits."""
    monkeypatch.setattr(selftest, "_PATIENCE", 1.0)
    with swallowing(lab, "hardworker"):
        assert_refused(attach(lab, "hardworker"), 4, "eth0", "self-test failed", "swallows", LOGGER)
        assert not PINS.joinpath("hardworker").exists()
        assert lab.call("hardworker", what_is_attached) == NOTHING
        assert attach(lab, "hardworker", "--no-self-test").object["mode"] == "native"
        assert detach(lab, "hardworker").code == 0
    assert attach(lab, "hardworker").code == 0


@pytest.mark.slow
def test_a_logger_that_is_down_is_told_from_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_PATIENCE", 1.0)
    lab.call("logger", set_link, "eth0", "down")
    try:
        assert_refused(attach(lab, "hardworker"), 4, f"{LOGGER} answers no ping", "--no-self-test")
        assert not PINS.joinpath("hardworker").exists()
        assert attach(lab, "hardworker", "--no-self-test").code == 0
    finally:
        lab.call("logger", set_link, "eth0", "up")


# interfaces


@pytest.mark.slow
def test_generic_mode_where_the_driver_has_no_native_one(lab: Lab) -> None:
    """The hardworker's interface becomes a bridge, which has no XDP of its own; a stream still arrives."""
    lab.call("hardworker", make_bridge, lab.host("hardworker").mac)
    try:
        result = attach(lab, "hardworker", "--interface", "bridge0")
        assert result.code == 0, result.err
        assert (result.object["interface"], result.object["mode"]) == ("bridge0", "generic")
        assert attach(lab, "logger").code == 0
        with pytest.raises(ConnectionRefusedError):  # by the logger, whose kernel got the SYN
            lab.call("sensor", send, HARDWORKER, b"hello")
        with Hardworker(lab.config) as application:
            application.read()
            assert application.totals.opened == 1
        shown = command(lab, "hardworker", "status", "--config", lab.config)
        assert "generic on bridge0" in shown.out
        assert detach(lab, "hardworker").code == 0
    finally:
        lab.call("hardworker", remove_bridge)


@pytest.mark.parametrize(
    "flags", [libbpf.XDP_FLAGS_DRV_MODE, libbpf.XDP_FLAGS_SKB_MODE], ids=["native", "generic"]
)
@pytest.mark.parametrize("role", ["hardworker", pytest.param("sensor", marks=pytest.mark.slow)])
def test_another_xdp_program_is_left_alone(lab: Lab, role: str, flags: int) -> None:
    lab.call(role, attach_pass, lab.const, flags)
    try:
        before = lab.call(role, what_is_attached)
        assert before["xdp"]
        assert_refused(attach(lab, role), 4, "eth0", "another XDP program is attached there")
        assert lab.call(role, what_is_attached) == before
        assert not (PINS / role).exists()
    finally:
        lab.call(role, remove_xdp, "eth0")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'hardworker = "02:4d:53:00:00:02"',
            'hardworker = "02:4d:53:00:00:f2"',
            ["MAC", "02:4d:53:00:00:f2", "eth0"],
        ),
        ("mtu = 1500", "mtu = 1400", ["MTU is 1500", "mtu = 1400"]),
    ],
    ids=["MAC", "MTU"],
)
def test_an_interface_that_const_toml_does_not_describe(
    lab: Lab, old: str, new: str, words: list[str]
) -> None:
    text = lab.const.read_text()
    assert old in text
    (lab.run_dir / "wrong-const.toml").write_text(text.replace(old, new))
    path = variant(lab, "wrong.toml", const="wrong-const.toml")
    result = command(lab, "hardworker", "attach", "hardworker", "--config", path)
    assert_refused(result, 4, "const.toml", *words)
    assert not PINS.joinpath("hardworker").exists()


def test_an_interface_that_is_missing(lab: Lab) -> None:
    assert_refused(attach(lab, "hardworker", "--interface", "eth7"), 4, "eth7: no such interface", "lo, eth0")


def test_no_route_to_the_peer(lab: Lab) -> None:
    """In the switch's namespace, which has no addresses."""
    result = command(lab, "switch", "attach", "hardworker", "--config", lab.config)
    assert_refused(result, 5, LOGGER, "route")


@contextmanager
def swallowing(lab: Lab, port: str) -> Iterator[None]:
    """The switch's port without its program and without NAPI, which veth has for a program or GRO only."""
    lab.call("switch", remove_xdp, port)
    lab.call("switch", turn_off_gro, port)
    try:
        yield
    finally:
        lab.call("switch", links.set_offloads, port)
        lab.call("switch", loader.attach_pass, port, network.load(lab.const))


def timed_attach(lab: Lab) -> float:
    """How long an attach takes, seconds."""
    begin = time.monotonic()
    assert attach(lab, "hardworker").code == 0
    seconds = time.monotonic() - begin
    assert detach(lab, "hardworker").code == 0
    return seconds
