"""The doctor's judgement of facts about one host: of each thing that may be wrong, exactly that finding."""

import platform
import re
import socket
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from tests.support import patients
from tests.support.objects import without_compiler
from tests.support.patients import FOREIGN, HARDWORKER, LOGGER, SENSORS, only, well

from midstream.config import Role
from midstream.doctor import clock, daemon, interface, kernel, neighbours, program, service
from midstream.doctor.clock import Clock
from midstream.doctor.daemon import Daemon
from midstream.doctor.finding import Status
from midstream.doctor.neighbours import Chain, Neighbour, Route
from midstream.doctor.repair import Repair, SetMtu, SetNeighbour, SetUp, SwitchOff
from midstream.doctor.service import ServiceState
from midstream.ebpf import objects
from midstream.errors import NetworkError

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 12, 21, 38, 39
ALL = (1 << 41) - 1
ROLES: tuple[Role, ...] = ("sensor", "hardworker", "logger")


# kernel


@pytest.mark.parametrize("role", ROLES)
def test_a_kernel_that_is_well(role: Role) -> None:
    assert well(list(kernel.check(patients.kernel(), patients.subject(role))))


@pytest.mark.parametrize(
    ("changed", "status", "check", "words"),
    [
        ({"release": "5.15.0-91-generic"}, "fault", "kernel", "Linux 5.15.0"),
        ({"release": "6.0.12"}, "fault", "kernel", "Linux 6.0.12"),
        ({"supports": {"XDP": False, "ring buffers": True}}, "fault", "eBPF", "lacks XDP"),
        ({"supports": {"XDP": None}}, "unknown", "eBPF", "only root may ask"),
        ({"bpffs": False}, "fault", "bpffs", "nothing is mounted"),
        ({"libbpf": ""}, "fault", "libbpf", "missing"),
        ({"libbpf": "0.8"}, "fault", "libbpf", "0.8"),
        ({"jit": 0}, "warning", "JIT", "interpreted"),
        ({"lockdown": "confidentiality"}, "warning", "lockdown", "confidentiality"),
        ({"capabilities": 0}, "warning", "capabilities", "lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON"),
        ({"capabilities": ALL ^ 1 << CAP_NET_ADMIN}, "warning", "capabilities", "lacks CAP_NET_ADMIN"),
        (
            {"capabilities": ALL ^ 1 << CAP_BPF ^ 1 << CAP_SYS_ADMIN},
            "warning",
            "capabilities",
            "lacks CAP_BPF",
        ),
    ],
)
def test_a_kernel_that_is_not(changed: dict[str, Any], status: Status, check: str, words: str) -> None:
    found = only(list(kernel.check(patients.kernel(**changed), patients.subject("hardworker"))), status)
    assert found.check == check
    assert words in found.found


@pytest.mark.parametrize(
    ("release", "advice"),
    [
        ("ID=debian", "apt-get install libbpf1"),
        ("ID=ubuntu\nID_LIKE=debian", "apt-get install libbpf1"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', "apt-get install libbpf1"),
        ('ID="fedora"', "install the package of this distribution that has libbpf.so.1"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "install the package of this distribution"),
        ("NAME=Own", "install the package of this distribution"),
        (None, "install the package of this distribution"),
    ],
)
@pytest.mark.parametrize("version", ["", "0.8"])
def test_debians_advice_is_for_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str | None, advice: str, version: str
) -> None:
    file = tmp_path / "os-release"
    if release is not None:
        file.write_text(release)
    monkeypatch.setattr(platform, "_os_release_candidates", (str(file),))
    monkeypatch.setattr(platform, "_os_release_cache", None)
    facts = patients.kernel(libbpf=version, distribution=kernel.read().distribution)
    found = only(list(kernel.check(facts, patients.subject("hardworker"))), "fault")
    assert found.check == "libbpf" and found.fix.startswith(advice)


def test_no_compiler_and_nothing_in_its_place() -> None:
    found = only(list(kernel.check(patients.kernel(compiler=""), patients.subject("hardworker"))), "fault")
    assert (found.check, found.fix) == ("compiler", "pip install 'midstream[compiler]'")


def test_without_a_compiler_the_objects_of_the_package_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    assert "midstream's own objects" in kernel.read().compiler
    monkeypatch.setattr(objects, "are_brought", lambda: False)
    assert kernel.read().compiler == ""


