"""Where the data goes, by evidence alone: no clock, no kernel, no network."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.daemon.failover import (
    CONFIRM,
    MISSED,
    PATIENT,
    STEADY,
    SURE,
    Choice,
    Evidence,
    Limits,
    choose,
    fault,
    is_ready,
)
from midstream.ebpf.records import HERE

LIMITS = Limits(silence=2.0, stall=2.0)
WELL = Evidence(silent=0.05, steady=99.0)
BOOTING = Evidence(silent=0.05, serves=False, served=False, still=1.0)
DEAD = Evidence(silent=0.9, still=0.7, repeats=2, repeating=0.5)

seconds = st.floats(0, 100, allow_nan=False)
few = st.integers(0, 20)
anything = st.builds(
    Evidence,
    watched=seconds,
    silent=seconds,
    answered=st.booleans(),
    serves=st.booleans(),
    served=st.booleans(),
    waits=seconds,
    steady=seconds,
    failures=few,
    still=seconds,
    repeats=few,
    probes=few,
    repeating=seconds,
)


# what is true of whatever evidence


@given(anything)
def test_a_logger_that_acknowledges_is_never_left(found: Evidence) -> None:
    assert not fault(replace(found, still=0.0), LIMITS)


@given(anything)
def test_silence_alone_is_no_death(found: Evidence) -> None:
    """A cable that is out at the hardworker: no answer, and nothing from the sensors."""
    silent = replace(found, repeats=0, probes=0, repeating=0.0, serves=True)
    assert not fault(silent, LIMITS)


@given(anything)
def test_repeating_alone_is_no_death(found: Evidence) -> None:
    """A bad wire, a sensor's cable, a busy host: its daemon answers that all is well."""
    assert not fault(replace(found, silent=0.0, answered=True, serves=True, waits=0.0), LIMITS)


@given(anything, seconds)
def test_a_cable_that_comes_back_gives_the_answer_time(found: Evidence, silent: float) -> None:
    """However long the silence was: questions asked since the sensors are heard again must be unanswered."""
    assert not fault(replace(found, silent=silent, serves=True, repeating=SURE * 0.9), LIMITS) or (
        found.answered and silent <= MISSED
    )


loggers = st.lists(anything, min_size=1, max_size=4)


@given(loggers, st.booleans(), st.data())
def test_what_is_chosen_takes_connections(found: list[Evidence], spool: bool, data: st.DataObject) -> None:
    current = data.draw(st.sampled_from([*range(len(found)), HERE]))
    order = data.draw(st.permutations(range(len(found))))
    choice = choose(current, order, dict(enumerate(found)), LIMITS, spool=spool)
    ready = [place for place in order if place != current and is_ready(found[place])]
    if current != HERE and not fault(found[current], LIMITS):
        assert choice == Choice(current), "what works is kept"
    elif ready:
        assert choice.destination == ready[0], "the first of the list"
    elif spool:
        assert choice.destination == HERE
    else:
        assert choice.destination == (order[0] if current == HERE else current), "there is nothing better"


@given(loggers, st.data())
def test_a_choice_is_kept_as_long_as_nothing_changes(found: list[Evidence], data: st.DataObject) -> None:
    """No flapping: the same evidence does not lead back."""
    current = data.draw(st.sampled_from([*range(len(found)), HERE]))
    evidence = dict(enumerate(found))
    first = choose(current, range(len(found)), evidence, LIMITS, spool=True)
    if first.destination != HERE and not fault(found[first.destination], LIMITS):
        again = choose(first.destination, range(len(found)), evidence, LIMITS, spool=True)
        assert again.destination == first.destination


# cases


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (DEAD, "its daemon has not answered for 0.9 s, and sensors repeat themselves"),
        (
            replace(DEAD, answered=False),
            "its daemon has not answered for 0.9 s, and sensors repeat themselves",
        ),
        (replace(DEAD, repeats=1), ""),  # one lost packet of a slow sensor
        (replace(DEAD, repeats=1, answered=False), "its daemon has not answered for 0.9 s"),
        (replace(DEAD, repeats=1, silent=2.1, still=2.1), "its daemon has not answered for 2.1 s"),
        (replace(DEAD, repeats=0, probes=1, silent=2.1, still=2.1), "its daemon has not answered for 2.1 s"),
        (replace(WELL, serves=False, still=CONFIRM), "no logger listens on each stream's port"),
        (replace(BOOTING, watched=1.9), ""),
        (replace(BOOTING, watched=2.0), "no logger listens on each stream's port"),
        (replace(BOOTING, watched=1.9, served=True), "no logger listens on each stream's port"),
        (replace(WELL, waits=2.5, still=2.1, probes=1), "it has taken nothing for 2.5 s"),
        (replace(WELL, waits=2.5, still=2.1, repeats=1), "it has taken nothing for 2.5 s"),
        (replace(WELL, waits=2.5, still=1.9, probes=2), ""),
        (replace(WELL, waits=2.5, still=9.0), ""),  # nobody sends
        (WELL, ""),
    ],
)
def test_what_is_a_fault(found: Evidence, reason: str) -> None:
    assert fault(found, LIMITS).startswith(reason)
    assert bool(fault(found, LIMITS)) == bool(reason)


def test_the_first_of_the_list_that_is_ready() -> None:
    evidence = {0: DEAD, 1: WELL, 2: WELL}
    reason = fault(DEAD, LIMITS)
    assert choose(0, [0, 2, 1], evidence, LIMITS, spool=True) == Choice(2, reason)
    assert choose(2, [0, 2, 1], evidence | {0: WELL}, LIMITS, spool=True) == Choice(2)


def test_the_spool_is_the_last() -> None:
    evidence = {0: DEAD}
    assert choose(0, [0], evidence, LIMITS, spool=True) == Choice(HERE, fault(DEAD, LIMITS))
    assert choose(0, [0], evidence, LIMITS, spool=False) == Choice(0, fault(DEAD, LIMITS))
    assert choose(HERE, [0], evidence, LIMITS, spool=True) == Choice(HERE)
    assert choose(HERE, [0], evidence, LIMITS, spool=False) == Choice(0), "config.toml has no spool any more"


@pytest.mark.parametrize(
    ("failures", "wanted"), [(0, STEADY), (1, STEADY), (2, 2 * STEADY), (4, 8 * STEADY), (30, PATIENT)]
)
def test_who_fails_again_and_again_has_to_wait_longer(failures: int, wanted: float) -> None:
    found = replace(WELL, failures=failures)
    assert is_ready(replace(found, steady=wanted))
    assert not is_ready(replace(found, steady=wanted - 0.01))
