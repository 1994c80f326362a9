"""Three hosts with systemd, and midstream installed on each; a switch between them.

Everything is made in this process's network and mount namespaces, which `make test-hosts` gives it.
"""

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.hosts import layers
from tests.hosts.machine import BRIDGE, Machine
from tests.hosts.site import ADDRESSES, Site

from midstream.network import Host, Topology


@pytest.fixture(scope="session")
def switch() -> Iterator[None]:
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up", "type", "bridge", "mcast_snooping", "0"], check=True)
    yield
    subprocess.run(["ip", "link", "del", BRIDGE], check=True)


@pytest.fixture(scope="session")
def site(switch: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The hosts are on; nothing of midstream runs on them yet."""
    for place in (layers.debian(), layers.WHEELS):
        assert place.exists(), f"{place}: missing; `make test-hosts` makes it"
    folder: Path = tmp_path_factory.mktemp("hosts")
    disks = [layers.installed(), layers.debian()]
    hosts = {role: Host(IPv4Address(ip), mac) for role, (ip, mac) in ADDRESSES.items()}
    topology = Topology(
        (hosts["sensor"],), hosts["hardworker"], hosts["logger"], tos=104, port=12345, mtu=1500, size=1024
    )
    machines: dict[str, Machine] = {}
    try:
        for role, (ip, mac) in ADDRESSES.items():
            machines[role] = Machine(role, ip, mac, folder / role, disks, topology)
        for machine in machines.values():
            machine.boot()
        for machine in machines.values():
            machine.settle()
        yield Site(machines)
    finally:
        for machine in machines.values():
            machine.scrap()
