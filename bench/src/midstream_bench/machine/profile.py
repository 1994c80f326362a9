"""Where in a virtual hardworker a receiver's instructions are executed, by function.

python -m midstream_bench.machine.profile RECEIVER... prints, for each, the functions of the kernel and the
files of the receiver that take the most of a message, in instructions. As root. The guest needs a while to
say what is where, in which the load goes on: of a receiver that does not count its messages itself, as the
floor, the line above the functions tells more than were due.
"""

import signal
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from midstream.ebpf import compiler
from midstream.errors import MidstreamError
from midstream_bench.machine.measure import scene_of
from midstream_bench.machine.scene import Scene
from midstream_bench.receivers import RECEIVERS
from midstream_bench.scenario import QUICK
from midstream_bench.traffic import Traffic

_LINES = 60
_SECONDS = 2.0
_SLOW = 8


class ProfiledScene(Scene):
    """A scene that remembers where the last window's instructions were executed."""

    functions: Counter[str]

    def window(self, slow: int, traffic: Traffic | None) -> dict[str, float]:
        places, self.functions = self.guest.places, Counter()
        before = places["instructions"].copy()
        taken = super().window(slow, traffic)
        used = places["instructions"] - before
        rows = np.flatnonzero(used)
        if traffic:
            names = self.guest.call("names", places["address"][rows].tolist())
            for name, count in zip(names, used[rows].tolist(), strict=True):
                self.functions[name] += count
        return taken


def main(names: Sequence[str]) -> None:
    """Print the profiles of these receivers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was built is taken down
    (scenario,) = QUICK
    cache = compiler.cache_directory() / "vm"
    with scene_of(scenario, _SECONDS, cache, kind=ProfiledScene, profiled=True) as scene:
        assert isinstance(scene, ProfiledScene)
        for receiver in (one for one in RECEIVERS if one.name in names):
            counted = scene.count(receiver, _SLOW)
            print(f"{receiver.name}: {counted}")
            for function, count in scene.functions.most_common(_LINES if counted.due else 0):
                print(f"  {count / counted.due:8.1f} {function}")
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
