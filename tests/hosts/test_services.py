"""The shipped units under a real systemd: installed, in any order, rebooted, without power, and taken away.

The tests are one story, in this order, on the same three hosts.
"""

import sqlite3
import struct
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from itertools import pairwise

import pytest
from tests.hosts.machine import Machine, wait_until
from tests.hosts.site import APPLICATION, OWN_PROGRAM, Site

pytestmark = pytest.mark.hosts


@pytest.fixture(autouse=True)
def all_on(site: Site) -> None:
    """A test that failed may have left a host off."""
    for machine in site.machines.values():
        if not machine.is_up:
            machine.boot()


ROLES = ("sensor", "hardworker", "logger")
BEFORE: dict[str, set[str]] = {}


def files(machine: Machine) -> set[str]:
    """Everything that an installation could leave."""
    places = ("/etc", "/usr/lib", "/var/lib", "/var/cache", "/var/log", "/run", "/sys/fs/bpf", "/home")
    unrelated = (
        "( -path /run/systemd -o -path /run/log -o -path /var/log/journal -o -path /var/lib/systemd -o "
        "-path /run/udev -o -path /var/log/[bw]tmp -o -name *.cache -o -path /run/credentials -o "
        "-name systemd-private-* ) -prune -o -print"
    )
    return set(machine.run("find", *places, *unrelated.split(), check=False).stdout.splitlines())


def test_the_first_host_of_three_is_not_waited_for(site: Site) -> None:
    """Hardworker: daemon and ring start at once, say what they lack, and go on saying it."""
    for role in ROLES:
        BEFORE[role] = files(site.machines[role])
    began = time.monotonic()
    told = site.hardworker.run("midstream", "service", "install", "hardworker").stdout
    took = time.monotonic() - began
    print(f"\nmidstream service install hardworker: {took:.1f} s\n{told}")
    assert took < 30
    site.says("hardworker", "midstream-daemon", "exploring: no logger and no sensor has been heard")
    site.says("hardworker", "midstream-ring", "waiting: /var/lib/midstream/const.toml: no such file")
    units = site.units("hardworker")
    assert {name: (unit["active"], unit["enabled"]) for name, unit in units.items()} == {
        "midstream-daemon": ("active (running)", "enabled"),
        "midstream-ring": ("active (running)", "enabled"),
    }
    again = site.hardworker.run("midstream", "service", "install", "hardworker").stdout
    assert again == "everything was there already\n"


def test_the_shipped_application_waits_as_an_ordinary_user(site: Site) -> None:
    site.hardworker.run("useradd", "--system", "robot")
    began = time.monotonic()
    site.hardworker.run("systemctl", "enable", "--now", "midstream-hardworker@robot")
    assert time.monotonic() - began < 15
    site.says("hardworker", "midstream-hardworker@robot", "waiting: /var/lib/midstream/const.toml")


def test_a_host_without_a_key_says_what_to_do_and_goes_on_when_it_is_there(site: Site) -> None:
    told = site.logger.run("midstream", "service", "install", "logger").stdout
    assert "copy it from the hardworker" in told
    site.says("logger", "midstream-daemon", "waiting: /etc/midstream/key: there is no key")
    # As a plain `scp` of root's leaves it.
    site.logger.run(
        "sh", "-c", "umask 077; cat > /etc/midstream/key", stdin="a key of root's, of 32 bytes or more"
    )
    site.says("logger", "midstream-daemon", "belongs to root, and midstream has to read it; `chown midstream")
    site.copy_key("logger")
    site.says("logger", "midstream-daemon", "exploring: no sensor has been heard")


