"""The virtual hardworker counts the same however slow it is, with bad wires and middlewares too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from midstream.ebpf import compiler
from midstream_bench.machine.counted import Counted
from midstream_bench.machine.measure import MESSAGES, SECONDS, measure, scene_of
from midstream_bench.receivers import RECEIVERS
from midstream_bench.scenario import find

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def count(slow: int) -> dict[str, Counted]:
    names = ("midstream-deferred-c", "c-epoll-relay")
    receivers = [receiver for receiver in RECEIVERS if receiver.name in names]
    (scenario,) = find(["16x100x1024"])
    cache = compiler.cache_directory() / "vm"
    counted = measure(receivers, scenario, seconds=SECONDS, cache=cache, slow=dict.fromkeys(names, slow))
    return {one.receiver: one for one in counted}


def test_the_figures_do_not_depend_on_the_speed() -> None:
    """Nor on how busy this machine is, which makes a guest slower: no clock beside it runs at another speed.

    The joined handler is the most delicate. TCP's own 200 ms made the logger acknowledge every segment of it.
    """
    names = ("c-joined-20ms-relay", "c-epoll-relay", "midstream-deferred-c")
    (scenario,) = find(["16x100x1024"])
    with scene_of(scenario, SECONDS, compiler.cache_directory() / "vm") as scene:
        receivers = {receiver.name: receiver for receiver in RECEIVERS}
        counted = {name: [scene.count(receivers[name], slow) for slow in (8, 32)] for name in names}
    for name, (quicker, slower) in counted.items():
        assert not quicker.problems and not slower.problems, (name, quicker, slower)
        # On a busy machine one that is woken by each message may fall behind at 8, which doubles the factor.
        assert slower.slow == 32 and (quicker.slow == 8 or name == "c-epoll-relay")
        assert quicker.instructions == pytest.approx(slower.instructions, rel=0.03), name
        assert slower.seconds == pytest.approx(slower.asked, rel=0.02), "neither behind nor ahead"
    ours, theirs = (counted[name][0].instructions for name in ("midstream-deferred-c", "c-epoll-relay"))
    assert 2_500 < 3 * ours < theirs


def test_what_falls_behind_is_counted_again_more_slowly() -> None:
    one = count(1)["c-epoll-relay"]
    assert not one.problems and one.kept_up
    assert one.slow in (4, 8, 16)


def test_middlewares_and_bad_wires(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "midstream", "bench", "--machine", "--output", str(tmp_path)]
    command += ["--scenario", "1x100x64+loss", "--receiver", "zeromq-push", "--receiver", "mqtt-1"]
    done = subprocess.run([*command, "--receiver", "dds"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "machine.json").read_text())["1x100x64+loss"]
    assert not row["zeromq-push"]["problems"] and not row["mqtt-1"]["problems"]
    assert row["zeromq-push"]["messages"] == pytest.approx(MESSAGES, abs=12)
    assert "uses UDP" in row["dds"]["problems"][0]
    assert "counted in a virtual machine" in (tmp_path / "bench.md").read_text()


def test_the_profile_says_where_the_instructions_are() -> None:
    command = [sys.executable, "-m", "midstream_bench.machine.profile", "floor-deferred"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    taken = {name: float(count) for count, name in (line.split(maxsplit=1) for line in lines)}
    total = 1000 * float(heading.split()[1])
    assert any(name.endswith("_midstream_floor") for name in taken)
    assert 0.8 * total < sum(taken.values()) < 1.2 * total