def test_only_what_is_used_is_asked_for() -> None:
    """The programs bring their own BTF, and none of them asks for the kernel's."""
    told = [str(finding) for finding in kernel.check(patients.kernel(), patients.subject("hardworker"))]
    assert not any("BTF" in text for text in told)


def test_sys_admin_contains_bpf_and_perfmon() -> None:
    facts = patients.kernel(capabilities=ALL ^ 1 << CAP_BPF ^ 1 << CAP_PERFMON)
    assert well(list(kernel.check(facts, patients.subject("hardworker"))))


@pytest.mark.parametrize(
    ("role", "settings"),
    [
        ("sensor", {}),
        ("hardworker", {"hardworker": {"receiver": "socket"}}),
        ("logger", {"network": {"restore": "sensor"}}),
    ],
)
def test_a_host_without_a_program_needs_no_ebpf(role: Role, settings: dict[str, Any]) -> None:
    bare = patients.kernel(bpffs=False, libbpf="", compiler="", supports={}, capabilities=0)
    assert well(list(kernel.check(bare, patients.subject(role, **settings))))


# interface


def test_an_interface_that_is_well() -> None:
    assert well(list(interface.check(patients.interface(), patients.subject("hardworker"))))
    logger = patients.interface(LOGGER, xdp="", program=0)
    assert well(list(interface.check(logger, patients.subject("logger"))))


@pytest.mark.parametrize(
    ("changed", "status", "check", "fix"),
    [
        ({"up": False}, "fault", "interface", "ip link set dev eth0 up"),
        ({"carrier": False}, "fault", "interface", "check the cable and the other end"),
        ({"mtu": 1400}, "warning", "MTU", "ip link set dev eth0 mtu 1500"),
        ({"mtu": 9000}, "fault", "MTU", "ip link set dev eth0 mtu 1500"),
        ({"offloads": frozenset({"rx-lro", "rx-gro"})}, "fault", "offloads", "ethtool -K eth0 rx-lro off"),
        ({"offloads": frozenset({"rx-gro-hw"})}, "fault", "offloads", "ethtool -K eth0 rx-gro-hw off"),
        (
            {"driver": "veth"},
            "fault",
            "offloads",
            "ethtool -K eth0 tx-checksum-ip-generic off tx-tcp-segmentation off",
        ),
        ({"native": None, "xdp": ""}, "unknown", "XDP mode", ""),
        (
            {"native": False, "xdp": ""},
            "warning",
            "XDP mode",
            "another network card, or accept the cost; it works",
        ),
        ({"errors": {"rx_crc_errors": 3}}, "warning", "card", "damaged frames: cable, plug or switch port"),
    ],
)
def test_an_interface_that_is_not(changed: dict[str, Any], status: Status, check: str, fix: str) -> None:
    facts = patients.interface(**changed)
    found = only(list(interface.check(facts, patients.subject("hardworker"))), status)
    assert (found.check, found.fix) == (check, fix)
    assert (found.repair is not None) == fix.startswith(("ip link", "ethtool"))


def test_another_card_or_address_than_const_toml_says() -> None:
    facts = patients.interface(mac=FOREIGN, addresses=())
    mac, address = [
        finding
        for finding in interface.check(facts, patients.subject("hardworker"))
        if finding.status == "fault"
    ]
    assert mac.fix.startswith(f"sed -i 's/{HARDWORKER.mac}/{FOREIGN}/' /")
    assert FOREIGN in mac.found and HARDWORKER.mac in mac.expected
    assert address.found == "eth0 has none" and "192.0.2.2 by const.toml [ip] hardworker" in address.expected


def test_linux_leaves_gro_out_where_a_generic_program_is_attached() -> None:
    facts = patients.interface(xdp="generic", native=False)
    found = only(list(interface.check(facts, patients.subject("hardworker"))), "warning")
    assert found.check == "XDP mode"


def test_gro_of_a_card_below_a_generic_program_merges() -> None:
    facts = patients.interface(xdp="generic", native=False, name="eth0.10", merging=("eth0",))
    found = [f for f in interface.check(facts, patients.subject("hardworker")) if f.status == "fault"]
    assert [f.fix for f in found] == ["ethtool -K eth0 rx-gro off"]
    assert found[0].repair


