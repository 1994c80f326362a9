"""What a check says."""

from dataclasses import dataclass
from typing import Literal

from midstream.doctor.repair import Repair

Status = Literal["ok", "warning", "fault", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    status: `fault`, data does not flow or is in danger; `warning`, it flows, and something should be seen to;
    `unknown`, this process could not tell. fix: the exact command, or what to do where no command can tell.
    repair: the same for `--fix`, if that is safe to do without asking.
    """

    check: str
    status: Status
    found: str
    expected: str = ""
    fix: str = ""
    repair: Repair | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def unknown(check: str, found: str, fix: str = "") -> Finding:
    return Finding(check, "unknown", found, fix=fix)


def warning(check: str, found: str, expected: str = "", fix: str = "") -> Finding:
    return Finding(check, "warning", found, expected, fix)


def fault(check: str, found: str, expected: str = "", fix: str = "") -> Finding:
    return Finding(check, "fault", found, expected, fix)


def repairable(check: str, status: Status, found: str, expected: str, repair: Repair) -> Finding:
    """Something that `--fix` mends; its command is what a person would type."""
    return Finding(check, status, found, expected, repair.command, repair)
