"""The fast path costs no more than it did: instructions of the whole virtual hardworker per message.

A change that makes it cheaper, or dearer for a good reason, changes the figures here, and says so.
"""

import pytest

from midstream.ebpf import compiler
from midstream_bench.machine.measure import scene_of
from midstream_bench.receivers import RECEIVERS
from midstream_bench.scenario import find

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

SECONDS = 2.0
EXPECTED = {  # 16 sensors, 100 Hz, 1 KiB, Linux 6.1, virtio; 2026-11-30
    "midstream-deferred-20ms-c": 3_585,
    "midstream-deferred-20ms-numpy": 3_995,
}
TOLERANCE = 0.02


def test_the_fast_path_costs_what_it_did() -> None:
    receivers = {receiver.name: receiver for receiver in RECEIVERS}
    (scenario,) = find(["16x100x1024"])
    with scene_of(scenario, SECONDS, compiler.cache_directory() / "vm") as scene:
        counted = {name: scene.count(receivers[name], 8) for name in EXPECTED}
    for name, one in counted.items():
        assert not one.problems, (name, one)
        assert one.instructions == pytest.approx(EXPECTED[name], rel=TOLERANCE), name
