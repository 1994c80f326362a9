"""What the probes' answers mean: who owns the addresses, and which leg of the triangle is broken."""

from collections.abc import Iterator
from shlex import quote

from midstream.doctor.finding import Finding, fault, ok, unknown, warning
from midstream.doctor.reach import TRIES, Answer, Probes
from midstream.doctor.subject import Subject, sensor_name
from midstream.network import Host
from midstream.packet import Leg

_ORDER = "cable, switch and power of both ends; then `midstream doctor` on the other hosts"


def check(probes: Probes, subject: Subject) -> Iterator[Finding]:
    yield from _check_owners(probes, subject)
    if subject.role == "sensor":
        yield from _check_triangle(probes, subject)
    elif subject.role == "hardworker":
        yield _check_pair(Leg.RELAYED, "logger", subject.topology.logger, probes)
        yield from _check_sensors(Leg.REQUEST, probes, subject)
    else:
        yield _check_pair(Leg.RELAYED, "hardworker", subject.topology.hardworker, probes)
        yield from _check_sensors(Leg.REPLY, probes, subject)


def _check_owners(probes: Probes, subject: Subject) -> Iterator[Finding]:
    """const.toml against who answers: a replaced card, an address given twice, ARP spoofing."""
    right = 0
    for name, host in subject.peers.items():
        who = name if str(host.ip) in name else f"{name} ({host.ip})"
        owners = probes.owners.get(host.ip, frozenset())
        others = ", ".join(sorted(owners - {host.mac}))
        if owners == {host.mac}:
            right += 1
        elif not owners:
            # A sensor may be switched off; without hardworker or logger nothing works.
            report = warning if host in subject.topology.sensors else fault
            yield report("ARP", f"{who} does not answer", host.mac, f"see that it is up: {_ORDER}")
        elif host.mac in owners:
            yield fault(
                "ARP",
                f"{who} is at {host.mac} and at {others}",
                "one owner",
                f"find the host with {others}: an address given twice, or ARP spoofing",
            )
        else:
            yield fault(
                "ARP",
                f"{who} is at {others}",
                f"{host.mac} by const.toml",
                f"sed -i 's/{host.mac}/{others}/' {quote(str(subject.config.const_path))}  "
                "# on every host, if its card was replaced, then detach and attach; otherwise find who "
                "pretends to be it",
            )
    if others := ", ".join(sorted(probes.owners.get(subject.host.ip, frozenset()) - {subject.host.mac})):
        yield fault(
            "ARP",
            f"this host's own address {subject.host.ip} is also at {others}",
            "one owner",
            f"find the host with {others} and give it another address",
        )
    if right:
        yield ok("ARP", f"{right} of {len(subject.peers)} peers are who const.toml says")


def _check_triangle(probes: Probes, subject: Subject) -> Iterator[Finding]:
    """The three legs, as a sensor sees them."""
    hardworker, logger = subject.topology.hardworker, subject.topology.logger
    if probes.marked:
        if probes.marked[0].mac == logger.mac:
            yield from _check_round_trip(probes.marked, subject)
        elif subject.config.hardworker.receiver == "socket":
            yield ok(Leg.REQUEST, "the hardworker's own TCP answers, as receiver = socket wants it")
        else:
            yield ok(Leg.REQUEST, "the hardworker answers")
            yield fault(
                Leg.RELAYED,
                f"marked packets stay at the hardworker: its own TCP answers ({probes.marked[0].mac})",
                f"the logger's ({logger.mac})",
                f"on the hardworker: {subject.command('attach', 'hardworker')}; if it is attached, "
                f"its const.toml must have this sensor, {subject.host.ip} and {subject.host.mac}",
            )
            yield _check_reply(probes, subject)
        return
    through, direct = bool(probes.stacks.get(hardworker.ip)), bool(probes.to_logger)
    lost = f"{TRIES} of {TRIES} marked probes were lost"
    if through and direct:
        yield ok(Leg.REQUEST, "the hardworker's own TCP answers")
        yield fault(
            Leg.RELAYED,
            f"{lost}, though hardworker and logger answer by themselves",
            "the logger's reset",
            "on the hardworker: midstream status, midstream doctor; then the switch: it must let the "
            "hardworker's port send with the sensors' IP addresses, and the logger's with the hardworker's",
        )
        yield ok(Leg.REPLY, "the logger answers when asked directly")
    elif through:
        yield ok(Leg.REQUEST, "the hardworker's own TCP answers")
        yield unknown(Leg.RELAYED, "not to be told: the logger's answers do not arrive")
        yield fault(Leg.REPLY, f"{lost}, and the logger does not answer directly either", "its reset", _ORDER)
    elif direct:
        yield fault(
            Leg.REQUEST,
            f"{lost}, and the hardworker's own TCP does not answer either",
            "a reset",
            f"{_ORDER}; a firewall of the hardworker may hide its TCP, not what XDP takes",
        )
        yield unknown(Leg.RELAYED, "not to be told: nothing gets to the hardworker")
        yield ok(Leg.REPLY, "the logger answers when asked directly")
    else:
        yield fault(
            Leg.REQUEST,
            f"{lost}, and neither hardworker nor logger answers by itself",
            "resets",
            f"begin at this host's own {subject.interface}: {_ORDER}",
        )
        yield unknown(Leg.RELAYED, "not to be told from here")
        yield unknown(Leg.REPLY, "not to be told from here")


