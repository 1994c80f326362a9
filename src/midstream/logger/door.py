"""The door of a stream: a listening socket, behind which no more connections come to be than can be accepted.

A kernel that listens completes a connection, and acknowledges its data, long before `accept`. So nobody is
let in before the database is open. After that the connections that the kernel may complete are counted: no
more than there are descriptors for. Where none is left, a filter on the listening socket drops what comes:
nothing is acknowledged, and the sensor's TCP tries again. Connections that exist have sockets of their own.
Where there are several doors, each has an equal part of what is left.
"""

import errno
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from midstream import descriptors
from midstream.config import DATA
from midstream.errors import NetworkError
from midstream.logger.deaf import deafen, listen_again
from midstream.logger.syn import keep_syns

BACKLOG = 4096  # connections that wait to be accepted
RECEIVE_BUFFER = 1 << 20  # bytes a connection; the kernel doubles it for what it needs besides
DELAYED_ACK = 8000  # microseconds for which a single segment may wait; a kernel of 250 Hz admits no less
# Seconds. A sensor that is there and knows nothing of a connection is found in half a minute. One that does
# not answer is given up after a quarter of an hour, as its own TCP would give up (tcp_retries2 in tcp(7)).
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 30, 30, 30
OTHERS = 40  # descriptors that holder and worker need for other things than connections
PAUSE = 1.0  # seconds until another try where the system has no room for a connection

_TCP_DELACK_MAX_US = 46  # linux/tcp.h, since 6.15
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h

log = logging.getLogger("midstream.logger")


class Door:
    """Bound to that address at once, listening from `open` on. Raises NetworkError."""

    def __init__(
        self,
        address: tuple[str, int],
        tos: int,
        whose: str,
        admits: Callable[[str], bool],
        descriptor: int | None = None,
        buffer: int = RECEIVE_BUFFER,
        stream: str = DATA,
        doors: int = 1,
    ) -> None:
        """`tos`: the mark of replies. `whose` the address must be, for messages. `admits` an IP address?
        `descriptor`: of a door that another process has opened, and leaves to this one.
        `buffer`: bytes that a kernel takes for a connection. stream: whose messages come in, for messages.
        doors: so many are there in all."""
        self._stream, self._doors = stream, doors
        self._address, self._whose, self._admits = address, whose, admits
        self._queue: int | None = None  # connections that may wait to be accepted; None: it does not listen
        self.is_shut = False
        self._pause_until = 0.0
        self._told = False
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=descriptor)
        try:
            if descriptor is None:
                self._prepare(tos, buffer)
                self._listener.bind(self._address)
            else:
                self._listener.setblocking(False)
        except OSError as error:
            self._listener.close()
            raise self._refused(error) from error
        others = max(OTHERS, descriptors.in_use() + OTHERS // 2) + doors - 1
        self._room = descriptors.limit() - others
        if self._room <= 0:
            self._listener.close()
            raise NetworkError(
                f"this process may have {descriptors.limit()} files open, and the logger needs {OTHERS} "
                "beside one for each connection. What to do: raise the limit (LimitNOFILE= of its unit, "
                "`ulimit -n`)"
            )

    def fileno(self) -> int:
        return self._listener.fileno()

    def open(self) -> None:
        """Let connections in from now on."""
        try:
            self._listener.listen(max(0, self._part(0) - 1))
        except OSError as error:
            raise self._refused(error) from error
        self._queue = max(1, self._part(0))

    def lets_in(self, held: int) -> bool:
        """May somebody be accepted now, beside so many connections?"""
        if self._queue is None or self.is_shut or time.monotonic() < self._pause_until:
            return False
        self._let_wait(self._part(held))
        if self._queue == 0 and not self._told:
            self._told = True
            log.warning(
                "logger: no more sensors are let in, for the stream %s: there are %d connections, and the "
                "limit is %d files. What to do: raise the limit (LimitNOFILE= of its unit, `ulimit -n`), and "
                "start it again",
                self._stream,
                held,
                descriptors.limit(),
            )
        return self._queue > 0

    def accept(self, held: int) -> tuple[socket.socket, tuple[str, int]] | None:
        """The next connection beside so many; None if none waits, or none can be accepted now."""
        if self._queue is None:
            return None
        if self._queue:
            self._let_wait(self._part(held + 1))  # first: nobody may take its place who has no room
        while True:
            try:
                accepted, address = self._listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EPROTO):
                    continue  # it was gone again before we came
                if not self._pause_until:
                    log.warning("logger: a connection cannot be accepted: %s; tried again", error.strerror)
                self._pause_until = time.monotonic() + PAUSE
                return None
            self._pause_until = 0.0
            if not self._admits(address[0]):
                accepted.close()
                continue
            accepted.setblocking(False)
            return accepted, address

    def shut(self) -> None:
        """Let nobody in any more. Those who wait stay to be accepted."""
        self.is_shut = True
        self.rest()

    def rest(self) -> None:
        """Let nobody in until `lets_in` is asked again."""
        if self._queue is not None:
            self._let_wait(0)

    @property
    def paused(self) -> bool:
        """Could the last connection not be accepted?"""
        return time.monotonic() < self._pause_until

    def close(self) -> None:
        self._queue = None
        self._listener.close()

    def _part(self, held: int) -> int:
        """How many may wait here, beside so many connections."""
        return max(0, min(BACKLOG, (self._room - held) // self._doors))

    def _let_wait(self, queue: int) -> None:
        """So many connections may be complete and not accepted."""
        if queue == self._queue:
            return
        if queue == 0:
            with suppress(PermissionError):  # a kernel that lets the privileged alone do it: some more wait
                deafen(self._listener)
        # The kernel lets one more wait; that it is to be none is what it tells others (daemon/sockets.py).
        self._listener.listen(max(0, queue - 1))
        if queue and self._queue == 0:
            listen_again(self._listener)
        self._queue = queue

    def _prepare(self, tos: int, buffer: int) -> None:
        """Accepted connections inherit all of it."""
        listener = self._listener
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The return path knows replies (resets too) by the mark.
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent bytes are bytes
        # A fixed size: the kernel's own tuning does not see that a worker takes what it only peeks at.
        try:
            listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except PermissionError:  # as far as net.core.rmem_max
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        keep_syns(listener)
        with suppress(OSError):  # an older kernel, or one with a coarser clock
            listener.setsockopt(socket.IPPROTO_TCP, _TCP_DELACK_MAX_US, DELAYED_ACK)

    def _refused(self, error: OSError) -> NetworkError:
        host, port = self._address
        if error.errno == errno.EADDRINUSE:
            advice = f"end the program that uses it (`ss -ltnp sport = :{port}` names it)"
        else:
            advice = f"this must be {self._whose}, with that address on an interface"
        return NetworkError(
            f"cannot listen on {host} port {port} for the stream {self._stream}: {error.strerror}. "
            f"What to do: {advice}"
        )
