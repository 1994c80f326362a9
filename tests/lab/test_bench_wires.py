"""The hosts beside a virtual hardworker: their TCP is as slow as its clock."""

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.bench.machine import wires
from midstream.lab import namespaces


def _smallest_timeout(address: str) -> int:
    """Of TCP on the way to an address, in milliseconds; 0: Linux's own."""
    with IPRoute() as ipr:
        (route,) = ipr.route("get", dst=address)
        metrics = route.get_attr("RTA_METRICS")
        return int(metrics.get_attr("RTAX_RTO_MIN") or 0) if metrics else 0


def test_their_timers_follow_the_factor() -> None:
    with wires.wired(2, 1500) as hosts:
        beside = [host for host in hosts if host.name != "hardworker"]
        (hardworker,) = [host for host in hosts if host.name == "hardworker"]
        assert len(beside) == 3
        for slow in (8, 32, 8, 1):
            wires.slow_down(hosts, slow)
            found = {
                namespaces.call(host.namespace, (), _smallest_timeout, str(hardworker.ip)) for host in beside
            }
            assert found == {200 * slow}
