"""const.toml: round trip, every refusal, the atomic write, and the interface of a route."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream import network
from midstream.errors import ConfigError, NetworkError
from midstream.network import Host, Topology, dumps, find_interface, load, write

TOPOLOGY = Topology(
    sensors=(Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11"),),
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
)
GOOD = dumps(TOPOLOGY)

# Unicast addresses: 1.0.0.0 to 223.255.255.255, and MACs with an even first byte that are not all zero.
IPS = st.integers(1 << 24, (224 << 24) - 1).map(IPv4Address)
MACS = st.tuples(st.integers(0, 127), st.integers(1, 2**40 - 1)).map(
    lambda parts: bytes([parts[0] * 2, *parts[1].to_bytes(5)]).hex(":")
)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    count, standbys = draw(st.integers(3, 40)), draw(st.integers(0, 15))
    all_ = count + standbys
    ips = draw(st.lists(IPS, min_size=all_, max_size=all_, unique=True))
    macs = draw(st.lists(MACS, min_size=all_, max_size=all_, unique=True))
    hardworker, logger, *others = map(Host, ips, macs)
    return Topology(
        sensors=tuple(others[standbys:]),
        hardworker=hardworker,
        logger=logger,
        standbys=tuple(others[:standbys]),
        tos=draw(st.just(0) | st.integers(16, 63).map(lambda dscp: dscp * 4)),
        port=draw(st.integers(1, 65535)),
        mtu=draw(st.integers(576, 3498)),
        size=draw(st.integers(1, 2**20)),
    )


def read(folder: Path, text: str) -> Topology:
    path = folder / "const.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def refusal(folder: Path, text: str) -> str:
    """The error's text without the file, which every line must begin with."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    prefix = f"{folder / 'const.toml'}: "
    assert all(line.startswith(prefix) for line in lines)
    return "\n".join(line.removeprefix(prefix) for line in lines)


def changed(key: str, value: str, text: str = GOOD) -> str:
    """A good file with one value replaced: `mark.tos`, `ip.sensor`, …"""
    table, name = key.split(".")
    pattern = rf"(\[{table}\]\n(?:[^\[].*\n|\[\n|\]\n)*?){name} = (\[[^\]]*\]|.*)"
    text, count = re.subn(pattern, lambda match: f"{match[1]}{name} = {value}", text, count=1)
    assert count == 1
    return text


@given(topologies())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, topology: Topology) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert read(folder, dumps(topology)) == topology
    write(folder / "written.toml", topology, "a test")
    assert load(folder / "written.toml") == topology


def test_a_single_sensor_needs_no_list(tmp_path: Path) -> None:
    text = changed("ip.sensor", '"10.83.0.11"', changed("mac.sensor", '"02:00:00:00:00:11"'))
    assert "[\n" not in text
    assert read(tmp_path, text) == TOPOLOGY


def test_mac_notation(tmp_path: Path) -> None:
    assert (
        read(tmp_path, changed("mac.hardworker", '"0A-00-00-00-00-Ff"')).hardworker.mac == "0a:00:00:00:00:ff"
    )
    assert TOPOLOGY.logger.mac_bytes == b"\x02\0\0\0\0\x03"


def test_the_mark_has_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("[mark]\ntos = 104\nport = 12345\n", "")) == TOPOLOGY


STANDBY = '[[standby]]\nip = "10.83.0.4"\nmac = "02:00:00:00:00:04"\n'


def test_further_loggers(tmp_path: Path) -> None:
    """The first stays `logger`; the others follow, in the order of the file."""
    second = STANDBY.replace("4", "5")
    topology = read(tmp_path, GOOD + STANDBY + second)
    assert topology.logger == TOPOLOGY.logger
    assert [str(host.ip) for host in topology.loggers] == ["10.83.0.3", "10.83.0.4", "10.83.0.5"]
    assert [host.mac[-2:] for host in topology.standbys] == ["04", "05"]
    assert TOPOLOGY.loggers == (TOPOLOGY.logger,)
    many = [Host(IPv4Address(f"10.83.1.{n}"), f"02:00:00:00:01:{n:02x}") for n in range(16)]
    assert "at most 15 tables" in refusal(tmp_path, dumps(replace(TOPOLOGY, standbys=tuple(many))))


