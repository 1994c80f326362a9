"""The logger's kernel acknowledges at once while its program is attached, and as before after detach."""

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.lab.triangle import command

from midstream.ebpf.quickack import PROTOCOL
from midstream.lab import Lab


def test_routes_come_and_go_with_the_program(lab: Lab) -> None:
    sensors = [(str(host.ip), 1) for host in lab.sensors]
    before = lab.call("logger", routes)
    for _ in range(2):  # once more changes nothing
        assert command(lab, "logger", "attach", "logger", "--config", lab.config).code == 0
        assert lab.call("logger", prompt) == sensors
    assert command(lab, "logger", "detach", "logger", "--config", lab.config).code == 0
    assert lab.call("logger", routes) == before


def prompt() -> list[tuple[str, int]]:
    """Destinations of our routes, and whether what comes from there is acknowledged at once."""
    with IPRoute() as netlink:
        found = [
            (str(route.get("dst")), int(route.get_attr("RTA_METRICS").get_attr("RTAX_QUICKACK") or 0))
            for route in netlink.get_routes(proto=PROTOCOL)
        ]
    return sorted(found)


def routes() -> list[tuple[str, int]]:
    with IPRoute() as netlink:
        return sorted((str(route.get("dst")), int(route["proto"])) for route in netlink.get_routes(table=254))