def test_offloads_of_tunnels_do_no_harm_on_veth() -> None:
    names = {"tx-udp_tnl-segmentation", "tx-gre-segmentation", "tx-sctp-segmentation", "tx-gso-list"}
    facts = patients.interface(driver="veth", offloads=frozenset(names | {"rx-gro", "tx-checksum-sctp"}))
    assert well(list(interface.check(facts, patients.subject("hardworker"))))


def test_generic_where_native_is_possible() -> None:
    facts = patients.interface(xdp="generic", offloads=frozenset())
    found = only(list(interface.check(facts, patients.subject("hardworker"))), "warning")
    assert "midstream detach hardworker --config" in found.fix
    assert "midstream attach hardworker --config" in found.fix


def test_no_interface() -> None:
    subject = patients.subject("logger")
    assert only(list(interface.check(None, subject)), "fault").found == "eth0: no such interface"
    nowhere = only(list(interface.check(None, replace(subject, interface=""))), "fault")
    assert nowhere.found == "no route to the peers"


# neighbours and routes


@pytest.mark.parametrize("role", ROLES)
def test_a_stack_that_is_well(role: Role) -> None:
    subject = patients.subject(role)
    assert well(list(neighbours.check(patients.stack(subject), subject)))


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (None, "warning"),
        (Neighbour(LOGGER.mac, "reachable"), "warning"),
        (Neighbour(LOGGER.mac, "stale"), "warning"),
        (Neighbour("", "incomplete"), "fault"),
        (Neighbour(LOGGER.mac, "failed"), "fault"),
        (Neighbour(FOREIGN, "permanent"), "fault"),
        (Neighbour(FOREIGN, "reachable"), "fault"),
    ],
)
@pytest.mark.parametrize("role", ["sensor", "hardworker"])
def test_a_wrong_neighbour(role: Role, entry: Neighbour | None, status: Status) -> None:
    subject = patients.subject(role)
    facts = patients.stack(subject)
    del facts.neighbours[LOGGER.ip]
    if entry:
        facts.neighbours[LOGGER.ip] = entry
    found = only(list(neighbours.check(facts, subject)), status)
    assert found.check == "neighbour" and "logger (192.0.2.3)" in found.found
    assert found.fix == "ip neigh replace 192.0.2.3 lladdr 02:00:00:00:00:03 dev eth0 nud permanent"
    assert found.repair


def test_somebody_else_with_a_peers_mac() -> None:
    subject = patients.subject("logger")
    facts = patients.stack(subject)
    facts.neighbours[IPv4Address("192.0.2.77")] = Neighbour(SENSORS[1].mac, "stale")
    found = only(list(neighbours.check(facts, subject)), "warning")
    assert "192.0.2.77 has the MAC address of sensor 192.0.2.12" in found.found


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (None, "none"),
        (Route("eth0", "192.0.2.1", "192.0.2.11"), "through eth0 via 192.0.2.1"),
        (Route("eth0", "", "192.0.2.200"), "from 192.0.2.200"),
    ],
)
def test_a_wrong_route(route: Route | None, words: str) -> None:
    subject = patients.subject("sensor")
    facts = patients.stack(subject)
    facts.routes[HARDWORKER.ip] = route
    found = only(list(neighbours.check(facts, subject)), "fault")
    assert (found.check, found.found) == ("route", f"hardworker (192.0.2.2): {words}")
    assert found.fix == "ip route replace 192.0.2.2/32 dev eth0 src 192.0.2.11"
    assert found.repair is None


@pytest.mark.parametrize(("mode", "drops"), [(0, False), (1, True), (2, False)])
def test_the_strict_filter_wants_the_way_back(mode: int, drops: bool) -> None:
    subject = patients.subject("sensor")
    facts = patients.stack(subject, rp_filter=mode)
    facts.routes[HARDWORKER.ip] = Route("eth1", "", "192.0.2.11")
    faults = {finding.check for finding in neighbours.check(facts, subject) if finding.status == "fault"}
    assert faults == ({"route", "rp_filter"} if drops else {"route"})


@pytest.mark.parametrize(
    ("changed", "status", "check", "words"),
    [
        (
            {"chains": (Chain("filter input", "input", drops=True),)},
            "warning",
            "firewall",
            "filter input at input drops",
        ),
        (
            {"chains": (Chain("filter input", "input", drops=False),)},
            "unknown",
            "firewall",
            "rules are not judged",
        ),
        ({"iptables": ("filter",)}, "unknown", "firewall", "iptables' table filter"),
        ({"chains": None}, "unknown", "firewall", "cannot be listed"),
        ({"arp_ignore": {"all": 8, "eth0": 0}}, "warning", "ARP", "arp_ignore = 8 of all"),
    ],
)
def test_what_may_drop(changed: dict[str, Any], status: Status, check: str, words: str) -> None:
    subject = patients.subject("logger")
    found = only(list(neighbours.check(patients.stack(subject, **changed), subject)), status)
    assert found.check == check and words in found.found


