"""All checks of a host, in the order in which a person would mend things."""

from collections.abc import Iterator

from midstream.doctor import clock, daemon, interface, kernel, legs, neighbours, program, reach
from midstream.doctor.finding import Finding, unknown
from midstream.doctor.subject import Subject
from midstream.errors import KernelError, NetworkError


def examine(subject: Subject, *, probe: bool = True) -> list[Finding]:
    """Every finding about this host. probe: also send packets to the peers. Changes nothing."""
    return list(_examine(subject, probe))


def mend(findings: list[Finding]) -> list[str]:
    """Apply the repairs of these findings; returns their commands. Raises NetworkError if one is refused."""
    done = []
    for finding in findings:
        if finding.repair:
            finding.repair.apply()
            done.append(finding.repair.command)
    return done


def _examine(subject: Subject, probe: bool) -> Iterator[Finding]:
    yield from kernel.check(kernel.read(), subject)
    link = interface.read(subject.interface) if subject.interface else None
    yield from interface.check(link, subject)
    if link:
        yield from neighbours.check(neighbours.read(subject), subject)
    yield from program.check(program.read(subject), link, subject)
    yield daemon.check(daemon.read(subject), subject)
    yield clock.check(clock.read())
    if subject.role == "logger":
        # Imported here: SQLAlchemy loads slowly, and no other host needs it.
        from midstream.doctor import service

        yield from service.check(service.read(subject), subject)
    if not probe:
        return
    if not link or not link.up:
        yield unknown("legs", "no packets can be sent: the interface is down")
        return
    try:
        probes = reach.probe(subject)
    except (KernelError, NetworkError) as error:
        yield unknown("legs", str(error))
        return
    yield from legs.check(probes, subject)
