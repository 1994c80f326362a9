"""What the daemons say to each other, encrypted and authenticated with the key that they share (AES-256-GCM).

A host without the key can neither read the data path nor put in a word. What is sealed for one purpose opens
for no other.
"""

import secrets
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag

from midstream import crypto, key

_NONCE = 12


class ForgedError(Exception):
    """It was not sealed with this key, or not for this purpose, or was changed on the way."""


class Key:
    """The shared secret, for one purpose each: `seal` and `open`."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = crypto.cipher(secret, "midstream daemon 1")

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key in a file. Raises ConfigError, see `midstream.key.read`."""
        return cls(key.read(path))

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