# program


def test_a_program_that_is_well() -> None:
    subject = patients.subject("hardworker")
    facts = patients.program(counters={"stored": 10, "pure_ack": 3, "stranger": 0})
    findings = list(program.check(facts, patients.interface(), subject))
    assert well(findings)
    assert findings[1].found == "stored 10, pure_ack 3"


@pytest.mark.parametrize(
    ("changed", "link", "words", "fix"),
    [
        (
            {"pinned": False, "attached": "", "current": None},
            {"program": 0},
            "not attached",
            "midstream attach hardworker",
        ),
        ({"pinned": True, "attached": ""}, {"program": 0}, "not attached", "midstream detach hardworker"),
        (
            {"pinned": False, "attached": "", "current": None},
            {},
            "is not midstream's",
            "ip link set dev eth0 xdp off",
        ),
        ({"current": False}, {}, "made from other files", "midstream detach hardworker"),
        ({"attached": "eth1"}, {}, "attached to eth1", "midstream detach hardworker"),
        (
            {"missing": ("journal",)},
            {},
            "journal missing in /sys/fs",
            "rm -r /sys/fs/bpf/midstream/hardworker; ",
        ),
    ],
)
def test_a_program_that_is_not(changed: dict[str, Any], link: dict[str, Any], words: str, fix: str) -> None:
    subject = patients.subject("hardworker")
    facts = patients.program(**changed)
    found = only(list(program.check(facts, patients.interface(**link), subject)), "fault")
    assert words in found.found
    assert found.fix.startswith(fix) and f"--config {subject.config.path}" in found.fix


def test_what_attach_has_set_and_somebody_has_taken_back() -> None:
    facts = patients.program(untuned=("interrupts of eth0 are not deferred",))
    found = only(list(program.check(facts, patients.interface(), patients.subject("hardworker"))), "warning")
    assert found.fix.startswith("midstream attach hardworker --config ")


def test_pins_that_may_not_be_read() -> None:
    facts = patients.program(pinned=False, attached="", current=None, problem="Permission denied")
    found = only(list(program.check(facts, patients.interface(), patients.subject("hardworker"))), "unknown")
    assert found.found == "Permission denied"


@pytest.mark.parametrize(
    ("data", "size", "ring_size"),
    [
        ({"freq": 1000.0}, 1024, 2**20),
        ({"freq": 10.0}, 2**20, 2**22),
        ({"freq": 30.0}, 100 * 1024, 2**22),
    ],
    ids=["many", "large", "a camera"],
)
def test_a_ring_that_does_not_hold_a_second(data: dict[str, Any], size: int, ring_size: int) -> None:
    """What it advises is enough. The room is that of the records which the program makes."""
    subject = patients.subject("hardworker", data=data, hardworker={"ring_size": ring_size})
    subject = replace(subject, topology=replace(subject.topology, size=size))
    found = only(list(program.check(patients.program(), patients.interface(), subject)), "warning")
    assert found.check == "ring"
    (advised,) = re.findall(r"ring_size = (\d+);", found.fix)
    assert ring_size < int(advised) <= 32 * 2**20
    larger = patients.subject("hardworker", data=data, hardworker={"ring_size": int(advised)})
    larger = replace(larger, topology=subject.topology)
    assert well(list(program.check(patients.program(), patients.interface(), larger)))


@pytest.mark.parametrize(
    ("freq", "size"), [(1000.0, 1024), (10.0, 2**20), (30.0, 100 * 1024), (25_000.0, 1024)]
)
def test_the_ring_that_nobody_sized_holds_a_second(freq: float, size: int) -> None:
    subject = patients.subject("hardworker", data={"freq": freq})
    one = replace(subject.topology, size=size, sensors=subject.topology.sensors[:1])
    assert well(list(program.check(patients.program(), patients.interface(), replace(subject, topology=one))))


