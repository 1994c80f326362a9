"""The key that the hosts of one network share: who has it belongs to them.

`read` gives the secret of its file; from it the daemons derive what they encrypt with (daemon/seal.py), and
hardworker and logger what they sign a replay with (replay.py).
"""

import os
import secrets
import stat
from pathlib import Path

from midstream.errors import ConfigError

BYTES = 32


def read(path: Path) -> bytes:
    """The secret in a file. Raises ConfigError: it is missing, too short, or others may read it."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            secret = file.read(4096).strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be read ({error.strerror}); make one with `midstream key {path}` on one "
            "host and copy it to the others, or name another file in config.toml: daemon.key"
        ) from error
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: the key must be a file of root's or of this user's; `chown root {path}`")
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(BYTES)}\n")
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists already, and a key is not replaced; remove it first") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error
