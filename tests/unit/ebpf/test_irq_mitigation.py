"""The arithmetic of deferred interrupts."""

import time

import pytest

from midstream.ebpf import irq_mitigation


@pytest.mark.parametrize("period", [0.0001, 0.001, 0.01, 0.1, 1.0])
def test_timer_and_reader_together_take_less_than_a_period(period: float) -> None:
    """A packet that comes right after a look is seen by the next, and the reader follows that."""
    timer = irq_mitigation.matched(period).timeout / 1e9
    assert timer < irq_mitigation.follow(period) < period
    # The reader comes after the interface, and not later than the same turn.
    assert irq_mitigation.follow(period) - timer == pytest.approx(period / 32, rel=1e-3)


def test_the_clocks_are_the_same() -> None:
    """The program's times (bpf_ktime_get_ns) are of CLOCK_MONOTONIC, and so is what the reader waits by."""
    assert abs(time.monotonic_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) < 10**9
