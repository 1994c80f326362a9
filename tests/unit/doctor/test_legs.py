"""What answers to probes mean: of each leg that may be broken, exactly that finding."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from tests.support import patients
from tests.support.patients import FOREIGN, HARDWORKER, LOGGER, SENSORS, only, well

from midstream.config import Role
from midstream.doctor import legs, reach
from midstream.doctor.finding import Status
from midstream.doctor.reach import TRIES, Answer, Probes
from midstream.network import Host
from midstream.packet import Flags, Packet, judge

REQUEST, RELAYED, REPLY = "sensor → hardworker", "hardworker → logger", "logger → sensor"
ROUND = (Answer(LOGGER.mac, HARDWORKER.ip),) * TRIES
UNRESTORED = (Answer(LOGGER.mac, LOGGER.ip),) * TRIES
STAYED = (Answer(HARDWORKER.mac, HARDWORKER.ip),) * TRIES


def owners(role: Role) -> dict[IPv4Address, frozenset[str]]:
    return {host.ip: frozenset({host.mac}) for host in patients.subject(role).peers.values()}


def seen_by_sensor(**changed: Any) -> Probes:
    facts: dict[str, Any] = {
        "owners": owners("sensor"),
        "marked": ROUND,
        "to_logger": UNRESTORED,
        "stacks": {HARDWORKER.ip: STAYED},
    }
    return Probes(**facts | changed)


def verdicts(probes: Probes, **settings: Any) -> dict[str, Status]:
    findings = legs.check(probes, patients.subject("sensor", **settings))
    return {finding.check: finding.status for finding in findings if finding.check != "ARP"}


def test_all_is_well_from_each_host() -> None:
    assert well(list(legs.check(seen_by_sensor(), patients.subject("sensor"))))
    roles: tuple[Role, ...] = ("hardworker", "logger")
    for role in roles:
        subject = patients.subject(role)
        stacks = {host.ip: (Answer(host.mac, host.ip),) * TRIES for host in subject.peers.values()}
        assert well(list(legs.check(Probes(owners(role), stacks=stacks), subject)))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("ok", "ok", "ok")),
        # no marked probe came round: who answers otherwise tells where it was lost
        ({"marked": ()}, ("ok", "fault", "ok")),
        ({"marked": (), "stacks": {}}, ("fault", "unknown", "ok")),
        ({"marked": (), "to_logger": ()}, ("ok", "unknown", "fault")),
        ({"marked": (), "to_logger": (), "stacks": {}}, ("fault", "unknown", "unknown")),
        # it came, but not as it should
        ({"marked": STAYED}, ("ok", "fault", "ok")),
        ({"marked": STAYED, "to_logger": ()}, ("ok", "fault", "fault")),
        ({"marked": UNRESTORED}, ("ok", "ok", "fault")),
        # some were lost
        ({"marked": ROUND[:1]}, ("warning", "warning", "warning")),
        # a firewall hides what the other probes ask for: the marked ones decide
        ({"to_logger": (), "stacks": {}}, ("ok", "ok", "ok")),
    ],
)
def test_the_broken_leg(changed: dict[str, Any], expected: tuple[Status, ...]) -> None:
    assert verdicts(seen_by_sensor(**changed)) == dict(zip((REQUEST, RELAYED, REPLY), expected, strict=True))


def test_replies_restored_on_the_sensor_come_with_the_loggers_address() -> None:
    settings = {"network": {"restore": "sensor"}}
    assert set(verdicts(seen_by_sensor(marked=UNRESTORED), **settings).values()) == {"ok"}
    assert verdicts(seen_by_sensor(), **settings)[REPLY] == "warning"


def test_the_user_mode_handler_answers_itself() -> None:
    settings = {"hardworker": {"receiver": "socket"}}
    assert verdicts(seen_by_sensor(marked=STAYED), **settings) == {REQUEST: "ok"}


@pytest.mark.parametrize(("role", "leg"), [("hardworker", RELAYED), ("logger", RELAYED)])
def test_the_other_end_is_silent(role: Role, leg: str) -> None:
    subject = patients.subject(role)
    stacks = {host.ip: (Answer(host.mac, host.ip),) * TRIES for host in SENSORS}
    assert only(list(legs.check(Probes(owners(role), stacks=stacks), subject)), "fault").check == leg


@pytest.mark.parametrize(("role", "leg"), [("hardworker", REQUEST), ("logger", REPLY)])
@pytest.mark.parametrize("answered", [0, 1])
def test_a_silent_sensor_may_be_off(role: Role, leg: str, answered: int) -> None:
    subject = patients.subject(role)
    stacks = {host.ip: (Answer(host.mac, host.ip),) * TRIES for host in subject.peers.values()}
    stacks[SENSORS[1].ip] = stacks[SENSORS[1].ip][:answered]
    found = only(list(legs.check(Probes(owners(role), stacks=stacks), subject)), "warning")
    assert found.check == leg and "sensor 192.0.2.12" in found.found


@pytest.mark.parametrize(
    ("host", "macs", "words"),
    [
        (LOGGER, {FOREIGN}, f"logger (192.0.2.3) is at {FOREIGN}"),
        (LOGGER, {FOREIGN, LOGGER.mac}, f"logger (192.0.2.3) is at {LOGGER.mac} and at {FOREIGN}"),
        (LOGGER, set(), "logger (192.0.2.3) does not answer"),
        (SENSORS[0], {FOREIGN}, f"this host's own address 192.0.2.11 is also at {FOREIGN}"),
    ],
)
def test_who_owns_an_address(host: Host, macs: set[str], words: str) -> None:
    probes = seen_by_sensor()
    probes.owners[host.ip] = frozenset(macs)
    found = only(list(legs.check(probes, patients.subject("sensor"))), "fault")
    assert (found.check, found.found) == ("ARP", words)


def test_a_sensor_that_answers_no_arp_is_perhaps_off() -> None:
    subject = patients.subject("logger")
    stacks = {host.ip: (Answer(host.mac, host.ip),) * TRIES for host in subject.peers.values()}
    probes = Probes(owners("logger"), stacks=stacks)
    del probes.owners[SENSORS[0].ip]
    assert only(list(legs.check(probes, subject)), "warning").check == "ARP"


# the probes themselves


def test_a_marked_probe_is_relayed_and_holds_no_data() -> None:
    subject = patients.subject("sensor")
    packet = Packet.parse(reach._tcp_probe(subject, HARDWORKER, 40000, 12345, 99))
    assert judge(packet.pack(), subject.topology).action == "relay"
    assert (packet.payload, packet.tcp.flags, packet.tcp.acknowledgment) == (b"", Flags.ACK, 99)
    assert packet == packet.with_checksums()


def test_an_arp_probe_names_no_address_of_its_own() -> None:
    frame = reach._arp_probe(SENSORS[0], LOGGER.ip)
    assert frame.hex() == (
        "ffffffffffff0200000000110806"  # broadcast, from the sensor, ARP
        "0001080006040001"  # Ethernet, IPv4, a request
        "02000000001100000000000000000000c0000203"
    )  # fmt: skip
    assert reach._arp_reply(frame) is None


def test_an_arp_reply_and_what_is_none() -> None:
    reply = bytes.fromhex(
        "02000000001102000000000308060001080006040002020000000003c0000203"
        "02000000001100000000"
    )  # fmt: skip
    assert reach._arp_reply(reply + bytes(18)) == (LOGGER.ip, LOGGER.mac)
    assert reach._arp_reply(reply[:-1]) is None
    assert reach._arp_reply(reply.replace(b"\x08\x06", b"\x08\x00", 1)) is None


def test_reserved_ports_are_all_different() -> None:
    held = [reach._reserve_port() for _ in range(8)]
    try:
        assert len({socket.getsockname()[1] for socket in held}) == 8
    finally:
        for socket in held:
            socket.close()


def test_hosts_are_called_by_name() -> None:
    assert list(patients.subject("hardworker").peers) == ["logger", "sensor 192.0.2.11", "sensor 192.0.2.12"]
    assert list(patients.subject("sensor").peers) == ["hardworker", "logger"]
    assert replace(patients.subject("logger"), interface="").interface == ""
