"""How two hosts of a network speak with each other: an encrypted connection, and what is said on it.

Both sides say a fresh random number. From these and the shared key (key.py) each direction gets a cipher of
its own (crypto.py), and every message the next number as its nonce. So nobody without the key can ask,
answer, read, change, repeat, reorder or leave out anything, and what was recorded opens no later connection.

The first message in each direction is empty: it proves that its sender has the key. Then the client says what
it wants, {"kind": …}. What follows is told by those who speak: hardworker/history.py and logger/backfill.py.
"""

import json
import math
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidTag

from midstream.closing import Closing
from midstream.crypto import cipher
from midstream.errors import NetworkError

MAX_BYTES = 1 << 30  # of a message on the connection: a page of an answer holds at least one of a sensor's
TIMEOUT = 10.0  # seconds for the other side to say something, or to prove that it has the key
SLOWEST = 1 << 18  # bytes a second; what is longer may take longer

_FRESH = 32  # bytes of a random number
_TAG = 16  # bytes by which a sealed message is longer
_SIZE = struct.Struct(">I")
_NONCE = 12  # bytes

Head = dict[str, Any]


class Line(Closing):
    """One side of an encrypted connection. Making it raises NetworkError if the other has not the key.

    `until`: when all that is said must have been said (monotonic), however slowly the other side goes on.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, asks: bool, until: float = math.inf) -> None:
        self._socket = sock
        self._sent = self._received = 0  # messages
        self.until = min(until, time.monotonic() + TIMEOUT)
        ours = secrets.token_bytes(_FRESH)
        self._write(ours)
        theirs = self._read(_FRESH)
        both = ours + theirs if asks else theirs + ours
        asking, answering = (cipher(key, f"midstream line 1 {side}", both) for side in ("asks", "answers"))
        self._ours, self._theirs = (asking, answering) if asks else (answering, asking)
        self._seal(b"")
        self._open(0, "the other side of the connection has another key (daemon.key)")
        self.until = until

    def send(self, head: Head, parts: Sequence[bytes] = ()) -> None:
        """A JSON object, and bytes that follow it."""
        text = json.dumps(head).encode()
        self._seal(b"".join((_SIZE.pack(len(text)), text, *parts)))

    def receive(self, max_bytes: int = MAX_BYTES) -> tuple[Head, memoryview]:
        """The next message. NetworkError if it was changed, repeated, is longer, or does not come."""
        body = self._open(max_bytes, "a message was changed on its way")
        try:
            (length,) = _SIZE.unpack_from(body)
            head = json.loads(body[_SIZE.size : _SIZE.size + length])
        except (struct.error, ValueError) as error:
            raise _foreign() from error
        if not isinstance(head, dict):
            raise _foreign()
        return head, memoryview(body)[_SIZE.size + length :]

    def close(self) -> None:
        self._socket.close()

    def _seal(self, body: bytes) -> None:
        size = _SIZE.pack(len(body) + _TAG)
        sealed = self._ours.encrypt(self._sent.to_bytes(_NONCE), body, size)
        self._sent += 1
        self._write(size + sealed)

    def _open(self, max_bytes: int, fault: str) -> bytes:
        """The next message's content; NetworkError(fault) if it is not what the other side has sent next."""
        size = self._read(_SIZE.size)
        (length,) = _SIZE.unpack(size)
        if length > max_bytes + _TAG:
            raise _foreign()
        sealed = self._read(length)
        try:
            body = self._theirs.decrypt(self._received.to_bytes(_NONCE), sealed, size)
        except (InvalidTag, ValueError) as error:  # ValueError: it is shorter than a tag
            raise NetworkError(fault) from error
        self._received += 1
        return body

    def _write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._patience(len(data), time.monotonic()))
            self._socket.sendall(data)  # its time limit is that of the whole
        except OSError as error:
            raise NetworkError(f"the connection was lost: {error}") from error

    def _read(self, size: int) -> bytes:
        data, began = bytearray(), time.monotonic()
        while len(data) < size:
            try:
                self._socket.settimeout(self._patience(size, began))
                piece = self._socket.recv(min(size - len(data), 1 << 20))
            except OSError as error:
                raise NetworkError(f"the connection was lost: {error}") from error
            if not piece:
                raise NetworkError("the other side has ended the connection: its key may be another")
            data += piece
        return bytes(data)

    def _patience(self, size: int, began: float) -> float:
        """Seconds that are left for so many bytes. TimeoutError if none are."""
        left = min(began + TIMEOUT + size / SLOWEST, self.until) - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


def call(address: str, key: bytes, port: int) -> Line:
    """A line to the logger at an address. NetworkError says what to do if there is none."""
    try:
        connection = socket.create_connection((address, port), timeout=TIMEOUT)
    except OSError as error:
        raise NetworkError(
            f"{address} port {port}: no answer ({error.strerror or error}); see that `midstream logger` runs "
            "there with the same logger.replay_port, and finds the key (daemon.key)"
        ) from error
    try:
        return Line(connection, key, asks=True)
    except BaseException:
        connection.close()
        raise


def _foreign() -> NetworkError:
    return NetworkError("the other side of the connection does not speak this protocol")
