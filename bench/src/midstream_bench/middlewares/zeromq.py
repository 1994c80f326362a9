"""ZeroMQ (pyzmq): PUB and SUB, where the sensor sends two copies, or PUSH and PULL, one host after the other.

No high-water mark, so that nothing is dropped; TCP_NODELAY is ZeroMQ's own default.
"""

import time
from collections.abc import Callable

import zmq

from midstream_bench.middlewares.middleware import PATIENCE, TICK, Ends, Take

_LINGER = 5000  # milliseconds


class PubSub:
    """The logger has its own copy from the sensors."""

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        with zmq.Context() as context, _socket(context, zmq.SUB) as socket:
            socket.subscribe(b"")
            for number in range(ends.sensors):
                socket.connect(f"tcp://{ends.sensor}:{ends.port + number}")
            ready()
            _pull(socket, take, stopped)

    log = receive

    def connect(self, ends: Ends) -> "_Sender":
        context = zmq.Context()
        sockets = [_socket(context, zmq.XPUB) for _ in range(ends.sensors)]
        for number, socket in enumerate(sockets):
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # tell of the second subscriber too
            socket.bind(f"tcp://{ends.sensor}:{ends.port + number}")
            for _ in range(2):  # hardworker and logger
                if not socket.poll(round(PATIENCE * 1000)):
                    raise TimeoutError("ZeroMQ: a subscriber is missing")
                socket.recv()
        return _Sender(context, sockets)


class PushPull:
    """The hardworker sends each message on to the logger."""

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        with zmq.Context() as context, _socket(context, zmq.PULL) as socket, _socket(context, zmq.PUSH) as on:
            socket.bind(f"tcp://{ends.address}:{ends.port}")
            on.connect(f"tcp://{ends.logger}:{ends.port}")
            ready()

            def relay(message: bytes) -> None:
                take(message)
                on.send(message)

            _pull(socket, relay, stopped)

    def log(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        with zmq.Context() as context, _socket(context, zmq.PULL) as socket:
            socket.bind(f"tcp://{ends.logger}:{ends.port}")
            ready()
            _pull(socket, take, stopped)

    def connect(self, ends: Ends) -> "_Sender":
        context = zmq.Context()
        sockets = [_socket(context, zmq.PUSH) for _ in range(ends.sensors)]
        for socket in sockets:
            socket.connect(f"tcp://{ends.address}:{ends.port}")
        return _Sender(context, sockets)


class _Sender:
    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", sockets: "list[zmq.Socket[bytes]]") -> None:
        self._context, self._sockets = context, sockets

    def send(self, sensor: int, message: bytes) -> None:
        self._sockets[sensor].send(message)

    def close(self) -> None:
        time.sleep(TICK)
        for socket in self._sockets:
            socket.close(linger=_LINGER)
        self._context.term()


def _socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.set_hwm(0)
    socket.setsockopt(zmq.RCVTIMEO, round(TICK * 1000))
    socket.setsockopt(zmq.LINGER, _LINGER)
    return socket


def _pull(socket: "zmq.Socket[bytes]", take: Take, stopped: Callable[[], bool]) -> None:
    receive = socket.recv
    while not stopped():
        try:
            while True:
                take(receive())
        except zmq.Again:
            continue
