"""What the daemon does to its host: neighbours, const.toml, the program, the way of the data.

Everything here waits for the kernel or the compiler, and runs in one of the daemon's two threads: what way.py
and retention.py ask for in that of the way, all else in the worker's (service.py).
"""

import errno
import os
import socket
import time
from collections.abc import Mapping
from functools import partial
from shlex import quote

import numpy as np
from pyroute2 import NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import network
from midstream.config import Config
from midstream.daemon import interface as interfaces
from midstream.daemon.announcement import Announcement
from midstream.daemon.identity import Identity
from midstream.daemon.interface import Interface
from midstream.daemon.neighbours import Neighbours
from midstream.daemon.resets import send_resets
from midstream.ebpf import attachment, control, loader, pins
from midstream.ebpf.attachment import Attachment
from midstream.ebpf.control import Open
from midstream.ebpf.retained import Committed, Retained, retained
from midstream.errors import ConfigError, KernelError, NetworkError
from midstream.network import Topology

_EVER = 1 << 64  # nanoseconds, more than any clock counts


class ThisHost:
    """The host of a role. in_force: the topology that neighbours, const.toml and program follow now."""

    def __init__(self, config: Config, identity: Identity) -> None:
        self._config, self._role, self.identity = config, identity.role, identity
        self._neighbours = Neighbours()
        self.folder = pins.default_folder(identity.role, config)
        self.in_force: Topology | None = None
        self.attachment: Attachment | None = None

    @property
    def has_program(self) -> bool:
        """Does this role need an eBPF program, the way config.toml is?"""
        if self._role == "hardworker":
            return self._config.hardworker.receiver == "ebpf"
        return self._config.network.restore == self._role

    def previous(self) -> Topology | None:
        """What const.toml says, if there is one that can be read."""
        try:
            return network.load(self._config.const_path)
        except ConfigError:
            return None

    def known(self) -> Topology | None:
        """What is in force. A daemon that was killed and started anew has not found the others yet: until
        then it is what const.toml says."""
        return self.in_force or self.previous()

    def read_interface(self) -> Interface:
        """That to the peers. A const.toml of the user's says which of several addresses counts."""
        topology = None if self._config.daemon.explore else self.previous()
        hosts = (*topology.sensors, topology.hardworker, *topology.loggers) if topology else ()
        return interfaces.read(self._config.network.interface, [host.ip for host in hosts])

    def announcement(self, interface: Interface) -> Announcement:
        """What this host says of itself."""
        return self.identity.announcement(interface, self.previous())

    def put_in_force(
        self, topology: Topology, interface: Interface, *, again: bool = False, logger: bool = True
    ) -> bool:
        """Make the host follow the topology; False if it did already. Raises MidstreamError.

        again: it was in force before this host went down. The self-test was passed then, so a logger that is
        off now keeps nothing from being attached; where `logger` tells that it is off, it is not waited for.
        """
        if topology == self.in_force and self.attachment_holds():
            return False
        self._write_const(topology)
        self.repair(topology, interface)
        if self.has_program:
            if self.attachment and self.folder.exists() and not self._is_whole:
                pins.remove(self.folder)  # without its stamp it would be taken for somebody else's
            again = again or self.in_force is not None
            self.attachment = self._attach(topology, interface, again, self_test=logger or not again)
        self.in_force = topology
        return True

    def _attach(
        self, topology: Topology, interface: Interface, again: bool, *, self_test: bool
    ) -> Attachment:
        attach = partial(
            loader.attach, self._role, self._config, topology, folder=self.folder, interface=interface.name
        )
        try:
            return attach(replace=True, self_test=self_test)
        except KernelError as error:
            if not again or error.errno != errno.EHOSTUNREACH:
                raise
            return attach(replace=True, self_test=False)

    def attachment_holds(self) -> bool:
        """Is the program still where it was attached?"""
        return not self.has_program or (
            self.attachment is not None
            and attachment.find(self._role, self.folder) is not None
            and self._is_whole
        )

    @property
    def _is_whole(self) -> bool:
        if not pins.is_whole(self._role, self.folder):
            return False
        topology = self.known() if self._role == "hardworker" else None
        return topology is None or len(pins.stream_folders(self.folder)) == len(topology.ports)

    @property
    def is_unlinked(self) -> bool:
        """Has an XDP program lost its interface? Cheap, for a host that asks often: nobody tells of it."""
        linked = self._role != "logger" and self.attachment is not None
        return linked and pins.is_linked(self.folder, self._role) is False

    def repair(self, topology: Topology, interface: Interface) -> list[str]:
        """Set the neighbours, and what else is in force; what was wrong, in words. Raises MidstreamError."""
        try:
            socket.if_indextoname(interface.index)
        except OSError:
            return []  # it is gone, which whoever reads it anew says
        hosts = (topology.hardworker, *topology.loggers, *topology.sensors)
        wanted = {host.ip: host.mac for host in hosts if host.ip != interface.ip}
        try:
            repaired = self._neighbours.ensure(interface, wanted)
            if topology == self.in_force:
                if self._write_const(topology):
                    repaired.append(f"{self._config.const_path}: removed or changed, written again")
                if self._is_whole and self.attachment and self.attachment.interface == interface.name:
                    repaired += loader.tune(self._role, interface.name, self._config, topology, self.folder)
        except NetlinkError as error:
            raise NetworkError(
                f"{interface.name}: the kernel refused a neighbour or a route ({os.strerror(error.code)}); "
                f"is the interface up? `ip link show dev {quote(interface.name)}`"
            ) from error
        return repaired

    def _write_const(self, topology: Topology) -> bool:
        """Write const.toml, where it is the daemon's; False if it says the same already."""
        author = f"midstream daemon on {self.identity.name}"
        return self._config.daemon.explore and network.write(self._config.const_path, topology, author)

    def release(self, interface: Interface) -> None:
        """Take the neighbours and routes away. The program stays: it serves without the daemon."""
        self._neighbours.remove(interface)

    # what way.py asks of the program

    def destination(self) -> int:
        """Where new connections go."""
        return control.read_destination(self.folder)

    def send_to(self, destination: int) -> None:
        """Let new connections go there."""
        control.set_destination(self.folder, destination)

    def look(self) -> tuple[list[Open], np.ndarray]:
        """The open connections, and what was counted."""
        return control.connections(self.folder), loader.counters(self.folder)

    def reset(self, destination: int, before_ns: int = _EVER) -> int:
        """End the connections that go there and were opened before that, for the reader and for the sensors;
        how many they were."""
        opened = [
            one
            for one in control.connections(self.folder)
            if one.destination == destination and one.opened_ns < before_ns
        ]
        waiting, deadline = opened, time.monotonic() + 1.0
        while waiting:
            refused = control.break_off(self.folder, waiting)
            if time.monotonic() > deadline:
                refused = []
            # A stream whose ring is full, until its reader makes room, holds up no other one's sensors.
            self._send_resets([one for one in waiting if one not in refused])
            if waiting := refused:
                time.sleep(0.01)
        return len(opened)

    def _send_resets(self, ended: list[Open]) -> None:
        if self.in_force:
            send_resets(ended, self.in_force.hardworker.ip, self.in_force.ports)

    # what retention.py asks of the ring

    def ports(self) -> Mapping[int, str]:
        """The stream of each marked port."""
        return self.in_force.ports if self.in_force else {}

    def connections(self) -> list[Open]:
        """Those that are open."""
        return control.connections(self.folder)

    def tell(self, committed: Mapping[str, Mapping[int, int]], known: Mapping[str, int]) -> None:
        """What the logger has committed, per stream."""
        for stream, ring in self._rings.items():
            ring.tell(committed.get(stream, {}), known.get(stream, 0))

    def renew(self) -> None:
        """That holds for another 15 seconds."""
        for ring in self._rings.values():
            ring.renew()

    def withdraw(self) -> None:
        """Nothing is to be retained."""
        for ring in self._rings.values():
            ring.withdraw()

    def retained(self) -> dict[int, Retained]:
        """What the ring has."""
        return retained(self.folder)

    def forfeited(self) -> int:
        """Bytes that were to be retained and were not."""
        return sum(ring.forfeited for ring in self._rings.values())

    @property
    def _rings(self) -> dict[str, Committed]:
        """What the reader of each stream's ring is told."""
        return {name: Committed.open(place) for name, place in pins.stream_folders(self.folder).items()}
