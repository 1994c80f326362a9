"""Every program that can be compiled is one that the kernel takes, whatever const.toml says."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.program.bench import CONNECTION, SHARE, TOPOLOGY, load

from midstream.ebpf import compiler, libbpf, records, selftest
from midstream.ebpf.objects import open_object
from midstream.errors import KernelError
from midstream.network import MAX_MTU, MAX_SENSORS, MIN_MTU, Host, Topology


def sensors(count: int) -> Iterator[Host]:
    for number in range(count):
        yield Host(
            IPv4Address(f"172.16.{number >> 8}.{number & 255}"),
            f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}",
        )


TOPOLOGIES = {
    "as the lab's": TOPOLOGY,
    "one sensor": replace(TOPOLOGY, sensors=TOPOLOGY.sensors[:1]),
    "many sensors": replace(TOPOLOGY, sensors=tuple(sensors(1000))),
    "most sensors": replace(TOPOLOGY, sensors=tuple(sensors(MAX_SENSORS))),
    "any TOS": replace(TOPOLOGY, tos=0),
    "highest numbers": replace(TOPOLOGY, tos=252, port=65535, mtu=MAX_MTU, size=1 << 20),
    "lowest numbers": replace(TOPOLOGY, tos=64, port=1, mtu=MIN_MTU, size=1),
}


@pytest.mark.parametrize("name", ["hardworker", "logger", "sensor"])
@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize(
    "compiled", [pytest.param(True, marks=pytest.mark.slow), False], ids=["compiled", "own"]
)
def test_the_verifier_accepts(topology: Topology, name: str, compiled: bool) -> None:
    """The default run loads compiled ones in every other test."""
    with closing(load(name, topology, compiled=compiled)) as program:
        assert all(program.program_fd(entry) >= 0 for entry in program.program_names())


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_the_verifier_accepts_the_small_ones(topology: Topology) -> None:
    with closing(selftest.program(topology, 1)) as program:
        assert program.program_names() == ["midstream_selftest"]
    with open_object("pass", topology) as program:
        program.load()
        assert program.program_names() == ["midstream_pass"]


@pytest.mark.parametrize(
    ("name", "programs", "maps"),
    [
        (
            "hardworker",
            ["midstream_hardworker", "midstream_break_off"],
            {
                "ring",
                "connections",
                "finished",
                "journal",
                "unfinished",
                "counters",
                "shares",
                "last_number",
                "control",
                "beginnings",
                ".rodata.settings",
            },
        ),
        (
            "logger",
            ["midstream_logger_ingress", "midstream_logger_egress"],
            {"through_hardworker", ".rodata.settings"},
        ),
        ("sensor", ["midstream_sensor"], {".rodata.settings"}),
    ],
)
def test_what_the_loader_finds(name: str, programs: list[str], maps: set[str]) -> None:
    with closing(load(name, TOPOLOGY)) as program:
        assert program.program_names() == programs
        assert maps <= set(program.map_names())


def test_the_hardworkers_maps() -> None:
    with closing(load("hardworker", TOPOLOGY, max_entries={"ring": 1 << 16, "connections": 10})) as program:
        info = {
            name: libbpf.map_info(program.map_fd(name))
            for name in ("ring", "connections", "counters", "shares")
        }
    assert info["ring"].max_entries == 1 << 16
    assert (info["connections"].max_entries, info["connections"].value_size) == (10, CONNECTION.itemsize)
    assert info["counters"].max_entries == len(TOPOLOGY.sensors) + 1
    assert info["counters"].value_size == 8 * len(records.OUTCOMES)
    assert (info["shares"].max_entries, info["shares"].value_size) == (len(TOPOLOGY.sensors), SHARE.itemsize)


def test_settings_are_constant() -> None:
    """Written before the program is loaded; afterwards they bear witness to what it was made from."""
    settings = records.settings(bytes(range(32)), wakeup=False, check=True, ring_quota=1 << 20, open_quota=7)
    with closing(libbpf.Object(compiler.compile_program("hardworker", TOPOLOGY))) as program:
        program.set_initial_value(".rodata.settings", settings)
        program.load()
        fd = program.map_fd(".rodata.settings")
        assert libbpf.lookup(fd, bytes(4), records.SETTINGS.itemsize) == settings
        with pytest.raises(KernelError):
            libbpf.update(fd, bytes(4), bytes(records.SETTINGS.itemsize))


def test_a_refusal_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the source, the instruction and the reason, on whatever kernel this is."""
    sources = shutil.copytree(compiler.SOURCES, tmp_path / "sources", ignore=shutil.ignore_patterns("*.py"))
    source = sources / "pass.bpf.c"
    source.write_text(
        source.read_text()
        .replace("return XDP_PASS;", "return ((__u8 *)(long)ctx->data)[20];")
        .replace(" __attribute__((unused))", "")
    )
    monkeypatch.setattr(compiler, "SOURCES", sources)
    refused_object = compiler.compile_program("pass", TOPOLOGY)
    with libbpf.Object(refused_object) as program, pytest.raises(KernelError) as refused:
        program.load()
    told = str(refused.value)
    assert "(long)ctx->data)[20];" in told and "r0 = *(u8 *)(r1 +20)" in told, told
    assert "invalid access to packet, off=20 size=1" in told, told
    assert "processed" not in told and len(told.splitlines()) <= 17
