"""What has become of the services of this host."""

import re
from typing import Any

from midstream.systemd.run import output

UNITS = ("midstream-daemon", "midstream-ring", "midstream-logger", "midstream-sensor")
APPLICATIONS = "midstream-hardworker@*.service"
_PROPERTIES = ("ActiveState", "SubState", "UnitFileState", "StateChangeTimestamp", "StatusText", "NRestarts")
_TROUBLE = re.compile(r"^(midstream: |waiting: |\S+ (warning|error) )|Failed|failed")
_LINES = 200  # of a unit's journal in which its last error is looked for


def read() -> list[dict[str, Any]]:
    """Each service of midstream that is installed here, as systemd sees it, and its last error."""
    listed = output("systemctl", "list-units", "--all", "--plain", "--no-legend", APPLICATIONS)
    applications = [line.split()[0] for line in listed.splitlines() if line.strip()]
    found = (_unit(name) for name in (*(f"{unit}.service" for unit in UNITS), *applications))
    return [unit for unit in found if unit is not None]


def _unit(name: str) -> dict[str, Any] | None:
    asked = ",".join(("LoadState", *_PROPERTIES))
    told = dict(
        line.split("=", 1) for line in output("systemctl", "show", f"--property={asked}", name).splitlines()
    )
    if told.get("LoadState") != "loaded":
        return None
    return {
        "unit": name,
        "enabled": told["UnitFileState"],
        "active": f"{told['ActiveState']} ({told['SubState']})",
        "since": told["StateChangeTimestamp"],
        "restarts": int(told["NRestarts"] or 0),
        "status": told["StatusText"],
        "last_error": _last_error(name),
    }


def _last_error(name: str) -> str:
    """The newest line of trouble in the unit's journal of this boot, and when that was."""
    journal = output(
        *("journalctl", "--boot", f"--unit={name}", "--no-pager", "--quiet"),
        *("--output=short-iso", f"--lines={_LINES}"),
    )
    for line in reversed(journal.splitlines()):
        head, _, said = line.partition("]: ")
        if _TROUBLE.search(said):
            return f"{head.partition(' ')[0]} {said}"
    return ""
