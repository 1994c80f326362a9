"""What the daemon shows of itself: to `midstream status`, and to the service manager."""

import os
import time
from contextlib import suppress
from typing import Any

from midstream.daemon.destinations import Destinations
from midstream.daemon.host import ThisHost
from midstream.daemon.notify import notify
from midstream.daemon.plan import addresses
from midstream.daemon.reconciling import Reconciler
from midstream.daemon.talking import Hearing
from midstream.daemon.way import SPOOL
from midstream.errors import KernelError

_OF_PEER = {"role", "name", "ip", "mac", "standby"}


class DaemonSnapshot:
    """Looks at the parts whenever it is asked, and changes nothing."""

    def __init__(
        self, host: ThisHost, hearing: Hearing, destinations: Destinations, reconciler: Reconciler
    ) -> None:
        self._host, self._hearing = host, hearing
        self._destinations, self._reconciler = destinations, reconciler
        self._told = ""

    def state(self) -> dict[str, Any]:
        """What `midstream status` shows."""
        now, found = time.monotonic(), self._reconciler
        topology, attachment = self._host.in_force, self._host.attachment
        way, retention, teller = (
            self._destinations.way,
            self._destinations.retention,
            self._destinations.teller,
        )
        sensors = [str(host.ip) for host in topology.sensors] if topology else []
        silent = teller.silent if teller else {}
        return {
            "role": self._host.identity.role,
            "name": self._host.identity.name,
            "pid": os.getpid(),
            "state": "error" if found.fault else "working" if found.ready_after else "exploring",
            "reason": found.fault or found.reason,
            "seconds": round(now - found.started, 1),
            "ready_after": round(found.ready_after, 3),
            "interface": found.interface.name,
            "ip": str(found.interface.ip),
            "mac": found.interface.mac,
            "peers": [
                peer.said.model_dump(mode="json", include=_OF_PEER) | {"age": round(now - peer.heard, 1)}
                for peer in self._hearing.peers.all()
            ],
            "sensors": sensors,
            "program": attachment.mode if attachment else None,
            "loggers": addresses(topology),
            "destination": way.name(topology) if topology else "",
            "destination_reason": way.reason,
            "destination_seconds": round(way.seconds, 1),
            "spool": way.spool.state if way.spool else None,
            "spool_fault": way.spool.fault() if way.spool else "",
            "retains": retention.retains if retention else None,
            "forfeited": self._forfeited() if retention else None,
            "unsaved": way.spool.unsaved if way.spool else 0,
            "held": teller.state() if teller else None,
            "silent": {
                stream: [ip for number, ip in enumerate(sensors) if number in found]
                for stream, found in silent.items()
            },
            "repaired": found.repaired,
            "repairs": list(found.repairs),
            "rejected": dict(self._hearing.rejected),
        }

    def tell(self) -> None:
        """Tell the service manager the status line, if it is another one."""
        if self._told != (line := self._line()):
            self._told = line
            notify(f"STATUS={self._host.identity.role}: {line}")

    def _line(self) -> str:
        found, topology, way = self._reconciler, self._host.in_force, self._destinations.way
        if found.fault:
            return found.fault
        if not found.ready_after:
            return f"exploring: {found.reason}"
        line = f"working, sensors: {len(topology.sensors) if topology else 0}"
        if topology and way.reason:
            name = way.name(topology)
            line += f", data goes to {'the spool' if name == SPOOL else name}: {way.reason}"
        return line

    def _forfeited(self) -> int | None:
        """Bytes that the ring could not retain for the logger."""
        with suppress(KernelError):  # there is no program just now
            return self._host.forfeited()
        return None
