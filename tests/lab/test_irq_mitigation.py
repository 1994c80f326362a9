"""A period and the interface's interrupts: matched by attach, and as before after detach."""

from collections.abc import Iterator

import pytest
from tests.lab.triangle import command, variant

from midstream.ebpf import irq_mitigation
from midstream.ebpf.irq_mitigation import IrqMitigation
from midstream.errors import KernelError
from midstream.lab import Lab

PERIOD = 0.02
BEFORE = IrqMitigation(1, 30_000)


@pytest.fixture(autouse=True)
def interface(lab: Lab) -> Iterator[None]:
    """The hardworker's interface has settings of its own before, and nothing is attached after."""
    lab.call("hardworker", irq_mitigation.write, "eth0", BEFORE)
    yield
    detach(lab)
    lab.call("hardworker", irq_mitigation.write, "eth0", IrqMitigation(0, 0))


def attach(lab: Lab, **settings: float | bool) -> None:
    path = variant(lab, "period.toml", hardworker=settings)
    done = command(lab, "hardworker", "attach", "hardworker", "--config", path)
    assert done.code == 0, done.err


def detach(lab: Lab) -> int:
    return command(lab, "hardworker", "detach", "hardworker", "--config", lab.config).code


def in_force(lab: Lab) -> IrqMitigation:
    return lab.call("hardworker", irq_mitigation.read, "eth0")


def test_the_doctor_finds_what_was_taken_back_and_attach_mends_it(lab: Lab) -> None:
    attach(lab, period=PERIOD)
    lab.call("hardworker", irq_mitigation.write, "eth0", IrqMitigation(0, 0))
    path = lab.run_dir / "period.toml"
    examined = command(lab, "hardworker", "doctor", "--json", "--no-probe", "--config", path).object
    (found,) = [one for one in examined["findings"] if one["check"] == "settings"]
    assert found["status"] == "warning"
    assert found["fix"] == f"midstream attach hardworker --config {path}"
    assert command(lab, "hardworker", *found["fix"].split()[1:]).code == 0
    assert in_force(lab) == irq_mitigation.matched(PERIOD)


def test_a_period_is_matched_and_undone(lab: Lab) -> None:
    attach(lab, period=PERIOD)
    assert in_force(lab) == irq_mitigation.matched(PERIOD) == IrqMitigation(4, 18_750_000)
    status = command(lab, "hardworker", "status", "--json", "--config", lab.run_dir / "period.toml")
    assert status.object["hardworker"]["look_every_ns"] == 18_750_000
    assert detach(lab) == 0
    assert in_force(lab) == BEFORE


def test_what_somebody_has_set_since_stays(lab: Lab) -> None:
    attach(lab, period=PERIOD)
    lab.call("hardworker", irq_mitigation.write, "eth0", IrqMitigation(2, 50_000))
    detach(lab)
    assert in_force(lab) == IrqMitigation(2, 50_000)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"period": 0.0}, {"period": PERIOD, "irq_mitigation": False}])
def test_without_a_period_or_if_told_so_nothing_is_touched(
    lab: Lab, settings: dict[str, float | bool]
) -> None:
    attach(lab, **settings)
    assert in_force(lab) == BEFORE
    status = command(lab, "hardworker", "status", "--config", lab.run_dir / "period.toml")
    assert "look_every" not in status.out


def test_another_period_needs_another_attachment(lab: Lab) -> None:
    attach(lab, period=PERIOD)
    path = variant(lab, "other.toml", hardworker={"period": 2 * PERIOD})
    done = command(lab, "hardworker", "attach", "hardworker", "--config", path)
    assert done.code == 4
    assert "made from other files" in done.err


def test_a_kernel_that_cannot_defer_is_an_error_that_says_how_to_go_without(lab: Lab) -> None:
    with pytest.raises(KernelError, match=r"no-such-interface.*hardworker\.irq_mitigation = false"):
        lab.call("hardworker", irq_mitigation.read, "no-such-interface")
