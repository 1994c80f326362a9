"""Instructions a message of whole receivers, counted in a virtual hardworker.

One boot serves all receivers of a scenario, unless one takes the machine down. What the guest does without
any receiver and load, in a window as long, is its background, which is subtracted. For the rest see
bench/receiver.py.
"""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from midstream import config as configuration
from midstream import network
from midstream.config import Config
from midstream.ebpf import compiler, loader
from midstream.ebpf.pins import STREAMS, ensure_bpffs
from midstream.errors import MidstreamError
from midstream.lab import hosts, namespaces
from midstream.lab.hosts import INTERFACE
from midstream.network import Topology
from midstream.streams import decide, resolved
from midstream_bench.ebpf import PROGRAMS, compile_program
from midstream_bench.machine import wires
from midstream_bench.machine.counted import Counted
from midstream_bench.machine.hardworker import booted
from midstream_bench.machine.scene import PINS, Scene
from midstream_bench.middlewares import MIDDLEWARES
from midstream_bench.receiver import Family, Receiver
from midstream_bench.receivers import RECEIVERS
from midstream_bench.scenario import QUICK, SCENARIOS, Scenario, find

PORT, TOS, MTU = 12345, 104, 1500
SECONDS = 1.0
"""Of a window: longer ones give the same (docs/virtual-hardworker.md)."""
MESSAGES = 250
"""In a window, at least: where few are sent it lasts longer."""

_FEW = 200  # messages a second
_LIGHT, _HEAVY = 4, 8  # times slower than this machine's clock, to begin with


def measure(
    receivers: Sequence[Receiver],
    scenario: Scenario,
    *,
    seconds: float,
    cache: Path,
    slow: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Counted]:
    """Count each receiver's instructions. Raises LabError.

    seconds: of a window at least, by the guest's clock. cache: where the kernel is kept. slow: how many times
    slower than this machine's clock to try first, by receiver; otherwise what its family usually needs.
    """
    left = list(receivers)
    seconds = max(seconds, MESSAGES / (scenario.sensors * scenario.rate))
    while left:
        with scene_of(scenario, seconds, cache) as scene:
            while left and not scene.is_over:
                receiver = left.pop(0)
                yield scene.count(receiver, slow.get(receiver.name) or _usual(receiver, scenario))


@contextmanager
def scene_of(
    scenario: Scenario, seconds: float, cache: Path, *, kind: type[Scene] = Scene, profiled: bool = False
) -> Iterator[Scene]:
    """The machine and its hosts, up and settled, while the context lasts."""
    with ExitStack() as undo:
        folder = Path(undo.enter_context(TemporaryDirectory(prefix="midstream-vm-")))
        ensure_bpffs(Path(PINS))  # here, where it outlives the children that pin
        built = undo.enter_context(wires.wired(scenario.hosts, MTU))
        config = Config.model_validate(scenario.tables)
        streams = decide(config, ())
        size = streams[0].size if streams else scenario.size
        topology = hosts.topology(built, tos=TOS, port=PORT, mtu=MTU, size=size, streams=streams)
        network.write(folder / "const.toml", topology, "midstream bench")
        # Here, where it is quick; the guest finds them.
        for one in resolved(config, topology).values():
            compiler.compile_program("hardworker", one.topology)
        for name in ("logger", "selftest", *([STREAMS] if streams else [])):
            compiler.compile_program(name, topology)
        for name in PROGRAMS:
            compile_program(name, topology)
        undo.enter_context(_return_path(folder, topology))
        guest = undo.enter_context(booted(built, cache, profiled=profiled))
        yield kind(guest, built, topology, scenario, folder, seconds)


def _usual(receiver: Receiver, scenario: Scenario) -> int:
    """How many times slower is enough for most of a kind; half where the guest is idle most of the time."""
    is_light = receiver.family in (Family.FLOOR, Family.MIDSTREAM) and receiver.language != "Python"
    usual = _LIGHT if is_light else _HEAVY
    return usual // 2 if scenario.sensors * scenario.rate <= _FEW else usual


@contextmanager
def _return_path(folder: Path, topology: Topology) -> Iterator[None]:
    """The logger's program, while the context lasts."""
    config = folder / "logger.toml"
    config.write_text("")
    pins, settings = Path(PINS, "logger"), configuration.load(config)
    attach = partial(loader.attach, folder=pins, interface=INTERFACE)
    namespaces.call("msb-logger", (), attach, "logger", settings, topology)
    try:
        yield
    finally:
        namespaces.call("msb-logger", (), loader.detach, "logger", pins)
        pins.parent.rmdir()


def main(words: Sequence[str]) -> None:
    """Print thousand instructions a message of the receivers whose names hold one of these words.

    Words may also be scenarios' names, slow=N (how many times slower at first) and seconds=N (of a window).
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was built is taken down
    options = dict(word.split("=") for word in words if "=" in word)
    scenarios = [word for word in words if word in {scenario.name for scenario in SCENARIOS}]
    parts = [word for word in words if "=" not in word and word not in scenarios]
    everyone = (*RECEIVERS, *MIDDLEWARES)
    chosen = [one for one in everyone if not parts or any(part in one.name for part in parts)]
    slow = {one.name: int(options.get("slow", 0)) for one in chosen}
    for scenario in find(scenarios) if scenarios else QUICK:
        for one in measure(
            chosen,
            scenario,
            seconds=float(options.get("seconds", SECONDS)),
            cache=compiler.cache_directory() / "vm",
            slow=slow,
        ):
            print(f"{scenario.name} {one.receiver:26}{one}", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MidstreamError as error:
        print(f"midstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