def _check_round_trip(answers: tuple[Answer, ...], subject: Subject) -> Iterator[Finding]:
    """The marked probe came back from the logger."""
    topology, restore = subject.topology, subject.config.network.restore
    for leg in (Leg.REQUEST, Leg.RELAYED):
        yield _counted(leg, answers, f"{len(answers)} of {TRIES} marked probes came round")
    expected = topology.hardworker.ip if restore == "logger" else topology.logger.ip
    if all(answer.ip == expected for answer in answers):
        yield _counted(Leg.REPLY, answers, f"{len(answers)} of {TRIES} came back, from {expected}")
    elif restore == "logger":
        yield fault(
            Leg.REPLY,
            f"replies have the logger's address {topology.logger.ip}: a sensor resets them",
            f"the hardworker's, {expected}",
            f"on the logger: {subject.command('attach', 'logger')}",
        )
    else:
        yield warning(
            Leg.REPLY,
            f"replies have the hardworker's address already, though network.restore = {restore}",
            f"the logger's, {expected}",
            f"on the logger: {subject.command('detach', 'logger')}",
        )


def _check_reply(probes: Probes, subject: Subject) -> Finding:
    if probes.to_logger:
        return _counted(Leg.REPLY, probes.to_logger, "the logger answers when asked directly")
    return fault(
        Leg.REPLY,
        f"{subject.topology.logger.ip} answers none of {TRIES} direct probes",
        "its reset",
        _ORDER,
    )


def _check_pair(leg: Leg, name: str, host: Host, probes: Probes) -> Finding:
    """A leg between this host and one other, by what the other's TCP answers; both directions are needed."""
    answers = probes.stacks.get(host.ip, ())
    if answers:
        return _counted(leg, answers, f"the {name}'s TCP answered {len(answers)} of {TRIES} probes")
    return fault(
        leg,
        f"the {name} at {host.ip} answers none of {TRIES} probes",
        "its reset",
        f"{_ORDER}; its firewall may hide it (`nft list ruleset` there)",
    )


def _check_sensors(leg: Leg, probes: Probes, subject: Subject) -> Iterator[Finding]:
    """A sensor may be off, or behind a firewall that answers nothing: that is no fault of the network."""
    reached = 0
    for host in subject.topology.sensors:
        answers = probes.stacks.get(host.ip, ())
        if len(answers) == TRIES:
            reached += 1
        elif answers:
            yield _counted(leg, answers, f"{sensor_name(host)}: {len(answers)} of {TRIES} probes came back")
        else:
            yield warning(
                leg,
                f"{sensor_name(host)} answers none of {TRIES} probes",
                "its reset",
                f"{_ORDER}, the sensor first: only it can tell the legs apart",
            )
    if reached:
        yield ok(leg, f"{reached} of {len(subject.topology.sensors)} sensors answer")


def _counted(leg: Leg, answers: tuple[Answer, ...], found: str) -> Finding:
    if len(answers) >= TRIES:
        return ok(leg, found)
    return warning(leg, found, f"{TRIES} of {TRIES}", "packets are lost: cable, switch, load")
