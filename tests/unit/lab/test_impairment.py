"""How an impairment is written down, and which legs a link names."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.errors import ConfigError
from midstream.lab import Impairment, parse_impairment
from midstream.lab.impairment import find_legs

HOSTS = ["hardworker", "logger", "sensor", "sensor-2"]


def test_everything_that_can_be_said() -> None:
    text = "drop=0.01, duplicate=.02,reorder=0.03,corrupt=0.5e-2,delay=3,hold=1.5,seed=7,link=sensor:logger"
    assert parse_impairment(text) == (
        "sensor:logger",
        Impairment(0.01, 0.02, 0.03, 0.005, delay=3, hold=1.5, seed=7),
    )


def test_the_default_link_is_all() -> None:
    assert parse_impairment("drop=1") == ("all", Impairment(drop=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not of the form NAME=VALUE"),
        ("drop", "'drop' is not of the form NAME=VALUE"),
        ("drop=0.1,", "'' is not of the form"),
        ("drop=", "drop = '', expected a number"),
        ("drop=much", "drop = 'much', expected a number"),
        ("drop=0.1,drop=0.2", "drop is given twice"),
        ("dorp=0.1", "no 'dorp'; there are drop, duplicate, reorder, corrupt, delay, hold, seed and link"),
        ("drop=1.01", "drop = 1.01: expected a probability from 0 to 1"),
        ("corrupt=-0.1", "corrupt = -0.1: expected a probability"),
        ("reorder=nan", "reorder = nan: expected a probability"),
        ("delay=inf", "delay = inf: expected milliseconds from 0 to 10000"),
        ("hold=-1", "hold = -1.0: expected milliseconds"),
        ("seed=1.5", "seed = '1.5', expected an integer"),
        ("seed=-1", "seed = -1: expected an integer from 0"),
        (f"seed={1 << 64}", "expected an integer from 0"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_impairment(text)
    assert message in str(caught.value)


@given(
    st.builds(
        Impairment,
        *[st.floats(0, 1)] * 4,
        delay=st.floats(0, 10_000),
        hold=st.floats(0, 10_000),
        seed=st.integers(0, (1 << 64) - 1),
    )
)
def test_what_is_written_down_is_read_back(impairment: Impairment) -> None:
    text = ",".join(f"{name}={value!r}" for name, value in vars(impairment).items())
    assert parse_impairment(text) == ("all", impairment)


@pytest.mark.parametrize(
    ("impairment", "harmless", "needs_hold"),
    [
        ({}, True, False),
        ({"hold": 5, "seed": 1}, True, False),
        ({"drop": 0.1, "duplicate": 1, "corrupt": 1}, False, False),
        ({"reorder": 0.1}, False, True),
        ({"delay": 0.1}, False, True),
    ],
)
def test_what_it_takes(impairment: dict[str, Any], harmless: bool, needs_hold: bool) -> None:
    made = Impairment(**impairment)
    assert (made.is_harmless, made.needs_hold) == (harmless, needs_hold)


@pytest.mark.parametrize(
    ("link", "legs"),
    [
        ("sensor", "sensor>hardworker sensor>logger sensor>sensor-2"),
        ("sensor-2", "sensor-2>hardworker sensor-2>logger sensor-2>sensor"),
        ("sensor-logger", "logger>sensor sensor>logger"),
        ("sensor:logger", "sensor>logger"),
        ("logger-sensor-2", "logger>sensor-2 sensor-2>logger"),
        ("sensor-2-logger", "logger>sensor-2 sensor-2>logger"),
        ("sensor-2:logger", "sensor-2>logger"),
        ("sensor-sensor-2", "sensor>sensor-2 sensor-2>sensor"),
        ("sensors:hardworker", "sensor>hardworker sensor-2>hardworker"),
        ("logger:sensors", "logger>sensor logger>sensor-2"),
        ("hardworker:all", "hardworker>logger hardworker>sensor hardworker>sensor-2"),
    ],
)
def test_links(link: str, legs: str) -> None:
    assert [f"{leg.source}>{leg.destination}" for leg in find_legs(link, HOSTS)] == legs.split()


def test_all_is_every_leg() -> None:
    assert len(find_legs("all", HOSTS)) == 12
    assert find_legs("all", HOSTS) == find_legs("all-all", HOSTS)


@pytest.mark.parametrize(
    "link", ["", "-", "sensor-3", "sensor-", ":logger", "sensor:sensor", "sensor>logger"]
)
def test_no_such_link(link: str) -> None:
    with pytest.raises(ConfigError, match="expected all, HOST, HOST-HOST") as caught:
        find_legs(link, HOSTS)
    assert "hosts: hardworker, logger, sensor, sensor-2, or sensors" in str(caught.value)