def test_data_flows(site: Site) -> None:
    """The sensor is the last of the three."""
    site.sensor.run("midstream", "service", "install", "sensor")
    site.copy_key("sensor")
    site.sensor.run("sh", "-c", "echo '[data]\nfreq = 200.0' >> /etc/midstream/config.toml")
    began = time.monotonic()
    site.sensor.run("systemctl", "enable", "--now", "midstream-sensor")
    site.says("hardworker", "midstream-hardworker@robot", "receiving")
    stored = 0

    def more() -> bool:
        nonlocal stored
        counters = site.status("hardworker").get("hardworker", {}).get("counters", {})
        before, stored = stored, counters.get("10.83.0.11", {}).get("stored", 0)
        return bool(0 < before < stored)

    wait_until(more, 60, "the shipped application gets data")
    print(f"\nfrom the sensor's start to data: {time.monotonic() - began:.1f} s")
    for role in ROLES:
        site.says(role, "midstream-daemon", f"{role}: working, sensors: 1")
    site.says("logger", "midstream-logger", "listening")
    site.says("hardworker", "midstream-ring", "serving the ring")


def test_an_own_program_takes_the_place_of_the_example(site: Site) -> None:
    disk = site.hardworker.disk
    (disk / "opt/robot").mkdir()
    (disk / "opt/robot/application.py").write_text(APPLICATION)
    override = disk / "etc/systemd/system/midstream-hardworker@.service.d"
    override.mkdir()
    (override / "own.conf").write_text(OWN_PROGRAM)
    site.hardworker.run("systemctl", "daemon-reload")
    site.hardworker.run("systemctl", "restart", "midstream-hardworker@robot")
    site.flows()
    owner = site.hardworker.run("stat", "--format=%U", "/var/lib/robot/received").stdout
    assert owner == "robot\n"


def test_commands_find_the_services_files(site: Site) -> None:
    for role, command in (
        ("hardworker", ("status",)),
        ("sensor", ("status",)),
        ("logger", ("log", "list")),
        ("logger", ("doctor", "--no-probe")),
    ):
        ended = site.machines[role].run("midstream", *command, check=False)
        assert "/etc/midstream/config.toml is read" in ended.stderr and "no such file" not in ended.stderr
        assert ended.stdout
    assert site.status("hardworker")["config"] == "/etc/midstream/config.toml"


@pytest.mark.parametrize("role", ROLES)
def test_reboot(site: Site, role: str) -> None:
    site.machines[role].shut_down()
    site.machines[role].boot()
    print(f"\n{role}: fresh data {site.flows():.1f} s after the boot")


@pytest.mark.parametrize("role", ROLES)
def test_power_cut(site: Site, role: str) -> None:
    """Log and application have what was sent; what was in the ring, the log tells the application."""
    began = time.time()
    site.flows()
    time.sleep(1)
    site.machines[role].cut_power()
    time.sleep(1)
    site.machines[role].boot()
    print(f"\n{role}: fresh data {site.flows():.1f} s after the power is back")
    site.sensor.run("systemctl", "stop", "midstream-sensor")
    try:
        wait_until(lambda: is_whole(site), 60, "the log has all that the hardworker held")
        logged, delivered = site.logged(began), site.delivered(began)
        assert_without_gaps(logged)
        if role == "hardworker":
            in_the_ring = logged.keys() - delivered.keys()
            print(f"{len(in_the_ring)} messages were in the ring")
            assert delivered.keys() <= logged.keys()
            assert in_the_ring <= site.replayed(began).keys()
        else:
            assert delivered == logged
    finally:
        site.sensor.run("systemctl", "start", "midstream-sensor")
    site.flows()


def is_whole(site: Site) -> bool:
    """Has the log heard of everything, and does it have it?"""
    daemon = site.status("hardworker").get("daemon", {})
    if (daemon.get("destination"), daemon.get("spool")) != (site.logger.ip, "off"):
        return False
    return not daemon["held"]["untold_ends"] and not daemon["held"]["pending"] and site.verify() == 0


