"""How long after the kernel got a message the application has it, in a virtual hardworker.

python -m midstream.bench.machine.delay [RECEIVER... | SCENARIO...] prints percentiles for each, in
microseconds of the guest's clock, for which an instruction takes 2 ns. As root. A lab cannot tell this so
well: where a virtual machine is the lab, an interrupt that a core sends is an exit to its host.

The kernel stamps a socket's data when the driver has handed it over (SO_TIMESTAMPNS, socket(7)), midstream's
program when it stores a message.
"""

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from midstream.bench.machine.measure import scene_of
from midstream.bench.receiver import Receiver, Setting
from midstream.bench.receivers import RECEIVERS
from midstream.bench.scenario import QUICK, find
from midstream.ebpf import compiler
from midstream.errors import MidstreamError

USUAL = "midstream-epoll-c", "midstream-epoll-numpy", "c-epoll-receive", "c-epoll-relay"

_PERCENTILES = "p50", "p99", "p999", "max"
_SECONDS = 5.0
_SLOW = 16


def stamped(receiver: Receiver) -> Receiver:
    """The receiver, whose latencies begin when the kernel got a message."""
    command = receiver.command
    assert command is not None

    def told(setting: Setting) -> list[str]:
        return ["env", "MIDSTREAM_STAMPED=1", *command(setting)]

    return replace(receiver, command=told)


def main(words: Sequence[str]) -> None:
    """Print the delays of these receivers, without any name of USUAL."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was built is taken down
    scenarios = [word for word in words if word[:1].isdigit()]
    names = [word for word in words if word not in scenarios] or USUAL
    for scenario in find(scenarios) if scenarios else QUICK:
        with scene_of(scenario, _SECONDS, compiler.cache_directory() / "vm") as scene:
            for receiver in (one for one in RECEIVERS if one.name in names and one.command):
                counted = scene.count(stamped(receiver), _SLOW)
                told = (counted.received or {}).get("latency_ns")
                found = told and ", ".join(f"{name} {told[name] / 1e3:.1f} us" for name in _PERCENTILES)
                print(
                    f"{scenario.name} {receiver.name:26}{counted if counted.problems else found}", flush=True
                )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
