"""Instructions of the whole hardworker beside the lab's figures: machine.json of a campaign's folder."""

import json
from collections.abc import Callable

from midstream.bench.campaign import Settings, read_machine
from midstream.bench.machine.measure import measure
from midstream.ebpf import compiler

MACHINE = "machine.json"


def count(settings: Settings, tell: Callable[[str], None], stop: Callable[[], bool]) -> None:
    """Count what is not in the folder yet, in a virtual machine that is booted once for each scenario.

    Receivers whose sensors are their own (middlewares), lossy wires and saturation are left out: the virtual
    machine has none of them. A run with a problem is told and gives no figure. Raises LabError, ConfigError.
    """
    path = settings.folder / MACHINE
    settings.folder.mkdir(parents=True, exist_ok=True)
    figures = read_machine(path)
    for scenario in settings.scenarios:
        if scenario.loss or scenario.is_saturation:
            continue
        row = figures.setdefault(scenario.name, {})
        receivers = [each for each in settings.receivers if not each.sender and each.name not in row]
        if not receivers:
            continue
        tell(f"{scenario.name}: booting a virtual hardworker")
        for counted in measure(
            receivers,
            sensors=scenario.sensors,
            rate=scenario.rate,
            size=scenario.size,
            seconds=settings.seconds,
            cache=compiler.cache_directory() / "vm",
        ):
            figure = f"{counted.instructions / 1e3:.2f} thousand instructions a message"
            tell(f"{scenario.name} {counted.receiver}: {'; '.join(counted.problems) or figure}")
            if not counted.problems:
                row[counted.receiver] = round(counted.instructions / 1e3, 3)
                path.write_text(json.dumps(figures, indent=1) + "\n")
            if stop():
                return