@pytest.mark.parametrize(
    ("standbys", "line"),
    [
        (
            STANDBY.replace('"10.83.0.4"', '"10.83.0.3"'),
            'standby[0].ip = "10.83.0.3": the address of ip.logger',
        ),
        (STANDBY.replace('"10.83.0.4"', '"10.83.0.11"'), "the address of ip.sensor[0] already"),
        (STANDBY.replace("00:04", "00:02"), "the address of mac.hardworker already"),
        (
            STANDBY + STANDBY.replace("00:04", "00:05"),
            'standby[1].ip = "10.83.0.4": the address of standby[0].ip',
        ),
        (STANDBY.replace('"10.83.0.4"', '"::1"'), "an IPv6 address"),
        (STANDBY.replace("mac =", "max ="), "standby[0].max = "),
        ('[[standby]]\nip = "10.83.0.4"\n', "standby[0].mac: missing"),
        ('[standby]\nip = "10.83.0.4"\n', "at most 15 tables with ip and mac"),
    ],
)
def test_further_loggers_refused(tmp_path: Path, standbys: str, line: str) -> None:
    assert line in refusal(tmp_path, GOOD + standbys)


def test_as_many_sensors_as_allowed(tmp_path: Path) -> None:
    first = IPv4Address("10.84.0.0")
    hosts = [Host(first + n, (0x020001000000 + n).to_bytes(6).hex(":")) for n in range(4097)]
    most = replace(TOPOLOGY, sensors=tuple(hosts[:4096]))
    assert read(tmp_path, dumps(most)) == most
    text = refusal(tmp_path, dumps(replace(TOPOLOGY, sensors=tuple(hosts))))
    assert "ip.sensor = [" in text
    assert "4097 sensors" in text
    assert "a list of 1 to 4096" in text


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("ip.logger", '"fe80::1"', "an IPv6 address, and midstream works with IPv4 only"),
        ("ip.logger", '"::ffff:10.83.0.3"', "an IPv6 address"),
        ("ip.logger", '"10.83.0"', "not an IPv4 address"),
        ("ip.logger", '"10.83.0.3/24"', "not an IPv4 address"),
        ("ip.logger", '"logger.local"', "not an IPv4 address"),
        ("ip.logger", "3", "not a string"),
        ("ip.logger", '"224.0.0.1"', "a multicast address"),
        ("ip.logger", '"255.255.255.255"', "the broadcast address"),
        ("ip.logger", '"240.0.0.1"', "an address that no host can have"),
        ("ip.logger", '"0.0.0.0"', "an address that no host can have"),
        ("ip.logger", '"10.83.0.2"', "the address of ip.hardworker already"),
        ("ip.sensor", "[]", "0 sensors"),
        ("ip.sensor", "3", "a unicast IPv4 address"),
        ("mac.logger", '"ff:ff:ff:ff:ff:ff"', "the broadcast address"),
        ("mac.logger", '"00:00:00:00:00:00"', "the zero address"),
        ("mac.logger", '"01:00:5e:00:00:01"', "a multicast address"),
        ("mac.logger", '"02:00:00:00:00"', "not six bytes"),
        ("mac.logger", '"02:00-00:00:00:03"', "not six bytes"),
        ("mac.logger", '"020000000003"', "not six bytes"),
        ("mac.logger", "3", "a unicast MAC address"),
        ("mac.logger", '"02:00:00:00:00:02"', "the address of mac.hardworker already"),
        ("mac.sensor", '["02:00:00:00:00:12", "02:00:00:00:00:13"]', "2 in [mac] and 1 in [ip]"),
        ("mark.port", "0", "from 1 to 65535"),
        ("mark.port", "65536", "from 1 to 65535"),
        ("mark.port", '"http"', "an integer"),
        ("data.mtu", "575", "from 576 to 3498"),
        ("data.mtu", "3499", "XDP needs the whole frame in one memory page"),
        ("data.size", "0", "from 1 to 1048576"),
        ("data.size", "1048577", "from 1 to 1048576"),
        ("data.size", "true", "an integer"),
    ],
)
def test_values_refused(tmp_path: Path, key: str, value: str, reason: str) -> None:
    text = refusal(tmp_path, changed(key, value))
    assert text.startswith(f"{key} = {value}: ")
    assert reason in text
    assert "must be " in text and "; correct it" in text
    assert len(text.splitlines()) == 1