@pytest.mark.parametrize("data", [{}, {"freq": 0.0}, {"freq": 1e6, "framing": "line"}])
def test_a_rate_that_nobody_has_named_is_not_judged(data: dict[str, Any]) -> None:
    subject = patients.subject("hardworker", data=data, hardworker={"ring_size": 4096})
    assert well(list(program.check(patients.program(), patients.interface(), subject)))


def test_a_program_where_none_belongs() -> None:
    facts = patients.program(folder=Path("/sys/fs/bpf/midstream/sensor"))
    found = only(list(program.check(facts, None, patients.subject("sensor"))), "warning")
    assert found.fix.startswith("midstream detach sensor")
    nothing = patients.program(pinned=False, attached="", current=None)
    assert well(list(program.check(nothing, None, patients.subject("sensor"))))


@pytest.mark.parametrize("name", program.TROUBLE)
def test_each_counter_of_trouble_is_explained(name: str) -> None:
    facts = patients.program(counters={"stored": 5, name: 1200})
    found = only(list(program.check(facts, patients.interface(), patients.subject("hardworker"))), "warning")
    assert (found.check, found.found, found.fix) == ("counters", f"{name} 1,200", program.TROUBLE[name])


# repairs


@pytest.mark.parametrize(
    "repair",
    [
        SetUp("nowhere0"),
        SetMtu("nowhere0", 1500),
        SetNeighbour("nowhere0", LOGGER.ip, LOGGER.mac),
        SwitchOff("nowhere0", ("rx-gro",)),
    ],
)
def test_a_repair_that_is_refused_names_its_command(repair: Repair) -> None:
    with pytest.raises(NetworkError, match=f"^`{repair.command}`: the kernel refused"):
        repair.apply()


# clock


@pytest.mark.parametrize(
    ("facts", "status"),
    [(Clock(True, 1500), "ok"), (Clock(False, 0), "warning"), (Clock(None, 0), "unknown")],
)
def test_the_clock(facts: Clock, status: Status) -> None:
    assert clock.check(facts).status == status


@pytest.mark.parametrize(
    ("facts", "fix"),
    [
        ({"running": "chronyd", "installed": "chronyd", "systemd": True}, "chronyc sources"),
        ({"running": "systemd-timesyncd", "installed": "chronyd"}, "timedatectl timesync-status"),
        ({"installed": "systemd-timesyncd", "systemd": True}, "timedatectl set-ntp true"),
        ({"installed": "chronyd", "systemd": True}, "systemctl enable --now chrony || systemctl enable"),
        ({"installed": "ntpd"}, "start ntpd: nothing here starts services"),
        ({"installed": "systemd-timesyncd"}, "start systemd-timesyncd"),
        ({"systemd": True}, "install chrony"),
        ({}, "install chrony"),
    ],
)
def test_the_advice_on_the_clock_fits_the_host(facts: dict[str, Any], fix: str) -> None:
    assert clock.check(Clock(False, 0, **facts)).fix.startswith(fix)


def test_the_kernels_word_on_the_clock() -> None:
    """adjtimex answers on every Linux, and needs no rights to be asked."""
    assert clock.read().synchronised is not None


# the logger's service


def served(**changed: Any) -> ServiceState:
    facts: dict[str, Any] = {
        "listening": frozenset({(LOGGER.ip, 12345)}),
        "database": "sqlite:////var/lib/midstream/midstream.db",
        "exists": True,
        "problem": "",
        "free": 10**12,
    }
    return ServiceState(**facts | changed)


def test_a_service_that_is_well() -> None:
    subject = patients.subject("logger")
    assert well(list(service.check(served(), subject)))
    assert well(list(service.check(served(listening=frozenset({(IPv4Address(0), 12345)})), subject)))
    assert well(list(service.check(served(free=None, exists=False), subject)))


@pytest.mark.parametrize(
    ("changed", "status", "check", "words"),
    [
        (
            {"listening": frozenset({(LOGGER.ip, 22)})},
            "fault",
            "logger",
            "nothing listens on 192.0.2.3 port 12345",
        ),
        ({"listening": frozenset({(HARDWORKER.ip, 12345)})}, "fault", "logger", "nothing listens"),
        ({"problem": "file is not a database"}, "fault", "database", "file is not a database"),
        # 2 sensors × 1000 Hz × 1024 B: an hour takes 7.4 GB
        ({"free": 7 * 10**9}, "warning", "disk", "7.0 GB free, 0.9 hours at 2.05 MB a second"),
    ],
)
def test_a_service_that_is_not(changed: dict[str, Any], status: Status, check: str, words: str) -> None:
    found = only(list(service.check(served(**changed), patients.subject("logger"))), status)
    assert found.check == check and words in found.found


