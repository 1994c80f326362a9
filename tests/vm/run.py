"""Runs a command inside a virtual machine with one of Debian's kernels, by default the oldest supported.

    python tests/vm/run.py --kernel newest -- uname -r

Output comes back as it is written and the exit status is the command's; 124 if the time ran out, 125 if the
machine did not get as far as the command. Kernels are kept under ``.cache/vm``. See bench/machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from midstream.errors import MidstreamError
from midstream_bench.machine.kernel import OLDEST, RELEASES
from midstream_bench.machine.machine import NOT_STARTED, TIMED_OUT, Machine

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vm"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run a command on another kernel.")
    parser.add_argument("--kernel", choices=RELEASES, default=OLDEST.name, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds (default: %(default)s)")
    parser.add_argument("--memory", default="2G", help="of the machine (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="of the machine (default: %(default)s)")
    parser.add_argument("--console", action="store_true", help="show the kernel's messages afterwards")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        with Machine(
            options.command,
            cache=CACHE,
            release=RELEASES[options.kernel],
            memory=options.memory,
            cpus=options.cpus,
        ) as machine:
            code = machine.wait(options.timeout)
            if options.console or code in (TIMED_OUT, NOT_STARTED):
                sys.stderr.write(machine.console)
    except MidstreamError as error:
        print(f"vm: {error}", file=sys.stderr)
        return NOT_STARTED
    if code == TIMED_OUT:
        print(f"vm: stopped after {options.timeout:g} s", file=sys.stderr)
    elif code == NOT_STARTED:
        print("vm: the machine ended before the command did; its console is above", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
