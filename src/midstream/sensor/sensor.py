"""One connection to the hardworker: messages at their turns, and another connection if it is lost."""

import hashlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from midstream import streams
from midstream.closing import Closing
from midstream.config import Config
from midstream.config import load as load_config
from midstream.errors import ConfigError, FramingError, NetworkError
from midstream.framing import encode
from midstream.network import load as load_topology
from midstream.sensor import tcp
from midstream.sensor.record import Record

CONNECT_TIMEOUT = 10.0  # seconds
POLL = 0.1  # seconds between two looks at `stop` while waiting

_TRY, _PAUSE = 0.5, 0.02  # seconds: one attempt to connect anew, and before the next
_FORGET = 64  # messages after which TCP is asked what it has had acknowledged


@dataclass(frozen=True, slots=True)
class SensorSummary:
    """What a sensor has sent.

    sensor, port: its own address. messages: whole messages handed to TCP. bytes: of the stream, frames
    included. seconds: from the start of the first message's turn to the end of the last one's. rate: messages
    per second. late_max_us: the latest start of a message after its turn, microseconds. digest: SHA-256 of
    the stream, hexadecimal. partial: bytes of a last message that was shorter than fixed framing wants.
    clean: the peer took every byte and then closed its side; False while the connection is open. reconnects:
    connections that were lost, or ended by the peer, and replaced (`[sensor] reconnect`). repeated: messages
    that were sent again, because the lost connection had not acknowledged them whole.
    """

    sensor: str
    port: int
    messages: int
    bytes: int
    seconds: float
    rate: float
    late_max_us: float
    digest: str
    partial: int
    clean: bool
    reconnects: int = 0
    repeated: int = 0


