"""From what was heard to a topology, or to the reason why there is none; and where the data goes."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from tests.support.announcements import announcement

from midstream.config import Config, DaemonSection, DataSection, NetworkSection
from midstream.daemon.announcement import Announcement, Mark, Word
from midstream.daemon.freshness import Voice
from midstream.daemon.peers import Peers
from midstream.daemon.plan import TopologyPlan, decide_mark, is_about, make_plan, order, own_plan
from midstream.errors import ConfigError
from midstream.network import Host, Topology

MARK = Mark(tos=104, port=12345, size=1024)
PREVIOUS = Topology(
    sensors=(Host(IPv4Address("192.0.2.13"), "02:00:00:00:00:13"),),
    hardworker=Host(IPv4Address("192.0.2.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("192.0.2.3"), "02:00:00:00:00:03"),
    tos=108,
    port=4000,
    mtu=1500,
    size=512,
)


def host(role: str, last: int, **fields: Any) -> Announcement:
    facts: dict[str, Any] = {
        "role": role,
        "name": f"{role}-{last}",
        "ip": f"192.0.2.{last}",
        "mac": f"02:00:00:00:00:{last:02x}",
        "time": 1.0,
        "mark": MARK if role == "hardworker" else None,
    }
    return announcement(**facts | fields)


def heard(*hosts: Announcement) -> Peers:
    peers = Peers(10)
    for one in hosts:
        voice = Voice()
        voice.answer(peers.ear.challenge())
        peers.hear(Word(said=one, stamp=voice.stamp()), wall=1, now=1)
    return peers


SENSOR, LOGGER, OWN = host("sensor", 11), host("logger", 3), host("hardworker", 2)


def test_all_are_there() -> None:
    plan = make_plan(Config(), OWN, heard(LOGGER, host("sensor", 12), SENSOR), None)
    assert plan.topology == Topology(
        sensors=tuple(Host(IPv4Address(f"192.0.2.{n}"), f"02:00:00:00:00:{n:02x}") for n in (11, 12)),
        hardworker=PREVIOUS.hardworker,
        logger=PREVIOUS.logger,
        tos=104,
        port=12345,
        mtu=1500,
        size=1024,
    )


def test_sensors_keep_their_places_and_new_ones_come_behind() -> None:
    plan = make_plan(
        Config(), OWN, heard(LOGGER, SENSOR, host("sensor", 13, mac="02:00:00:00:00:aa")), PREVIOUS
    )
    assert plan.topology
    assert [(str(one.ip), one.mac) for one in plan.topology.sensors] == [
        ("192.0.2.13", "02:00:00:00:00:aa"),
        ("192.0.2.11", "02:00:00:00:00:0b"),
    ]


def test_a_sensor_that_is_off_keeps_its_place() -> None:
    plan = make_plan(Config(), OWN, heard(LOGGER, SENSOR), PREVIOUS)
    assert plan.topology
    assert [str(one.ip) for one in plan.topology.sensors] == ["192.0.2.13", "192.0.2.11"]


def test_an_address_that_another_host_has_now_is_no_sensors() -> None:
    plan = make_plan(Config(), OWN, heard(host("logger", 13), SENSOR), PREVIOUS)
    assert plan.topology
    assert [str(one.ip) for one in plan.topology.sensors] == ["192.0.2.11"]


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        ([], "no logger and no sensor has been heard; see that `midstream daemon` runs there"),
        ([LOGGER], "no sensor has been heard"),
        ([SENSOR], "no logger has been heard"),
    ],
)
def test_a_role_is_missing(peers: list[Announcement], text: str) -> None:
    plan = make_plan(Config(), OWN, heard(*peers), None)
    assert (plan.topology, plan.waiting) == (None, True)
    assert plan.reason.startswith(text)


def test_a_known_logger_that_is_off_keeps_no_sensor_waiting() -> None:
    plan = make_plan(Config(), OWN, heard(SENSOR), PREVIOUS)
    assert plan.topology
    assert [str(one.ip) for one in plan.topology.sensors] == ["192.0.2.13", "192.0.2.11"]
    assert plan.topology.logger == PREVIOUS.logger


def test_fewer_sensors_than_are_wanted() -> None:
    plan = make_plan(Config(daemon=DaemonSection(sensors=2)), OWN, heard(LOGGER, SENSOR), None)
    assert plan.reason.startswith("1 of daemon.sensors = 2 sensors have been heard")


def test_two_claim_one_role() -> None:
    plan = make_plan(Config(), OWN, heard(LOGGER, SENSOR, host("hardworker", 9)), None)
    assert (plan.topology, plan.waiting) == (None, False)
    assert plan.reason == (
        "hardworker-2 (192.0.2.2, 02:00:00:00:00:02) and hardworker-9 (192.0.2.9, 02:00:00:00:00:09) both "
        "claim to be the hardworker; give one of them another role"
    )
    plan = make_plan(Config(), OWN, heard(LOGGER, SENSOR, host("logger", 9)), None)
    assert plan.reason.endswith("give one of them another role, or set standby = true in [daemon] of one")


def loggers(plan: TopologyPlan) -> list[str]:
    assert plan.topology
    return [str(host.ip) for host in plan.topology.loggers]


def test_a_standby_logger_is_no_second_claim() -> None:
    peers = heard(LOGGER, SENSOR, host("logger", 1, standby=True))
    assert loggers(make_plan(Config(), OWN, peers, None)) == ["192.0.2.3", "192.0.2.1"]


def test_loggers_keep_their_places_and_new_ones_come_behind() -> None:
    """Whichever is preferred: a connection's destination is a place."""
    before = replace(PREVIOUS, standbys=(Host(IPv4Address("192.0.2.9"), "02:00:00:00:00:09"),))
    peers = heard(LOGGER, SENSOR, host("logger", 1, standby=True), host("logger", 9, standby=True))
    plan = make_plan(Config(), OWN, peers, before)
    assert loggers(plan) == ["192.0.2.3", "192.0.2.9", "192.0.2.1"]