def assert_without_gaps(heads: Iterable[bytes]) -> None:
    """Each number follows the one before it, or a sensor begins anew."""
    sent = sorted(
        (time_ns, number) for number, time_ns in (struct.unpack("<QQ", head) for head in set(heads))
    )
    assert len(sent) > 100
    for (_, before), (_, number) in pairwise(sent):
        assert number in (before + 1, 0)


def test_the_hardworker_boots_while_the_logger_is_off(site: Site) -> None:
    """What was in force before is in force again; the application runs, and the spool stores."""
    site.logger.cut_power()
    site.hardworker.cut_power()
    site.hardworker.boot()
    began = time.monotonic()
    wait_until(
        lambda: site.status("hardworker").get("daemon", {}).get("program") == "native", 60, "the program"
    )
    print(f"\nprogram attached {time.monotonic() - began:.1f} s after the boot, without a logger")
    wait_until(
        lambda: site.property("hardworker", "midstream-hardworker@robot", "ActiveState") == "active",
        30,
        "the application",
    )
    site.says("hardworker", "midstream-daemon", "working, sensors: 1, data goes to the spool: ")
    site.flows()
    assert destination(site) == "spool"
    pid = site.hardworker.run("cat", "/run/midstream/spool.pid").stdout.strip()
    about = site.hardworker.run("grep", "-E", "^(Uid|Cap|NoNewPrivs)", f"/proc/{pid}/status").stdout.split(
        "\n"
    )
    user = site.hardworker.run("id", "--user", "midstream").stdout.strip()
    assert about[0].split() == ["Uid:", *[user] * 4]
    assert {line.split()[1] for line in about if line.startswith(("CapPrm", "CapEff", "CapAmb"))} == {
        "0" * 16
    }
    site.logger.boot()
    wait_until(lambda: destination(site) == site.logger.ip, 60, "the logger is the destination")
    site.flows()
    wait_until(lambda: site.status("hardworker")["daemon"]["spool"] == "off", 60, "the spool ends")


def destination(site: Site) -> str:
    return str(site.status("hardworker").get("daemon", {}).get("destination"))


def test_all_hosts_come_back_in_any_order(site: Site) -> None:
    for machine in (site.hardworker, site.sensor, site.logger):
        machine.cut_power()
    for machine in (site.sensor, site.logger, site.hardworker):
        machine.boot()
    print(f"\nall hosts: fresh data {site.flows():.1f} s after the last was switched on")


def test_ten_ordered_restarts(site: Site) -> None:
    """Of every service, with data flowing: none is lost or repeated at the application."""
    site.flows()
    first = len(site.records())
    restarted = (
        *(
            ("hardworker", unit)
            for unit in ("midstream-daemon", "midstream-ring", "midstream-hardworker@robot")
        ),
        *(("logger", unit) for unit in ("midstream-daemon", "midstream-logger")),
        *(("sensor", unit) for unit in ("midstream-daemon", "midstream-sensor")),
    )
    for number in range(10):
        role, unit = restarted[number % len(restarted)]
        site.machines[role].run("systemctl", "restart", unit)
        site.flows()
    sequences: dict[int, list[int]] = defaultdict(list)
    for _, _, number, sequence in site.records()[first:]:
        sequences[number].append(sequence)
    for connection, numbers in sequences.items():
        start = numbers[0]
        repeated = len(numbers) - len(set(numbers))
        assert sorted(set(numbers)) == list(range(start, start + len(set(numbers)))), f"{connection}: a gap"
        assert repeated <= 64, (
            f"{connection}: {repeated} repeated"
        )  # the last batch of a program that was killed


