"""Reading /proc for a benchmark."""

import os
import time

from midstream_bench import observe
from midstream_bench.observe import Reading

TIMER_LIST = """\
Timer List Version: v0.10
now at 748989221900 nsecs

cpu: 0
 clock 0:
  .index:      0
  .idle_calls     : 7
  .idle_sleeptime : 602380107424 nsecs
  .iowait_sleeptime: 1 nsecs
cpu: 1
  .idle_sleeptime : 482258652529 nsecs

Tick Device: mode:     1
"""

INTERRUPTS = """\
           CPU0       CPU1
 24:          1          0  IO-APIC   5-edge      ACPI:Ged
LOC:      20000      30000   Local timer interrupts
RES:        300        400   Rescheduling interrupts
ERR:          9
MIS:          8
"""


def test_idle_time_is_that_of_the_core() -> None:
    assert observe.parse_idle(TIMER_LIST, 0) == 602380107424
    assert observe.parse_idle(TIMER_LIST, 1) == 482258652529
    assert observe.parse_idle(TIMER_LIST, 2) == 0
    assert observe.parse_idle("", 0) == 0


def test_interrupts_are_those_of_the_core() -> None:
    assert observe.parse_interrupts(INTERRUPTS, 0) == 20301
    assert observe.parse_interrupts(INTERRUPTS, 1) == 30400


def test_busy_is_what_was_not_idle() -> None:
    before = Reading(time=1_000_000_000, idle=500, interrupts=1, forks=2, voluntary=3, involuntary=4)
    after = Reading(
        time=3_000_000_000, idle=1_500_000_500, interrupts=11, forks=22, voluntary=33, involuntary=44
    )
    activity = observe.between(before, after)
    assert (activity.seconds, activity.busy_ns) == (2.0, 500_000_000)
    assert (activity.interrupts, activity.forks, activity.voluntary, activity.involuntary) == (10, 20, 30, 40)


def test_foreign_is_who_is_not_part_of_it() -> None:
    before = {1: ("init", 100), 2: ("ours", 100), 3: ("qemu", 1000)}
    after = {1: ("init", 100), 2: ("ours", 900), 3: ("qemu", 1800), 4: ("new", 70), os.getpid(): ("we", 9)}
    assert observe.foreign(before, after, [2]) == {"qemu": 800}


def test_this_machine_can_be_read() -> None:
    core = min(os.sched_getaffinity(0))
    usual = os.sched_getaffinity(0)
    before = observe.read(core, [os.getpid()])
    for _ in range(5):
        time.sleep(0.002)
    after = observe.read(core, [os.getpid()])
    activity = observe.between(before, after)
    assert os.sched_getaffinity(0) == usual
    assert 0.01 < activity.seconds < 5 and 0 <= activity.busy_ns <= round(activity.seconds * 1e9)
    assert activity.voluntary >= 5 and activity.interrupts > 0
    used = observe.memory([os.getpid()])
    assert 1 << 20 < used["rss"] <= used["peak"] and used["pss"] > 0
    assert observe.memory([0]) == {}


def test_own_work_on_a_core_is_seen_there() -> None:
    usual = os.sched_getaffinity(0)
    core = max(usual)
    try:
        os.sched_setaffinity(0, {core})
        time.sleep(0)
        assert observe.tasks(core)[os.getpid()][1] > 0
    finally:
        os.sched_setaffinity(0, usual)
