"""The key that the hosts of one network share: who has it belongs to them.

`read` gives the secret of its file; from it (crypto.py) comes what the daemons encrypt with (daemon/seal.py),
and hardworkers and loggers (line.py).
"""

import os
import pwd
import secrets
import stat
from pathlib import Path

from midstream import modes
from midstream.errors import ConfigError

BYTES = 32


def read(path: Path) -> bytes:
    """The secret in a file. Raises ConfigError: it is missing, too short, or others may read it."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            secret = file.read(4096).strip()
    except OSError as error:
        raise ConfigError(f"{path}: {_unread(path, error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: the key must be a file; name another in config.toml: daemon.key")
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path}: belongs to {_user(found.st_uid)}, who could replace the key; it must belong to root "
            f"or to {_user(os.geteuid())}, who reads it: `chown {_user(os.geteuid())} {path}`"
        )
    if found.st_mode & 0o077:
        raise ConfigError(
            f"{path}: mode {stat.S_IMODE(found.st_mode):04o} lets others read the key; "
            f"`chmod 600 {path}`, and make a new key if it may have been read"
        )
    if len(secret) < BYTES:
        raise ConfigError(
            f"{path}: {len(secret)} bytes are no key, at least {BYTES} are needed; "
            "make one with `midstream key`"
        )
    return secret


def make(path: Path) -> None:
    """Write a new key that only its owner may read. Raises ConfigError, also if the file exists."""
    try:
        modes.make_folder(path.parent)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            path.chmod(0o600)  # a umask may even hide it from its owner
            file.write(f"{secrets.token_hex(BYTES)}\n")
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists already, and a key is not replaced; remove it first") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _unread(path: Path, error: OSError) -> str:
    """Why the key cannot be read, and what to do about exactly that."""
    reader = _user(os.geteuid())
    if isinstance(error, FileNotFoundError):
        return (
            f"there is no key; copy it from a host that has one, or make the first: `midstream key {path}`. "
            "Or name another file in config.toml: daemon.key"
        )
    if isinstance(error, PermissionError):
        try:
            owner = _user(path.stat().st_uid)
        except OSError:
            return f"{reader} may not look into its folder; `chmod a+x` that and those above it"
        return f"the key belongs to {owner}, and {reader} has to read it; `chown {reader} {path}`"
    return f"the key cannot be read ({error.strerror}); name another file in config.toml: daemon.key"


def _user(number: int) -> str:
    """A user's name, or his number where he has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
