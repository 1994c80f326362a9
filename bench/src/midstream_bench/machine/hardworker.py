"""A virtual hardworker, of which every instruction is counted: kernel, interrupts, idle entries, programs.

A plug-in of QEMU counts (count.c). With `-icount` the guest's clock advances by 2 ns with each instruction
while it works, however long that takes here; while it is idle, it follows this machine's clock, slowed down
(slow.c) as much as its work needs. So what the guest does depends on when packets come, and on nothing else
that this machine does.
"""

import json
import mmap
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from midstream.ebpf import compiler
from midstream.errors import LabError
from midstream.lab.hosts import SUBNET, LabHost
from midstream_bench.machine import wires
from midstream_bench.machine.machine import Machine

NANOSECONDS = 2
"""An instruction takes so long by the guest's clock."""

PLACE = np.dtype([("address", "<u8"), ("instructions", "<u8")])
"""struct place in count.c."""
_PLACES = 1 << 21

_BOOT = 120.0  # seconds
_ANSWER = 240.0
# Without these two features the processor's string instructions do not count a byte an instruction.
_CPU = "max,-erms,-fsrm"
# As a network card that leaves segments and checksums as they are, with a queue of its own for XDP_TX, and
# with a buffer for each frame: of buffers that can be joined (mrg_rxbuf) the driver gives XDP a newly zeroed
# page for each.
_CARD = (
    "mrg_rxbuf=off,mq=on,vectors=6,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,"
    "guest_csum=off,csum=off,gso=off"
)


class VirtualHardworker:
    """Calls the functions of guest.py inside the machine. `gone`: it does not answer any more. `places`: the
    instructions executed in each block of the guest's memory, if it was booted to be profiled."""

    gone = False

    def __init__(self, wire: socket.socket, shared: np.ndarray, places: np.ndarray) -> None:
        self._wire = wire
        self._shared = shared
        self.places = places
        self._answers = wire.makefile("rb")
        self._take()  # it is ready

    def call(self, function: str, *arguments: Any) -> Any:
        """The function's result. Raises LabError with the guest's words."""
        request = json.dumps({"call": function, "arguments": arguments}).encode() + b"\n"
        try:
            if not self.gone:
                self._wire.sendall(request)
        except OSError:
            self.gone = True
        return self._take()

    @property
    def instructions(self) -> int:
        """Executed since it was switched on."""
        return int(self._shared[0])

    @property
    def slow(self) -> int:
        """How many times slower than this machine's clock the guest's runs: 1 to 64 (slow.c).

        A change is heeded within 50 ms, and the guest's clock does not jump.
        """
        return int(self._shared[1])

    @slow.setter
    def slow(self, times: int) -> None:
        self._shared[1] = times

    def _take(self) -> Any:
        try:
            line = b"" if self.gone else self._answers.readline()
        except OSError:
            line = b""  # a late answer must not be taken for another's
        if not line:
            self.gone = True
            raise LabError(f"the virtual hardworker is gone, or has not answered for {_ANSWER:g} s")
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(f"the virtual hardworker: {answer['error']}")
        return answer["result"]


@contextmanager
def booted(hosts: Sequence[LabHost], cache: Path, *, profiled: bool = False) -> Iterator[VirtualHardworker]:
    """The machine at the tap of `wires.wired`, with its network up. Raises LabError."""
    hardworker = next(host for host in hosts if host.name == "hardworker")
    counting = compiler.compile_library(Path(__file__).with_name("count.c"))
    slow = compiler.compile_library(Path(__file__).with_name("slow.c"))
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="midstream-vm-")))
        control, count, where = folder / "control", folder / "count", folder / "where"
        count.write_bytes(np.array([0, 1, NANOSECONDS], "<u8").tobytes())
        shared = np.frombuffer(_mapped(count), "<u8")
        files, places = [f"COUNT={count}"], np.zeros(0, PLACE)
        if profiled:
            where.write_bytes(b"")
            os.truncate(where, _PLACES * PLACE.itemsize)
            places = np.frombuffer(_mapped(where), PLACE)
            files.append(f"WHERE={where}")
        extra = [
            "-plugin", str(counting),
            "-icount", f"shift={NANOSECONDS.bit_length() - 1},sleep=on",
            "-netdev", f"tap,id=net,ifname={wires.TAP},script=no,downscript=no,queues=2,vhost=off",
            "-device", f"virtio-net-pci,netdev=net,mac={hardworker.mac},{_CARD}",
            "-chardev", f"socket,id=control,path={control},server=on,wait=off",
            "-device", "virtserialport,chardev=control,nr=3",
        ]  # fmt: skip
        output = undo.enter_context((folder / "output").open("w+b"))
        machine = undo.enter_context(
            Machine(
                [sys.executable, "-m", "midstream_bench.machine.guest"],
                cache=cache,
                cpus=1,
                cpu=_CPU,
                extra=extra,
                prefix=wires.command(wires.SWITCH, ["env", f"LD_PRELOAD={slow}", *files]),
                output=output,
            )
        )
        wire = undo.enter_context(socket.socket(socket.AF_UNIX))
        deadline = time.monotonic() + _BOOT
        while wire.connect_ex(str(control)):
            if time.monotonic() > deadline or machine.process.poll() is not None:
                raise LabError("QEMU does not start; is /dev/net/tun there?")
            time.sleep(0.05)
        wire.settimeout(_ANSWER)
        others = {str(host.ip): host.mac for host in hosts if host != hardworker}
        try:
            guest = VirtualHardworker(wire, shared, places)
            guest.call("connect", str(hardworker.ip), SUBNET.prefixlen, others)
        except (LabError, OSError) as error:
            output.seek(0)
            said = output.read().decode(errors="replace")
            raise LabError(
                f"the virtual hardworker does not come up: {error}\n{said}{machine.console}"
            ) from error
        yield guest


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
