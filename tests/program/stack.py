"""Linux's own TCP behind the program: frames go to it, and come back, through TAP devices in namespaces.

One thread does all, so what happens is the same at every run: whoever sends or looks moves the frames on.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.program.bench import TOPOLOGY, XDP_PASS, XDP_TX, Bench
from tests.support.fake_ring import Segment
from tests.support.observed import ObservedHandler

from midstream.daemon.reassembly import Stream
from midstream.ebpf import records
from midstream.network import Host
from midstream.packet import Packet

PATIENCE = 10.0  # seconds
_CLONE_NEWNET = 0x40000000
_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 2, 0x1000


class Stack:
    """A host of the topology: its address, the others as permanent neighbours, and a listening socket."""

    def __init__(self, host: Host, *, listens: bool) -> None:
        self.host = host
        self._there = -1
        if not os.path.exists(_TUN):  # where no udev runs, as in the virtual machine
            subprocess.run(["modprobe", "tun"], check=True)
        with self.inside():
            self.tap = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(self.tap, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP | _IFF_NO_PI))
            with IPRoute() as ipr:
                (index,) = ipr.link_lookup(ifname="eth0")
                ipr.link("set", index=index, address=host.mac, mtu=TOPOLOGY.mtu, state="up")
                ipr.addr("add", index=index, address=str(host.ip), prefixlen=24)
                for other in (*TOPOLOGY.sensors[:2], TOPOLOGY.hardworker, TOPOLOGY.logger):
                    if other != host:
                        ipr.neigh(
                            "replace", dst=str(other.ip), lladdr=other.mac, ifindex=index, state="permanent"
                        )
            self.listener = socket.socket()
        if listens:
            self.listen()

    def listen(self) -> None:
        """Anew, if the listener was closed."""
        self.listener.close()
        with self.inside():
            self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # as logger/server.py
        self.listener.bind((str(self.host.ip), TOPOLOGY.port))
        self.listener.listen()
        self.listener.setblocking(False)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What is opened here is the host's."""
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._there < 0:
                assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
                self._there = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            else:
                assert libc.setns(self._there, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            assert libc.setns(here, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            os.close(here)

    def has_connection(self) -> bool:
        """Is there one to be accepted?"""
        return bool(select.select([self.listener], [], [], 0)[0])

    def write(self, frame: bytes) -> None:
        os.write(self.tap, frame)

    def read(self) -> Iterator[bytes]:
        """What the host has sent."""
        while select.select([self.tap], [], [], 0)[0]:
            yield os.read(self.tap, 4096)

    def close(self) -> None:
        self.listener.close()
        os.close(self.tap)
        os.close(self._there)


class Path:
    """The way of a sensor's frames, as a scripted client sees it; and what each end has got of it."""

    def __init__(self, logger: Stack) -> None:
        self.logger = logger
        self.application = b""
        self._answers: deque[bytes] = deque()
        self._accepted: socket.socket | None = None
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._logged = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._accepted:
            self._accepted.close()
        os.close(self._event)

    def send(self, frame: bytes) -> None:
        self.pass_on(frame)
        self.move()

    def recv(self, _: int) -> bytes:
        frame = self._answers.popleft()
        if not self._answers:
            os.eventfd_read(self._event)
        return frame

    def fileno(self) -> int:
        self.move()
        return self._event

    def logged(self) -> bytes:
        """What the logger's socket has given."""
        self.move()
        return bytes(self._logged)

    def answer(self, frame: bytes) -> None:
        """To the sensor."""
        self._answers.append(frame)
        os.eventfd_write(self._event, 1)

    def pass_on(self, frame: bytes) -> None:
        raise NotImplementedError

    def move(self) -> None:
        """Let everybody do what there is to do."""
        if self._accepted is None:
            try:
                self._accepted, _ = self.logger.listener.accept()
            except BlockingIOError:
                return
            self._accepted.setblocking(False)
        try:
            while data := self._accepted.recv(1 << 16):
                self._logged += data
            self._accepted.shutdown(socket.SHUT_WR)
        except OSError:  # nothing is there, or it was reset
            pass


class EbpfPath(Path):
    """Through the program on the bench to the logger; its answers go straight back."""

    def __init__(self, bench: Bench, logger: Stack) -> None:
        super().__init__(logger)
        self._bench = bench
        self._stream = Stream()

    def pass_on(self, frame: bytes) -> None:
        verdict, output = self._bench.run(frame)
        if verdict == XDP_TX:
            self.logger.write(output)

    def move(self) -> None:
        super().move()
        for frame in self.logger.read():
            # As midstream_logger_egress does it; nobody looks at the checksums.
            self.answer(frame[:26] + TOPOLOGY.hardworker.ip.packed + frame[30:])
        for record in self._bench.ring.take():
            self.application += self._stream.push(record.offset, record.payload)


class SocketPath(Path):
    """To the socket receiver, which relays to the logger."""

    def __init__(self, hardworker: Stack, logger: Stack) -> None:
        super().__init__(logger)
        self._hardworker = hardworker
        with self._hardworker.inside():
            self._handler = ObservedHandler(TOPOLOGY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handler.close()
        super().__exit__(kind, error, trace)

    def pass_on(self, frame: bytes) -> None:
        self._hardworker.write(frame)

    def move(self) -> None:
        super().move()
        with self._hardworker.inside():  # where it connects to the logger
            for segment in self._segments():
                assert not segment.flags & records.FIN or not segment.data
                self.application += segment.data
        for frame in self._hardworker.read():
            if frame[:6] == bytes.fromhex(TOPOLOGY.logger.mac.replace(":", "")):
                self.logger.write(frame)
            else:
                self.answer(frame)
        for frame in self.logger.read():
            self._hardworker.write(frame)

    def _segments(self) -> Iterator[Segment]:
        self._handler.look()
        while segment := self._handler.next():
            yield segment


class Triangle:
    """Sensor, program, logger and the hardworker's own stack, joined by whoever waits for something."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.logger = Stack(TOPOLOGY.logger, listens=True)
        self.hardworker = Stack(TOPOLOGY.hardworker, listens=True)
        self.sensor = Stack(TOPOLOGY.sensors[0], listens=False)

    def close(self) -> None:
        self.logger.close()
        self.hardworker.close()
        self.sensor.close()

    def peer(self, destination: int) -> Stack:
        """The host that takes connections for which that is decided."""
        return self.hardworker if destination == records.HERE else self.logger

    def connect(self) -> socket.socket:
        """A sensor's connection that is on its way."""
        with self.sensor.inside():
            client = socket.socket()
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOPOLOGY.tos)
        client.setblocking(False)
        client.connect_ex((str(TOPOLOGY.hardworker.ip), TOPOLOGY.port))
        return client

    def connected(self) -> socket.socket:
        client = self.connect()
        self.wait(lambda: self.established(client))
        return client

    def established(self, client: socket.socket) -> bool:
        state = self.bench.connection(0, client.getsockname()[1])
        return state is not None and bool(state["established"])

    def change(self, client: socket.socket, **fields: int) -> None:
        port = client.getsockname()[1]
        state = self.bench.connection(0, port)
        assert state is not None
        for name, value in fields.items():
            state[name] = value
        self.bench.set_connection(0, port, state)

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, "it does not come about"
            self.move()
            time.sleep(0.002)

    def from_sensor(self) -> Iterable[bytes]:
        return self.sensor.read()

    def move(self) -> None:
        for frame in self.from_sensor():
            with self.hardworker.inside():  # whose sockets the program asks for
                verdict, output = self.bench.run(frame)
            if verdict == XDP_PASS:
                self.hardworker.write(output)
            if verdict == XDP_TX:
                to_logger = Packet.parse(output).ip.destination == TOPOLOGY.logger.ip
                (self.logger if to_logger else self.sensor).write(output)
        for frame in self.hardworker.read():
            self.sensor.write(frame)
        for frame in self.logger.read():
            if frame[12:14] == b"\x08\0":  # as midstream_logger_egress does it
                reply = Packet.parse(frame)
                restored = replace(reply, ip=replace(reply.ip, source=TOPOLOGY.hardworker.ip))
                self.sensor.write(restored.with_checksums().pack())
