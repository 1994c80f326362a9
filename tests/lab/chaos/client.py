"""A plain TCP client at a fixed rate that connects again, and accounts for each of its connections.

It sends from the first message on that its TCP had not had acknowledged. Each connection has a port of its
own: so its account, the application's rows and the log's are known to be of the same connection. An account
is written when a connection opens, and again when it has ended. A client that was killed in between does not
know what was acknowledged: its next life begins with numbers that no life before it has used.

    python client.py SENSOR ADDRESS PORT TOS RATE FIRST_SOURCE_PORT ACCOUNT STOP [FLOW]
"""

import json
import select
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.lab.chaos.messages import FLOWS, Flow

AGAIN = 0.1  # seconds between two attempts to connect
PATIENCE = 20.0  # seconds without an acknowledgement: the connection is given up
LIFE = 1 << 32  # numbers of a client's life
_WAITING = 32_768  # bytes that are due, beside which no other message is made
_TCP_INFO_BYTES_ACKED = 120  # struct tcp_info of linux/tcp.h


@dataclass
class Connection:
    """A line of the account. Times are CLOCK_MONOTONIC; `sent` and `acknowledged` are bytes of the stream.

    how: how it ended; empty: the client was killed before, and all but the first four values are unknown.
    """

    sensor: int
    port: int
    first: int
    opened: float
    sent: int = 0
    acknowledged: int = 0
    ended: float = 0.0
    how: str = ""


class Client:
    """Sends until a file exists, through as many connections as that takes."""

    def __init__(
        self, sensor: int, address: tuple[str, int], tos: int, rate: float, source: int, flow: Flow
    ) -> None:
        self._sensor, self._address, self._tos, self._rate = sensor, address, tos, rate
        self._source, self._flow = source, flow
        self._number = 0  # the first message that is not acknowledged
        self._lines: TextIO

    def run(self, account: Path, stop: Path) -> None:
        self._resume(account)
        with account.open("a", buffering=1) as self._lines:
            while not stop.exists():
                self._connect()
                time.sleep(AGAIN)

    def _resume(self, account: Path) -> None:
        """Go on where an earlier life was killed."""
        if account.exists() and (lines := account.read_text().splitlines()):
            last = Connection(**json.loads(lines[-1]))
            self._source = last.port
            known = last.first + self._flow.whole(last.first, last.acknowledged)
            self._number = known if last.how else (last.first // LIFE + 1) * LIFE

    def _write(self, connection: Connection) -> None:
        self._lines.write(json.dumps(asdict(connection)) + "\n")

    def _connect(self) -> None:
        """One connection from its beginning to its end, if it is to be had."""
        with socket.socket() as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, self._tos)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(PATIENCE * 1000))
            self._source += 1
            sock.bind(("", self._source))
            sock.settimeout(2)
            try:
                sock.connect(self._address)
            except ConnectionRefusedError:
                self._source -= 1  # nobody has had a connection from there
                return
            except OSError:
                return
            sock.setblocking(False)
            found = Connection(self._sensor, self._source, self._number, time.monotonic())
            self._write(found)
            try:
                found.how = self._send(sock, found)
            except OSError as error:
                found.how = error.strerror or str(error)
            found.ended = time.monotonic()
            # The SYN counts, and so does a FIN.
            found.acknowledged = max(0, min(_bytes_acked(sock) - 1, found.sent))
            self._number += self._flow.whole(found.first, found.acknowledged)
            self._write(found)

    def _send(self, sock: socket.socket, connection: Connection) -> str:
        begin, number, rest = time.monotonic(), connection.first, b""
        while not _STOP.exists():
            due = connection.first + int((time.monotonic() - begin) * self._rate)
            while number <= due and len(rest) < _WAITING:
                rest += self._flow.framed(self._flow.message(self._sensor, number, connection.port))
                number += 1
            wanted = select.POLLIN | (select.POLLOUT if rest else 0)
            happened = _poll(sock, wanted, 1 / self._rate)
            if happened & (select.POLLIN | select.POLLHUP | select.POLLERR) and not sock.recv(4096):
                return "the peer ended it"
            if rest and happened & select.POLLOUT:
                count = sock.send(rest)
                connection.sent += count
                rest = rest[count:]
        # Whole messages only: the log would call the rest unfinished, and right so.
        sock.settimeout(PATIENCE)
        begun = self._flow.begun(connection.first, connection.sent)
        if part := self._flow.bytes(connection.first, begun) - connection.sent:
            sock.sendall(rest[:part])
            connection.sent += part
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
        return "clean"


def _poll(sock: socket.socket, events: int, seconds: float) -> int:
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(seconds * 1000)
    return found[0][1] if found else 0


def _bytes_acked(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_ACKED + 8)
    (count,) = struct.unpack_from("Q", info, _TCP_INFO_BYTES_ACKED)
    return int(count)


if __name__ == "__main__":
    _, sensor, address, port, tos, rate, source, account, stop, *flows = sys.argv
    _STOP = Path(stop)
    flow = FLOWS[flows[0] if flows else "data"]
    peer = (address, int(port))
    Client(int(sensor), peer, int(tos), float(rate), int(source), flow).run(Path(account), _STOP)