@given(st.integers(-300, 600))
@settings(max_examples=300)
def test_tos(tmp_path_factory: pytest.TempPathFactory, tos: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    if tos == 0 or (64 <= tos <= 255 and tos % 4 == 0):
        assert read(folder, changed("mark.tos", str(tos))).tos == tos
        return
    text = refusal(folder, changed("mark.tos", str(tos)))
    assert text.startswith(f"mark.tos = {tos}: ")
    assert "must be 0 (any TOS) or a multiple of 4 from 64 to 252" in text
    inside = 0 <= tos <= 255
    assert ("8 bits" in text) == (not inside)
    assert ("its lowest bit is set" in text) == (inside and tos % 2 == 1)
    assert ("ECN's (RFC 3168)" in text) == (inside and tos % 4 != 0)
    assert ("precedence 000 is in use: routine" in text) == (inside and tos < 32)
    assert ("precedence 001 is in use: priority" in text) == (32 <= tos < 64)


def test_duplicates_are_all_named(tmp_path: Path) -> None:
    text = changed("ip.sensor", '["10.83.0.11", "10.83.0.11", "10.83.0.2"]')
    text = changed("mac.sensor", '["02:00:00:00:00:11", "02:00:00:00:00:12", "02:00:00:00:00:03"]', text)
    starts = [line.split("; ")[0] for line in refusal(tmp_path, text).splitlines()]
    assert starts == [
        'mac.sensor[2] = "02:00:00:00:00:03": the address of mac.logger already',
        'ip.sensor[1] = "10.83.0.11": the address of ip.sensor[0] already',
        'ip.sensor[2] = "10.83.0.2": the address of ip.hardworker already',
    ]


def test_a_mac_in_two_notations_is_one_address(tmp_path: Path) -> None:
    text = refusal(tmp_path, changed("mac.logger", '"02-00-00-00-00-02"'))
    assert text.startswith('mac.logger = "02-00-00-00-00-02": the address of mac.hardworker already')


def test_faults_in_every_table_are_listed(tmp_path: Path) -> None:
    text = changed("ip.sensor", '["::1", "x"]')
    for key, value in (("mac.logger", '"zz"'), ("mark.tos", "33"), ("mark.port", "0"), ("data.mtu", "9000")):
        text = changed(key, value, text)
    keys = [line.split(" = ")[0] for line in refusal(tmp_path, text + "mtus = 3\n").splitlines()]
    assert keys == [
        "mac.logger",
        "ip.sensor[0]",
        "ip.sensor[1]",
        "mark.tos",
        "mark.port",
        "data.mtu",
        "data.mtus",
    ]


@pytest.mark.parametrize("table", ["mac", "ip", "data"])
def test_missing_tables(tmp_path: Path, table: str) -> None:
    text = re.sub(rf"\[{table}\]\n(.+\n)+", "", GOOD)
    assert refusal(tmp_path, text).startswith(f"[{table}]: missing; must be a table with ")


@pytest.mark.parametrize(
    "key", ["mac.sensor", "mac.hardworker", "ip.sensor", "ip.logger", "data.mtu"]
)
def test_missing_keys(tmp_path: Path, key: str) -> None:
    text = "\n".join(line for line in changed(key, "GONE").splitlines() if "GONE" not in line)
    assert refusal(tmp_path, text).startswith(f"{key}: missing; must be ")


def test_the_size_is_missing(tmp_path: Path) -> None:
    text = GOOD.replace("size = 1024\n", "")
    assert refusal(tmp_path, text).startswith("data.size: missing; no [[stream]] says it; must be an integer")


def test_unknown_keys_suggest_the_nearest(tmp_path: Path) -> None:
    assert refusal(tmp_path, "sensors = 1\n" + GOOD).startswith("sensors = 1: no such key; did you mean ")
    text = refusal(tmp_path, GOOD + "port = 1\n")
    assert text == "data.port = 1: no such key; did you mean mark.port?"


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"const\.toml: no such file; `midstream daemon` writes it"):
        load(tmp_path / "const.toml")


