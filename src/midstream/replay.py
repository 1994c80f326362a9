"""How a hardworker asks the logger for what it stored: an authenticated connection, and what is said on it.

Both sides prove that they have the shared key of key.py (HMAC-SHA256 over two fresh random numbers), and
every message after that bears an HMAC of its number, direction and content, with keys that are made from the
same numbers. So nobody without the key can ask, answer, change, repeat or leave out anything. It is
authentic, not secret: the sensors' own connections are not either.

A question is {"since": ns, "until": ns, "from": sensors}, in the logger's time ({"clock": true} asks for it):
the clocks of the two hosts need not agree. An answer is the messages of one connection after the other, in
pages, and ends with {"end": true}.
"""

import hashlib
import hmac
import json
import math
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from midstream.errors import NetworkError

MAX_BYTES = 1 << 30  # of a message on the connection: a page of the answer holds at least one of a sensor's
TIMEOUT = 10.0  # seconds for the other side to say something, or to prove that it has the key
SLOWEST = 1 << 18  # bytes a second; what is longer may take longer

_NONCE = 32  # bytes
_SIZE = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_PURPOSE = b"midstream replay 1 "


class Line:
    """One side of an authenticated connection. Making it raises NetworkError if the other has not the key.

    `until`: when all that is said must have been said (monotonic), however slowly the other side goes on.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, asks: bool, until: float = math.inf) -> None:
        self._socket = sock
        self._counts = [0, 0]  # messages sent and received
        self.until = min(until, time.monotonic() + TIMEOUT)
        ours = secrets.token_bytes(_NONCE)
        self._write(ours)
        theirs = self._read(_NONCE)
        both = ours + theirs if asks else theirs + ours
        mine, other = (b"asks", b"answers") if asks else (b"answers", b"asks")
        self._write(_mac(key, mine, both))
        if not hmac.compare_digest(self._read(hashlib.sha256().digest_size), _mac(key, other, both)):
            raise NetworkError("the other side of the replay has another key")
        self.until = until
        self._keys = (_mac(key, b"key " + mine, both), _mac(key, b"key " + other, both))

    def send(self, head: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
        """A JSON object, and bytes that follow it."""
        text = json.dumps(head).encode()
        body = b"".join((_SIZE.pack(len(text)), text, *parts))
        self._write(_SIZE.pack(len(body)) + body + self._sign(0, body))

    def receive(self, max_bytes: int = MAX_BYTES) -> tuple[dict[str, Any], memoryview]:
        """The next message. NetworkError if it was changed, repeated, is longer, or does not come."""
        (size,) = _SIZE.unpack(self._read(_SIZE.size))
        if size > max_bytes:
            raise NetworkError("the other side of the replay does not speak its protocol")
        body = self._read(size)
        if not hmac.compare_digest(self._read(hashlib.sha256().digest_size), self._sign(1, body)):
            raise NetworkError("a message of the replay was changed on its way")
        (length,) = _SIZE.unpack_from(body)
        head: dict[str, Any] = json.loads(body[_SIZE.size : _SIZE.size + length])
        return head, memoryview(body)[_SIZE.size + length :]

    def _sign(self, direction: int, body: bytes) -> bytes:
        number = self._counts[direction]
        self._counts[direction] += 1
        return _mac(self._keys[direction], _NUMBER.pack(number), body)

    def _write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._patience(len(data), time.monotonic()))
            self._socket.sendall(data)  # its time limit is that of the whole
        except OSError as error:
            raise NetworkError(f"the connection of the replay was lost: {error}") from error

    def _read(self, size: int) -> bytes:
        data, began = bytearray(), time.monotonic()
        while len(data) < size:
            try:
                self._socket.settimeout(self._patience(size, began))
                piece = self._socket.recv(min(size - len(data), 1 << 20))
            except OSError as error:
                raise NetworkError(f"the connection of the replay was lost: {error}") from error
            if not piece:
                raise NetworkError("the other side has ended the replay: its key may be another")
            data += piece
        return bytes(data)

    def _patience(self, size: int, began: float) -> float:
        """Seconds that are left for so many bytes. TimeoutError if none are."""
        left = min(began + TIMEOUT + size / SLOWEST, self.until) - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


def _mac(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + purpose + data, "sha256")
