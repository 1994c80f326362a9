"""Instructions of the whole hardworker beside the lab's figures: machine.json of a campaign's folder."""

import time
from collections.abc import Callable, Mapping

from midstream.ebpf import compiler
from midstream_bench import campaign
from midstream_bench.campaign import Settings
from midstream_bench.machine import counted
from midstream_bench.machine.counted import Counted
from midstream_bench.machine.measure import measure
from midstream_bench.receiver import Receiver
from midstream_bench.scenario import Scenario

MACHINE = "machine.json"


def count(settings: Settings, seconds: float, tell: Callable[[str], None], stop: Callable[[], bool]) -> None:
    """Count what is not in the folder yet, in a virtual machine that is booted once for each scenario.

    seconds: of a window. A run with a problem is kept too, and made again by the next call; so is the reason
    why one is not made. Raises LabError, ConfigError.
    """
    path = settings.folder / MACHINE
    campaign.claim(settings.folder)
    found = counted.read(path)
    due: dict[Scenario, list[Receiver]] = {}
    for scenario in settings.scenarios:
        row = found.setdefault(scenario.name, {})
        for receiver in settings.receivers:
            if reason := excluded(receiver, scenario):
                row[receiver.name] = Counted(receiver.name, problems=(reason,))
            elif receiver.name not in row or row[receiver.name].problems:
                due.setdefault(scenario, []).append(receiver)
    counted.write(path, found)
    total, done, began = sum(map(len, due.values())), 0, time.monotonic()
    for scenario, receivers in due.items():
        if stop():
            return
        tell(f"{scenario.name}: booting a virtual hardworker")
        slow = {receiver.name: _slow(receiver, scenario, settings, found) for receiver in receivers}
        cache = compiler.cache_directory() / "vm"
        for one in measure(receivers, scenario, seconds=seconds, cache=cache, slow=slow):
            found[scenario.name][one.receiver] = one
            counted.write(path, found)
            done += 1
            left = (time.monotonic() - began) / done * (total - done) / 60
            tell(f"{done} of {total}, {left:.0f} min left: {scenario.name} {one.receiver}: {one}")
            if stop():
                return


def excluded(receiver: Receiver, scenario: Scenario) -> str:
    """Why a receiver's instructions are not counted in a scenario; empty: they are."""
    if scenario.is_saturation:
        return (
            "not counted: under saturation the sensors, which run at this machine's speed, would decide how "
            "many messages come at once, and that decides the figure"
        )
    return campaign.excluded(receiver, scenario)


def _slow(
    receiver: Receiver,
    scenario: Scenario,
    settings: Settings,
    found: Mapping[str, Mapping[str, Counted]],
) -> int:
    """How slow to try first: as slow as a scenario with no more messages needed; 0: not known."""
    rate = scenario.sensors * scenario.rate
    needed = [
        one.slow
        for other in settings.scenarios
        if other.sensors * other.rate <= rate
        and (one := found.get(other.name, {}).get(receiver.name))
        and not one.problems
    ]
    return max(needed, default=0)