def test_write_is_idempotent_and_signed(tmp_path: Path) -> None:
    path = tmp_path / "const.toml"
    assert write(path, TOPOLOGY, "the lab\x00\nof\ttests") is True
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# Written by the lab of tests at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\.\n", text)
    assert text.endswith(f"\n\n{GOOD}")
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat()
    assert write(path, TOPOLOGY, "somebody else") is False
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_text(encoding="utf-8") == text
    assert write(path, replace(TOPOLOGY, port=1), "somebody else") is True
    assert load(path).port == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", GOOD.encode()[:-3], b"# Written by hand\n"])
def test_write_replaces_what_is_not_the_topology(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "const.toml"
    path.write_bytes(content)
    assert write(path, TOPOLOGY, "a test") is True
    assert load(path) == TOPOLOGY


def test_write_refuses_what_load_would_refuse(tmp_path: Path) -> None:
    path = tmp_path / "const.toml"
    with pytest.raises(ConfigError, match=r"const\.toml: mark\.tos = 13: its lowest bit"):
        write(path, replace(TOPOLOGY, tos=13), "a test")
    with pytest.raises(ConfigError, match=r"ip\.sensor = \[\]: 0 sensors"):
        write(path, replace(TOPOLOGY, sensors=()), "a test")
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "const.toml"
    write(path, TOPOLOGY, "a test")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"const\.toml: cannot be written \(No space left on device\)"):
        write(path, replace(TOPOLOGY, port=1), "a test")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written \(No such file or directory\); check"):
        write(tmp_path / "none/const.toml", TOPOLOGY, "a test")


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "const.toml"
    first = IPv4Address("10.84.0.0")
    hosts = tuple(Host(first + n, (0x020001000000 + n).to_bytes(6).hex(":")) for n in range(2000))
    versions = [TOPOLOGY, replace(TOPOLOGY, sensors=hosts)]
    bodies = {dumps(version) for version in versions}
    write(path, versions[0], "a test")
    done = threading.Event()
    seen: list[str] = []

    def reader() -> None:
        while not done.is_set():
            seen.append(path.read_text(encoding="utf-8").partition("\n\n")[2])

    thread = threading.Thread(target=reader)
    thread.start()
    for turn in range(1, 21):
        write(path, versions[turn % 2], "a test")
    done.set()
    thread.join()
    assert seen
    assert set(seen) <= bodies


def test_the_route_to_this_host_is_the_loopback() -> None:
    assert find_interface(IPv4Address("127.0.0.1")) == "lo"


def test_find_interface_inside_a_running_event_loop() -> None:
    async def inside() -> str:
        return find_interface(IPv4Address("127.0.0.1"))

    assert asyncio.run(inside()) == "lo"


def test_no_route_is_a_network_error() -> None:
    """In a network namespace of its own, where the kernel has no route at all."""
    script = (
        "from ipaddress import IPv4Address\n"
        "from midstream.errors import NetworkError\n"
        "from midstream.network import find_interface\n"
        "try:\n    print(find_interface(IPv4Address('192.0.2.1')))\n"
        "except NetworkError as error:\n    print('refused:', error)\n"
    )
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(Path(network.__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode and os.geteuid():
        pytest.skip(f"no namespaces without root here: {run.stderr.strip()}")
    assert run.stdout.startswith("refused: no route to 192.0.2.1 (Network is unreachable); "), run.stderr
    assert "network.interface" in run.stdout
    assert NetworkError.exit_code == 5