def test_room_where_the_rate_is_not_limited() -> None:
    subject = patients.subject("logger", data={"freq": 0})
    assert only(list(service.check(served(free=10**8), subject)), "warning").expected == "1 GiB or more"
    assert well(list(service.check(served(free=10**10), subject)))


def test_a_database_is_looked_at_and_not_made(tmp_path: Path) -> None:
    name = tmp_path / "midstream.db"
    subject = patients.subject("logger", logger={"database": f"sqlite:///{name}"})
    facts = service.read(subject)
    assert (facts.exists, facts.problem) == (False, "") and facts.free
    assert not name.exists()
    name.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    assert "not a database" in service.read(subject).problem
    nowhere = patients.subject("logger", logger={"database": "sqlite:////nowhere/midstream.db"})
    assert "/nowhere does not exist" in service.read(nowhere).problem


def test_a_server_that_does_not_run_and_its_password() -> None:
    url = "postgresql+nodriver://me:secret@192.0.2.9/midstream"
    facts = service.read(patients.subject("logger", logger={"database": url}))
    assert facts.problem and "secret" not in facts.problem + facts.database


def test_sockets_are_read_as_the_kernel_writes_them() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 0300000A:3039 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n"
        "   1: 0300000A:3039 0B00000A:9C40 01 00000000:00000000 00:00000000 00000000     0\n"
    )
    assert service._listening(table) == {(IPv4Address("10.0.0.3"), 12345)}


# daemon

WORKING = {
    "state": "working",
    "reason": "",
    "seconds": 100.0,
    "destination": "192.0.2.3",
    "destination_reason": "",
    "destination_seconds": 99.0,
    "repaired": 3,
}


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (Daemon(WORKING), "ok", "working, 3 repaired"),
        (Daemon(None), "warning", "does not run"),
        (Daemon(problem="/run/d.sock: this user may not ask"), "unknown", "may not ask"),
        (Daemon(problem="/run/d.sock: the daemon does not answer", hangs=True), "fault", "does not answer"),
        (
            Daemon(WORKING | {"state": "exploring", "reason": "no logger has been heard"}),
            "warning",
            "exploring for 100 s: no logger has been heard",
        ),
        (Daemon(WORKING | {"state": "error", "reason": "the MTUs differ"}), "fault", "the MTUs differ"),
        (
            Daemon(WORKING | {"destination": "spool", "destination_reason": "192.0.2.3: no logger listens"}),
            "warning",
            "this host's spool for 99 s: 192.0.2.3: no logger listens",
        ),
        (
            Daemon(WORKING | {"spool_fault": "sqlite:////spool.db: file is not a database"}),
            "fault",
            "the spool stores nothing: sqlite:////spool.db: file is not a database",
        ),
    ],
)
def test_what_the_daemon_says(facts: Daemon, status: Status, words: str) -> None:
    found = daemon.check(facts, patients.subject("hardworker"))
    assert (found.check, found.status) == ("daemon", status)
    assert words in found.found
    assert status == "ok" or found.fix


@pytest.mark.parametrize("unit", [True, False])
def test_the_daemon_is_started_as_this_host_does_it(unit: bool) -> None:
    subject = patients.subject("hardworker")
    stopped, hanging = Daemon(unit=unit), Daemon(problem="no answer", hangs=True, unit=unit)
    own = f"midstream daemon --config {subject.config.path}"
    start, restart = "systemctl start midstream-daemon", "systemctl restart midstream-daemon"
    assert daemon.check(stopped, subject).fix == (start if unit else own)
    assert daemon.check(hanging, subject).fix == (restart if unit else f"end that process, then: {own}")


def test_a_daemon_is_asked_at_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "daemon.sock"
    host = patients.subject("logger", daemon={"socket": str(path)})
    assert daemon.read(host) == Daemon()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert daemon.read(host) == Daemon(), "it was killed, and left its socket"
        monkeypatch.setattr("os.access", lambda *_: False)
        assert "this user may not ask" in daemon.read(host).problem
        monkeypatch.undo()
        monkeypatch.setattr("midstream.daemon.status._PATIENCE", 0.05)
        listener.listen()
        assert daemon.read(host).hangs