class Sensor(Closing):
    """A connection to the hardworker (or, with `[sensor] target = "logger"`, past it).

    `config` is config.toml's path or its content. `stream` names one of several streams; each needs a Sensor
    of its own. `source_port` 0: the kernel chooses. `record` names a file
    that gets one SENT_DTYPE record a message (`numpy.fromfile(record, SENT_DTYPE)`).
    With `[sensor] reconnect` a connection that is lost is replaced, and every message that was not
    acknowledged whole is sent again: the receiver may get those twice, under the numbers of two connections.
    Entering the context connects: NetworkError says which peer did not answer and what to do.
    """

    def __init__(
        self,
        config: str | Path | Config,
        *,
        stream: str = "",
        source_port: int = 0,
        record: str | Path | None = None,
    ) -> None:
        whole = config if isinstance(config, Config) else load_config(config)
        self._config, self._topology = streams.only(whole, load_topology(whole.const_path), stream)
        self._size = self._config.message_size(self._topology.size)
        target = self._config.sensor.target
        host = self._topology.logger if target == "logger" else self._topology.hardworker
        self._address = (str(host.ip), self._topology.port)
        self._peer = f"the {target} at {host.ip} port {self._topology.port}"
        self._source_port = source_port
        self._record_path = record
        self._record: Record | None = None
        self._socket: socket.socket | None = None
        self._name = ("", 0)
        self._messages = 0
        self._bytes = 0
        self._partial = 0
        self._digest = hashlib.sha256()
        self._first_ns = 0
        self._last_ns = 0
        self._late_max_ns = 0
        self._clean = False
        self._reconnects = 0
        self._repeated = 0
        self._sent = 0  # bytes handed to this connection
        self._unacknowledged: deque[tuple[int, bytes]] = deque()  # where each message ends, and the message

    def __enter__(self) -> Self:
        self._socket = self._connect()
        try:
            self._record = Record(self._record_path) if self._record_path is not None else None
        except ConfigError:
            self.close()
            raise
        return self

    def send(self, payload: bytes) -> None:
        """Send one message; wait as long as the peer takes nothing.

        FramingError if the framing cannot carry the payload; NetworkError if the connection is lost.
        """
        self._send(payload, lambda: False)

    def run(
        self, messages: Iterable[bytes], *, rate: float, stop: Callable[[], bool] = lambda: False
    ) -> SensorSummary:
        """Send `messages` at `rate` a second (0: as fast as TCP takes them) or until `stop()`, then close.

        The turn of message n is start + n / rate, whatever happened before: no drift. A message is taken from
        the iterable at its turn; one that is late is sent at once. In fixed framing the last message may be
        shorter (a file need not be a multiple of the size): it is sent, and reported as `partial`.
        NetworkError if the connection is lost; `summary` then tells how far it came.
        """
        source = iter(messages)
        start = self._first_ns = time.monotonic_ns()
        turn = 0
        while not stop():
            if rate > 0:
                deadline = start + round(turn * 1e9 / rate)
                if not _sleep_until(deadline, stop):
                    break
                lateness = time.monotonic_ns() - deadline
            else:
                lateness = 0
            payload = next(source, None)
            if payload is None:
                break
            self._late_max_ns = max(self._late_max_ns, lateness)
            if self._config.data.framing == "fixed" and 0 < len(payload) < self._size:
                self._send_partial(payload, stop)
            else:
                self._send(payload, stop)
            turn += 1
        self._last_ns = time.monotonic_ns()  # the last message's turn ends here
        self.close()
        return self.summary

    def close(self) -> None:
        """End the stream in order: FIN, then wait (bounded) until the peer has taken all and closes too.

        Whether it did is `summary.clean`. The logger closes after it has committed the connection's end,
        so a clean end there means: stored. Closing twice is allowed.
        """
        if self._socket is not None:
            sock, self._socket = self._socket, None
            with sock:
                try:
                    sock.shutdown(socket.SHUT_WR)
                    self._clean = tcp.closed_by_peer(sock)
                except OSError:
                    self._clean = False
        if self._record is not None:
            record, self._record = self._record, None
            record.close()

    @property
    def summary(self) -> SensorSummary:
        """What was sent so far."""
        seconds = (self._last_ns - self._first_ns) / 1e9
        return SensorSummary(
            sensor=self._name[0],
            port=self._name[1],
            messages=self._messages,
            bytes=self._bytes,
            seconds=seconds,
            rate=self._messages / seconds if seconds else 0.0,
            late_max_us=self._late_max_ns / 1e3,
            digest=self._digest.hexdigest(),
            partial=self._partial,
            clean=self._clean,
            reconnects=self._reconnects,
            repeated=self._repeated,
        )

    def _connect(self, timeout: float = CONNECT_TIMEOUT) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            # Before connect: the SYN must bear the mark, or the hardworker does not see the connection open.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, self._topology.tos)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tcp.recover_promptly(sock)
            if self._source_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", self._source_port))
            sock.settimeout(timeout)
            sock.connect(self._address)
        except OSError as error:
            sock.close()
            reason = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else error.strerror
            raise NetworkError(
                f"cannot connect to {self._peer}: {reason}. Start `midstream logger` on the logger"
                + (
                    ", and see that the hardworker's program is attached"
                    if self._config.sensor.target == "hardworker"
                    else ""
                )
                + f"; the addresses are those of {self._config.const_path}"
            ) from error
        sock.setblocking(False)
        self._name = sock.getsockname()
        return sock

    def _send(self, payload: bytes, stop: Callable[[], bool]) -> None:
        data = self._config.data
        framed = encode(data.framing, payload, size=self._size, max_size=data.max_size)
        now = time.time_ns()
        self._transmit(framed, stop)
        if self._record is not None:
            self._record.write(self._messages, now, payload)
        self._messages += 1

    def _send_partial(self, payload: bytes, stop: Callable[[], bool]) -> None:
        self._transmit(payload, stop)
        self._partial = len(payload)

    def _transmit(self, data: bytes, stop: Callable[[], bool]) -> None:
        """Hand all of `data` to TCP; asked to stop, wait (bounded) for room: half a message is no use."""
        if self._socket is None:
            raise NetworkError(
                f"the connection to {self._peer} is not open: use the sensor in a `with` block"
            )
        if self._partial:
            raise FramingError(
                f"a message of {self._partial} bytes, shorter than the {self._size} of fixed framing, "
                "must be the last of its connection: pad it, or use length framing"
            )
        self._first_ns = self._first_ns or time.monotonic_ns()
        waiting = deque([data])  # after a lost connection, with what it had not acknowledged
        give_up = 0.0
        while waiting:
            try:
                if self._discard_replies(self._socket):
                    waiting.extendleft(reversed(self._replace(stop)))
                give_up = self._hand_over(self._socket, waiting[0], stop, give_up)
            except OSError as error:
                waiting.extendleft(reversed(self._replace(stop, error)))
            else:
                self._remember(waiting.popleft())
        self._last_ns = time.monotonic_ns()
        self._bytes += len(data)
        self._digest.update(data)

    def _hand_over(self, sock: socket.socket, data: bytes, stop: Callable[[], bool], give_up: float) -> float:
        """Hand `data` to TCP. Returns when to give up, once asked to stop."""
        view = memoryview(data)
        while view:
            try:
                sent = sock.send(view)
                view = view[sent:]
                self._sent += sent
            except BlockingIOError:
                tcp.ready(sock, select.POLLOUT, POLL)
                if stop():
                    give_up = give_up or time.monotonic() + tcp.CLOSE_TIMEOUT
                    if time.monotonic() > give_up:
                        self._lost(f"it takes no data since {tcp.CLOSE_TIMEOUT:g} s")
        return give_up

    def _remember(self, data: bytes) -> None:
        """Keep what may have to be sent again, and forget what is acknowledged."""
        if not self._config.sensor.reconnect or self._socket is None:
            return
        self._unacknowledged.append((self._sent, data))
        if len(self._unacknowledged) % _FORGET == 0:
            self._forget(tcp.unacknowledged(self._socket))

    def _forget(self, unacknowledged: int) -> None:
        while self._unacknowledged and self._unacknowledged[0][0] <= self._sent - unacknowledged:
            self._unacknowledged.popleft()

    def _replace(self, stop: Callable[[], bool], error: OSError | None = None) -> list[bytes]:
        """Connect anew; what has to be sent again. NetworkError if that is not wanted, or not possible."""
        reason = (error.strerror or str(error)) if error else "it closed the connection"
        patience = self._config.sensor.reconnect
        if not patience or self._socket is None:
            self._lost(reason, error)
        sock = self._socket
        if error is None:  # it has ended its side in order: let it take all that it was sent
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                tcp.await_acknowledgement(sock)
        self._forget(tcp.unacknowledged(sock))
        sock.close()
        again = [data for _, data in self._unacknowledged]
        self._unacknowledged.clear()
        self._sent = 0
        deadline = time.monotonic() + patience
        while True:
            try:
                self._socket = self._connect(min(patience, _TRY))
                break
            except NetworkError:
                if stop():  # there may be messages that must come again
                    deadline = min(deadline, time.monotonic() + tcp.CLOSE_TIMEOUT)
                    stop = _never
                if time.monotonic() > deadline:
                    self._lost(f"{reason}, and no other was to be had for {patience:g} s", error)
                time.sleep(_PAUSE)
        self._reconnects += 1
        self._repeated += len(again)
        return again

    def _discard_replies(self, sock: socket.socket) -> bool:
        """Empty the receive buffer (unread bytes would make our close a reset); has the peer left?"""
        try:
            while sock.recv(tcp.CHUNK):
                pass
        except BlockingIOError:
            return False
        return True

    def _lost(self, reason: str, error: OSError | None = None) -> NoReturn:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        raise NetworkError(
            f"the connection to {self._peer} was lost after {self._messages} messages: {reason}. "
            "The last ones may not have arrived. See that the logger runs, then start the sensor again"
        ) from error


def _never() -> bool:
    return False


def _sleep_until(deadline: int, stop: Callable[[], bool]) -> bool:
    """Sleep until time.monotonic_ns() reaches `deadline`; False if `stop()` came first."""
    while (left := deadline - time.monotonic_ns()) > 0:
        time.sleep(min(left / 1e9, POLL))
        if stop():
            return False
    return True