def test_a_slow_board_is_not_killed_while_it_compiles(site: Site) -> None:
    compiler = next(
        (site.hardworker.disk / "opt/midstream/lib").glob("python3*/site-packages/ziglang/__main__.py")
    )
    text = compiler.read_text()
    compiler.write_text(f"import time\ntime.sleep(15)  # longer than WatchdogSec\n{text}")
    try:
        site.hardworker.run(
            "systemctl", "stop", "midstream-hardworker@robot", "midstream-ring", "midstream-daemon"
        )
        site.hardworker.run("midstream", "detach", "hardworker")
        site.hardworker.run("sh", "-c", "rm -rf /var/cache/midstream/*.o")
        site.hardworker.run(
            "systemctl", "start", "midstream-daemon", "midstream-ring", "midstream-hardworker@robot"
        )
        wait_until(
            lambda: site.status("hardworker").get("daemon", {}).get("program") == "native", 90, "the program"
        )
        assert site.property("hardworker", "midstream-daemon", "NRestarts") == "0"
    finally:
        compiler.write_text(text)
    site.flows()


@pytest.mark.parametrize("role", ROLES)
def test_nothing_can_be_written_by_others(site: Site, role: str) -> None:
    places = (
        "/etc/midstream /var/lib/midstream /var/cache/midstream /run/midstream /sys/fs/bpf /opt/midstream"
    )
    command = f"find {places} -not -type l -perm /022 -not -name ring.sock"
    assert site.machines[role].run("sh", "-c", f"{command} 2>/dev/null || true").stdout == ""


def test_the_spool_has_what_no_logger_takes(site: Site) -> None:
    site.logger.run("systemctl", "stop", "midstream-logger")
    wait_until(lambda: destination(site) == "spool", 30, "the spool is the destination")
    site.flows()


@pytest.mark.parametrize("role", ROLES)
def test_uninstalled_nothing_is_left_but_the_data(site: Site, role: str) -> None:
    machine = site.machines[role]
    told = machine.run("midstream", "service", "uninstall").stdout
    assert "midstream-daemon.service: stopped and disabled" in told
    kept = ("/etc/midstream", "/var/lib/midstream")
    # Who makes and removes a user leaves these; the folders are systemd's.
    names = ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
    accounts = {f"/etc/{name}{dash}" for name in names for dash in ("", "-")}
    accounts |= {"/etc/.pwd.lock", "/etc/sysusers.d", "/etc/tmpfiles.d"}
    theirs = ("/var/lib/robot", "/etc/systemd/system/midstream-hardworker@.service.d", "/opt/robot")

    def left() -> set[str]:
        new = files(machine) - BEFORE[role] - accounts
        return {path for path in new if not path.startswith(theirs)}

    assert {path for path in left() if not path.startswith(kept)} == set()
    assert machine.run("ip", "-d", "link", "show", role).stdout.count("prog/xdp") == 0
    assert machine.run("sh", "-c", "grep -l '[/]midstream' /proc/[0-9]*/cmdline", check=False).stdout == ""
    if role == "logger":
        assert (machine.disk / "var/lib/midstream/midstream.db").exists()
    if role == "hardworker":
        assert spooled(machine) > 0
    machine.run("midstream", "service", "install", role)
    machine.run("midstream", "service", "uninstall", "--purge")
    assert left() == set()
    assert machine.run("id", "midstream", check=False).returncode != 0


def spooled(machine: Machine) -> int:
    """How many messages wait in its spool."""
    database = machine.disk / "var/lib/midstream/spool.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        return int(opened.execute("SELECT count(*) FROM messages").fetchone()[0])


def test_from_three_bare_hosts_to_data(site: Site) -> None:
    """As fast as the commands can be typed. The hosts have no cache, key, const.toml or user any more."""
    began = time.monotonic()
    for role in ("hardworker", "logger", "sensor"):
        site.machines[role].run("midstream", "service", "install", role)
        if role != "hardworker":
            site.copy_key(role)
    site.hardworker.run("systemctl", "enable", "--now", "midstream-hardworker@robot")
    site.sensor.run("systemctl", "enable", "--now", "midstream-sensor")
    typed = time.monotonic() - began
    site.flows()
    print(f"\nthree bare hosts: commands {typed:.1f} s, data after {time.monotonic() - began:.1f} s")