def test_a_logger_that_is_off_keeps_its_place() -> None:
    peers = heard(SENSOR, host("logger", 9, standby=True))
    assert loggers(make_plan(Config(), OWN, peers, PREVIOUS)) == ["192.0.2.3", "192.0.2.9"]


@pytest.mark.parametrize("sensor", [host("sensor", 3), host("sensor", 11, mac=PREVIOUS.logger.mac)])
def test_an_address_that_another_host_has_now_is_no_loggers(sensor: Announcement) -> None:
    peers = heard(sensor, host("logger", 9))
    assert loggers(make_plan(Config(), OWN, peers, PREVIOUS)) == ["192.0.2.9"]


def test_a_logger_is_its_own() -> None:
    own = host("logger", 1, standby=True)
    plan = make_plan(Config(), own, heard(OWN, LOGGER, SENSOR), None)
    assert loggers(plan) == ["192.0.2.1", "192.0.2.3"]
    assert loggers(make_plan(Config(), own, heard(OWN, LOGGER, SENSOR), plan.topology)) == loggers(plan)


def test_the_hardworker_decides_the_marks() -> None:
    config = Config(network=NetworkSection(tos=112), data=DataSection(size=2048))
    assert decide_mark(config, None) == Mark(tos=112, port=12345, size=2048)
    assert decide_mark(Config(), PREVIOUS) == Mark(tos=108, port=4000, size=512)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (Config(network=NetworkSection(tos=112)), "network.tos = 112: the hardworker says 104"),
        (Config(network=NetworkSection(port=1)), "network.port = 1: the hardworker says 12345"),
        (Config(data=DataSection(size=7)), "data.size = 7: the hardworker says 1024"),
    ],
)
def test_who_says_otherwise_is_told(config: Config, text: str) -> None:
    plan = make_plan(config, SENSOR, heard(OWN, LOGGER), None)
    assert plan.topology is None
    assert text in plan.reason


def test_mtus_differ() -> None:
    plan = make_plan(Config(), OWN, heard(LOGGER, host("sensor", 11, mtu=1400)), None)
    assert "sensor sensor-11 (192.0.2.11) has 1400; make them equal" in plan.reason


# what const.toml said before

BEFORE = replace(PREVIOUS, sensors=(Host(SENSOR.ip, SENSOR.mac),), tos=104, port=12345, size=1024)


def test_a_topology_of_this_host_holds() -> None:
    assert is_about(BEFORE, OWN)
    assert is_about(BEFORE, SENSOR)


@pytest.mark.parametrize(
    "changes",
    [
        {"ip": IPv4Address("10.0.0.9")},
        {"mac": "02:00:00:00:00:99"},
        {"role": "logger"},
        {"mtu": 1400},
        {"mark": Mark(tos=112, port=12345, size=1024)},
        {"mark": Mark(tos=104, port=12345, size=512)},
    ],
)
def test_one_of_another_host_or_other_marks_does_not(changes: dict[str, Any]) -> None:
    assert not is_about(BEFORE, OWN.model_copy(update=changes))
    swapped = replace(BEFORE, hardworker=BEFORE.logger, logger=BEFORE.hardworker)
    assert not is_about(swapped, OWN)


def test_a_const_toml_of_the_users_own_names_this_host() -> None:
    assert own_plan(BEFORE, OWN) == TopologyPlan(BEFORE)
    with pytest.raises(ConfigError, match=r"names no hardworker 192\.0\.2\.9, which is this host's address"):
        own_plan(BEFORE, host("hardworker", 9))


def test_the_preferred_logger_comes_first_and_who_is_not_heard_last() -> None:
    three = replace(
        BEFORE, standbys=tuple(Host(IPv4Address(f"192.0.2.{n}"), f"02:00:00:00:00:{n:02x}") for n in (4, 5))
    )
    assert order(three, ()) == [0, 1, 2]
    assert order(three, [host("logger", 5), host("logger", 3, standby=True)]) == [2, 0, 1]
