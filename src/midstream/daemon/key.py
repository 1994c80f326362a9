"""The key that the daemons of one network share: who has it belongs to them.

What they say to each other is encrypted and authenticated with it (AES-256-GCM), so that a host without the
key can neither read the data path nor put in a word. What is sealed for one purpose opens for no other.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from midstream.errors import ConfigError

BYTES = 32
_NONCE = 12


class ForgedError(Exception):
    """It was not sealed with this key, or not for this purpose, or was changed on the way."""


class Key:
    """The shared secret, for one purpose each: `seal` and `open`."""

    def __init__(self, secret: bytes) -> None:
        derived = HKDF(algorithm=SHA256(), length=BYTES, salt=None, info=b"midstream daemon 1").derive(secret)
        self._cipher = AESGCM(derived)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key in a file. Raises ConfigError: it is missing, too short, or others may read it."""
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                text = file.read(4096).strip()
        except OSError as error:
            raise ConfigError(
                f"{path}: the daemons' key cannot be read ({error.strerror}); make one with "
                f"`midstream key {path}` on one host and copy it to the others, or name another file in "
                "config.toml: daemon.key"
            ) from error
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"{path}: the key must be a file of root's or of this user's; `chown root {path}`"
            )
        if found.st_mode & 0o077:
            raise ConfigError(
                f"{path}: mode {stat.S_IMODE(found.st_mode):04o} lets others read the key; "
                f"`chmod 600 {path}`, and make a new key if it may have been read"
            )
        if len(text) < BYTES:
            raise ConfigError(
                f"{path}: {len(text)} bytes are no key, at least {BYTES} are needed; "
                "make one with `midstream key`"
            )
        return cls(text)

    def seal(self, purpose: str, text: bytes) -> bytes:
        """Encrypt and authenticate; the same text is never sealed to the same bytes."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, text, purpose.encode())

    def open(self, purpose: str, sealed: bytes) -> bytes:
        """What was sealed for this purpose. Raises ForgedError."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise ForgedError from error


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
