"""Where the sensors' data goes: to the logger, to a standby logger, or nowhere but to the application."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from midstream.daemon.heartbeat import Watched

GRACE = 5.0  # seconds after the daemon's start within which a logger that was never seen counts as up

Mode = Literal["fast", "handler"]


@dataclass(frozen=True)
class Choice:
    """fast: through the program to this logger. handler: there is none, the application takes connections
    from the stack; logger is then the last one."""

    mode: Mode
    logger: str
    reason: str = ""


def choose(
    current: Choice, candidates: Sequence[str], watched: dict[str, Watched], *, now: float, started: float
) -> Choice:
    """What is to be, given what the heartbeats say of the loggers. candidates: in the order of preference.

    A logger that works is kept, also if a preferred one comes back: a change costs every connection.
    """
    reasons = {
        ip: _reason(watched[ip], now, started) for ip in (current.logger, *candidates) if ip in watched
    }
    if current.mode == "fast":
        reason = reasons.get(current.logger, "it is not watched yet" if now - started > GRACE else "")
        if not reason:
            return current
        for ip in candidates:
            if ip != current.logger and not reasons.get(ip, "unknown"):
                return Choice("fast", ip, f"{current.logger}: {reason}")
        return Choice("handler", current.logger, f"{current.logger}: {reason}")
    for ip in (current.logger, *candidates):
        if ip in watched and watched[ip].is_steady(now):
            return Choice("fast", ip)
    return current


def _reason(watched: Watched, now: float, started: float) -> str:
    if not watched.seen_up and now - started <= GRACE:
        return ""
    return watched.reason(now)
