"""Ciphers (AES-256-GCM) made from the key that the hosts share: another one for each purpose."""

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def cipher(secret: bytes, purpose: str, salt: bytes | None = None) -> AESGCM:
    """What is sealed with one is opened only with the same secret, purpose and salt (HKDF, RFC 5869)."""
    derived = HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose.encode()).derive(secret)
    return AESGCM(derived)
