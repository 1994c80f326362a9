"""The other end of the wire to a virtual hardworker: does inside the guest what the host asks for.

It reads JSON objects, one a line, from a virtio port, calls the function that each names,
and answers with a line: {"result": …} or {"error": …}. Between two requests it sleeps and costs nothing.
"""

import bisect
import glob
import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import config as configuration
from midstream import network
from midstream.ebpf import irq_mitigation, loader, pins
from midstream.load import load as helper
from midstream_bench.receivers import arrangement

INTERFACE = "eth0"

_READY, _FINISHED = 60.0, 60.0  # seconds that a receiver has to be ready, and to end

_running: dict[str, "subprocess.Popen[bytes]"] = {}  # the receiver


def connect(address: str, prefix: int, neighbours: Mapping[str, str]) -> None:
    """Bring the interface up, with permanent neighbours."""
    subprocess.run(["modprobe", "virtio_net"], check=True)
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=INTERFACE)
        ipr.addr("add", index=index, address=address, prefixlen=prefix)
        ipr.link("set", index=index, state="up")
        for ip, mac in neighbours.items():
            ipr.neigh("replace", dst=ip, lladdr=mac, ifindex=index, state="permanent")


def attach(path: str) -> str:
    """As `midstream attach hardworker`; returns the mode."""
    config = configuration.load(path)
    topology = network.load(config.const_path)
    return loader.attach("hardworker", config, topology, interface=INTERFACE).mode


def detach(path: str) -> bool:
    """As `midstream detach hardworker`."""
    return loader.detach("hardworker", pins.default_folder("hardworker", configuration.load(path)))


def attach_floor(path: str) -> None:
    """The bare forwarder, until `detach_floor`."""
    arrangement.attach_floor(Path(path), INTERFACE)


def detach_floor(path: str) -> None:
    """Detach the bare forwarder."""
    arrangement.detach_floor(Path(path))


def defer(empty_looks: int, timeout: int) -> None:
    """Set the mitigation of the interface's interrupts."""
    irq_mitigation.write(INTERFACE, irq_mitigation.IrqMitigation(empty_looks, timeout))


def start(argv: Sequence[str]) -> int:
    """Start a receiver and wait until it is ready."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    helper.await_ready(process, argv[0], _READY)
    _running["receiver"] = process
    return process.pid


def begin() -> dict[str, float]:
    """The measured window begins."""
    if receiver := _running.get("receiver"):
        receiver.send_signal(signal.SIGUSR1)
    return sample()


def end() -> dict[str, float]:
    """The measured window ends."""
    taken = sample()
    if receiver := _running.get("receiver"):
        receiver.send_signal(signal.SIGUSR2)
    return taken


def finish() -> dict[str, Any]:
    """End the receiver; what it says."""
    process = _running.pop("receiver")
    process.terminate()
    return helper.finish(process, "the receiver", _FINISHED)


def kill() -> None:
    """End the receiver, if there is one left."""
    if process := _running.pop("receiver", None):
        helper.end(process)


def sample() -> dict[str, float]:
    """What the guest's only core has done since boot, and its clock in nanoseconds."""
    stat = Path("/proc/stat").read_text()
    counted = {line.split()[0]: line.split() for line in stat.splitlines()}
    return {
        "now": time.monotonic_ns(),
        "interrupts": int(counted["intr"][1]),
        "switches": int(counted["ctxt"][1]),
        "softirqs": int(counted["softirq"][1]),
    }


def names(addresses: Sequence[int]) -> list[str]:
    """What holds each address: a function of the kernel (eBPF programs too), or a file of the receiver."""
    starts = []
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, kind, name = line.split()[:3]
        if kind in "tTwW":
            starts.append((int(address, 16), name))
    if receiver := _running.get("receiver"):
        for line in Path(f"/proc/{receiver.pid}/maps").read_text().splitlines():
            words = line.split()
            path = words[5] if len(words) > 5 else "(no file)"
            starts.append((int(words[0].partition("-")[0], 16), f"in the receiver: {Path(path).name}"))
    starts.sort()
    return [starts[max(0, bisect.bisect(starts, (address, chr(0x10FFFF))) - 1)][1] for address in addresses]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        connect,
        attach,
        detach,
        attach_floor,
        detach_floor,
        defer,
        start,
        sample,
        begin,
        end,
        finish,
        kill,
        names,
    )
}


def main() -> None:
    """Serve until the host closes its end."""
    (port,) = glob.glob("/dev/vport*p3")
    descriptor = os.open(port, os.O_RDWR | os.O_CLOEXEC)
    with open(descriptor, "rb") as requests, open(descriptor, "wb", closefd=False) as answers:
        answers.write(b'{"result": "ready"}\n')
        answers.flush()  # and not os.write: the port takes 32 KiB at once
        for line in requests:
            request = json.loads(line)
            try:
                answer = {"result": _FUNCTIONS[request["call"]](*request["arguments"])}
            except Exception:
                answer = {"error": traceback.format_exc()}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main()
