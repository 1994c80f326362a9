"""Admitting clients, of whom most may be nobody: bounded in threads, descriptors and time.

A client has a thread. It is a stranger until it has proven that it belongs here, and a stranger that has had
its chance gives way when there is no room: the one that has waited longest of the address with most of them.
So it takes strangers of many addresses, who come faster than CLIENTS in PATIENCE, to keep anybody out.
"""

import errno
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

CLIENTS = 32  # at a time, or a quarter of the descriptors that the process may have
PATIENCE = 0.25  # seconds that a stranger is left alone
PAUSE = 0.02  # seconds between two looks for room

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(eq=False)
class Client:
    """A connection. since: when it came (monotonic). known: it has proven that it belongs here."""

    socket: socket.socket
    address: str
    since: float
    known: bool = False


class Admission:
    """Calls serve(client) in a thread for each connection of a listener, and closes the connection then."""

    def __init__(self, listener: socket.socket, serve: Callable[[Client], None]) -> None:
        self._listener, self._serve = listener, serve
        self._clients: set[Client] = set()
        self._lock = threading.Lock()
        self._most = max(2, min(CLIENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def run(self) -> None:
        """For ever. Raises OSError if the listener is gone."""
        while True:
            while len(self._clients) >= self._most:
                self._make_room(PATIENCE)
                time.sleep(PAUSE)
            try:
                accepted, (address, *_) = self._listener.accept()
                self._admit(Client(accepted, address, time.monotonic()))
            except ConnectionError:  # it was gone again before we came
                continue
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be had
                if isinstance(error, OSError) and error.errno not in _NO_ROOM:
                    raise
                self._make_room(0.0)
                time.sleep(PAUSE)

    def _admit(self, client: Client) -> None:
        with self._lock:
            self._clients.add(client)
        try:
            threading.Thread(target=self._run, args=(client,), daemon=True).start()
        except RuntimeError:
            self._end(client)
            raise

    def _run(self, client: Client) -> None:
        try:
            self._serve(client)
        finally:
            self._end(client)

    def _end(self, client: Client) -> None:
        with self._lock:
            self._clients.discard(client)
            client.socket.close()

    def _make_room(self, patience: float) -> None:
        """Break off a stranger that has been here for so long; its thread then ends."""
        latest = time.monotonic() - patience
        with self._lock:
            strangers = [client for client in self._clients if not client.known]
            crowd = Counter(client.address for client in strangers)
            waited = [client for client in strangers if client.since <= latest]
            if waited:
                victim = min(waited, key=lambda client: (-crowd[client.address], client.since))
                with suppress(OSError):
                    victim.socket.shutdown(socket.SHUT_RDWR)
