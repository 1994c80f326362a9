"""When each message of a load is due."""

import numpy as np
import pytest

from midstream.errors import ConfigError
from midstream.load import JointPlan, Phase, Plan, Timing
from midstream.load.schedule import EVENT

MS = 1_000_000


def events(plan: Plan) -> np.ndarray:
    pieces = list(plan.events())
    assert all(piece.dtype == EVENT for piece in pieces)
    return np.concatenate(pieces)


def times(plan: Plan, connection: int = 0) -> list[int]:
    found = events(plan)
    chosen: list[int] = found["at"][found["connection"] == connection].tolist()
    return chosen


def test_a_message_is_due_each_period_of_each_sensor() -> None:
    plan = Plan(sensors=16, rate=100, size=1024, seconds=2.5)
    found = events(plan)
    assert len(found) == plan.messages == 16 * 250
    assert (np.diff(found["at"].astype(np.int64)) >= 0).all()
    assert set(found["size"]) == {1024} and set(found["until"]) == {0}
    for connection in range(16):
        assert times(plan, connection) == [10 * MS * n + 625_000 * connection for n in range(250)]


def test_nothing_adds_up_where_the_period_is_no_whole_number() -> None:
    found = times(Plan(rate=3, seconds=1000))
    assert len(found) == 3000
    assert found[2999] == 2999 * 10**9 // 3


def test_aligned_sensors_send_at_once() -> None:
    plan = Plan(sensors=3, rate=1000, seconds=1, phase=Phase.ALIGNED)
    assert times(plan, 0) == times(plan, 1) == times(plan, 2)


def test_a_burst_keeps_the_rate() -> None:
    found = times(Plan(rate=100, burst=5, seconds=1))
    assert found == [50 * MS * (n // 5) for n in range(100)]


def test_jitter_delays_within_its_bounds_and_keeps_the_order() -> None:
    calm = Plan(sensors=4, rate=100, seconds=5)
    shaky = Plan(sensors=4, rate=100, seconds=5, jitter=0.008, seed=3)
    for connection in range(4):
        late = np.subtract(times(shaky, connection), times(calm, connection))
        assert late.min() >= 0 and late.max() < 8 * MS
        assert late.std() > 1 * MS
        assert (np.diff(times(shaky, connection)) >= 0).all()
    found = events(shaky)["at"].astype(np.int64)
    assert (np.diff(found) >= 0).all()
    assert times(shaky) == times(Plan(sensors=4, rate=100, seconds=5, jitter=0.008, seed=3))
    assert times(shaky) != times(Plan(sensors=4, rate=100, seconds=5, jitter=0.008, seed=4))


def test_a_burst_stays_together_under_jitter() -> None:
    found = np.array(times(Plan(rate=100, burst=5, seconds=2, jitter=0.03, seed=1)))
    assert (found.reshape(-1, 5) == found[::5, None]).all()


def test_a_flood_is_one_event_a_sensor() -> None:
    plan = Plan(sensors=3, rate=0, seconds=2)
    found = events(plan)
    assert plan.messages == 0 and plan.is_flood
    assert found["until"].tolist() == [2_000 * MS] * 3


def test_a_recording_is_replayed_over_and_over() -> None:
    timing = Timing({"a": np.array([0, 3, 10]) * MS, "b": np.array([1]) * MS})
    assert timing.period == 15 * MS  # its length and a mean interval
    plan = Plan(sensors=3, seconds=0.04, timing=timing)
    assert times(plan, 0) == times(plan, 2) == [n * MS for n in (0, 3, 10, 15, 18, 25, 30, 33)]
    assert times(plan, 1) == [n * MS for n in (1, 16, 31)]


def test_times_survive_a_recording() -> None:
    plan = Plan(sensors=2, rate=50, seconds=1.5, jitter=0.005)
    timing = Timing.of(plan.events())
    again = Plan(sensors=2, seconds=1.4, timing=timing)
    for connection in range(2):
        assert times(again, connection) == [t for t in times(plan, connection) if t < 1_400 * MS]


def test_a_long_plan_is_made_a_second_at_a_time() -> None:
    pieces = Plan(rate=1000, seconds=1e9).events()
    assert [len(next(pieces)) for _ in range(3)] == [1000, 1000, 1000]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sensors": 0}, "sensors = 0"),
        ({"size": 15}, "size = 15: expected 16"),
        ({"rate": -1}, "rate = -1"),
        ({"rate": float("nan")}, "rate = nan"),
        ({"seconds": 0}, "seconds = 0"),
        ({"burst": 0}, "burst = 0"),
        ({"rate": 100, "jitter": 0.011}, "jitter = 0.011 s: expected 0 up to"),
        ({"jitter": -1}, "jitter = -1"),
    ],
)
def test_mistakes_are_told(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        Plan(**wrong)  # type: ignore[arg-type]  # that is the mistake


def test_plans_at_once() -> None:
    """Each connection has the times of its own plan, and all come in order."""
    plans = [Plan(rate=1000, seconds=2.5), Plan(sensors=2, rate=3, size=64, seconds=2.5)]
    joint = JointPlan(plans)
    every = np.concatenate(list(joint.events()))
    assert (np.diff(every["at"].astype(np.int64)) >= 0).all()
    assert joint.sensors == 3 and not joint.is_flood
    for connection, plan, own in ((0, plans[0], 0), (1, plans[1], 0), (2, plans[1], 1)):
        alone = np.concatenate(list(plan.events()))
        alone = alone[alone["connection"] == own]
        found = every[every["connection"] == connection]
        assert found["at"].tolist() == alone["at"].tolist()
        assert set(found["size"].tolist()) == {plan.size}


def test_a_flood_beside_a_plan() -> None:
    joint = JointPlan([Plan(rate=0, seconds=2), Plan(rate=10, seconds=2)])
    every = np.concatenate(list(joint.events()))
    assert joint.is_flood
    assert np.count_nonzero(every["until"]) == 1 and len(every) == 21


def test_plans_at_once_last_as_long() -> None:
    with pytest.raises(ConfigError, match="same number of seconds"):
        JointPlan([Plan(seconds=1), Plan(seconds=2)])


def test_sizes_that_vary() -> None:
    plan = Plan(sensors=2, rate=500, size=1000, seconds=2, framing="length", varies=0.2, seed=1)
    sizes = np.concatenate(list(plan.events()))["size"]
    assert sizes.min() >= 800 and sizes.max() <= 1200 and len(set(sizes.tolist())) > 100
    assert sizes.tolist() == np.concatenate(list(plan.events()))["size"].tolist()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"framing": "line", "size": 80}, "41 .* in steps of 2, with line framing"),
        ({"framing": "line", "size": 39}, "size = 39"),
        ({"varies": 0.1}, "varies = 0.1"),
        ({"framing": "length", "size": 1 << 20, "varies": 0.1}, "varies = 0.1"),
        ({"framing": "length", "size": 20, "varies": 0.5}, "varies = 0.5"),
    ],
)
def test_sizes_that_a_framing_cannot_have(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan(**wrong)  # type: ignore[arg-type]  # that is the mistake
