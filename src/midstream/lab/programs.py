"""The lab's eBPF programs: attached on each host as `midstream attach` does it on a real one."""

from pathlib import Path

from midstream import config as configuration
from midstream import network
from midstream.config import Role
from midstream.ebpf import loader
from midstream.ebpf.attachment import Attachment
from midstream.lab.hosts import INTERFACE
from midstream.lab.lab import Lab


def attach(lab: Lab) -> list[Attachment]:
    """Attach the hardworker's program and that of the return path; what is attached already stays.

    Each host pins below the lab's folder, under its own name. Raises as `loader.attach` does.
    """
    config = configuration.load(lab.config)
    topology = network.load(lab.const)
    hosts: list[tuple[str, Role]] = (
        [("hardworker", "hardworker")] if config.hardworker.receiver == "ebpf" else []
    )
    if config.network.restore == "logger":
        hosts.append(("logger", "logger"))
    else:
        hosts += [(host.name, "sensor") for host in lab.sensors]
    return [
        lab.call(
            name,
            loader.attach,
            role,
            config,
            topology,
            folder=Path(config.network.pins, name),
            interface=INTERFACE,
        )
        for name, role in hosts
    ]
