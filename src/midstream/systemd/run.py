"""systemd's own commands."""

import subprocess
from pathlib import Path

from midstream.errors import ConfigError


def require() -> None:
    """Raises ConfigError where systemd does not run this host."""
    if not Path("/run/systemd/system").is_dir():
        raise ConfigError(
            "systemd does not run this host, so it has no services; start `midstream daemon` and the other "
            "commands by the means that it has (docs/deployment.md)"
        )


def run(*command: str) -> str:
    """What a command prints. Raises ConfigError with what it complains of."""
    ended = _ended(*command)
    if ended.returncode:
        complaint = ended.stderr.strip() or f"exit code {ended.returncode}"
        raise ConfigError(f"`{' '.join(command)}`: {complaint}")
    return ended.stdout


def output(*command: str) -> str:
    """What a command prints, whatever becomes of it."""
    return _ended(*command).stdout


def _ended(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]}: there is no such command on this host") from error
