"""The compiler: what makes an object, when it is made anew, and what a user is told when it cannot be."""

import ctypes
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.objects import without_compiler

import midstream
from midstream.ebpf import clang, compiler
from midstream.ebpf.compiler import CompilerMissingError
from midstream.errors import CompileError
from midstream.network import Host, Topology

SENSORS = (
    Host(IPv4Address("10.83.0.21"), "02:00:00:00:00:21"),
    Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11"),
)
TOPOLOGY = Topology(
    sensors=SENSORS,
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
    standbys=(Host(IPv4Address("10.83.0.4"), "02:00:00:00:00:04"),),
)
OTHER = Host(IPv4Address("10.83.0.99"), "02:00:00:00:00:99")

CONST_H = """\
#ifndef MIDSTREAM_CONST_H
#define MIDSTREAM_CONST_H
#include "hosts.h"
#define HARDWORKER_IP 0x0a530002
#define MARK_TOS 104
#define MARK_PORT 12345
#define MTU 1500
#define PORT_COUNT 1
#define DATA_SIZE 1024
#define LOGGER_COUNT 2
#define SENSOR_COUNT 2
static const __u16 PORTS[PORT_COUNT] = { 12345 };
static const __u8 HARDWORKER_MAC[ETH_ALEN] = {0x02, 0x00, 0x00, 0x00, 0x00, 0x02};
static const struct logger LOGGERS[LOGGER_COUNT] = { {0x0a530003, {0x02, 0x00, 0x00, 0x00, 0x00, 0x03}}, {0x0a530004, {0x02, 0x00, 0x00, 0x00, 0x00, 0x04}}, };
static const volatile struct sensor SENSORS[SENSOR_COUNT] = { {0x0a53000b, 1, {0x02, 0x00, 0x00, 0x00, 0x00, 0x11}}, {0x0a530015, 0, {0x02, 0x00, 0x00, 0x00, 0x00, 0x21}}, };
#endif
"""  # noqa: E501 (lines of C)

CHANGES: dict[str, Callable[[Topology], Topology]] = {
    "the hardworker's IP": lambda t: replace(t, hardworker=replace(t.hardworker, ip=OTHER.ip)),
    "the hardworker's MAC": lambda t: replace(t, hardworker=replace(t.hardworker, mac=OTHER.mac)),
    "the logger's IP": lambda t: replace(t, logger=replace(t.logger, ip=OTHER.ip)),
    "the logger's MAC": lambda t: replace(t, logger=replace(t.logger, mac=OTHER.mac)),
    "a standby's IP": lambda t: replace(t, standbys=(replace(t.standbys[0], ip=OTHER.ip),)),
    "a standby's MAC": lambda t: replace(t, standbys=(replace(t.standbys[0], mac=OTHER.mac),)),
    "one logger more": lambda t: replace(t, standbys=(*t.standbys, OTHER)),
    "the loggers' order": lambda t: replace(t, logger=t.standbys[0], standbys=(t.logger,)),
    "a sensor's IP": lambda t: replace(t, sensors=(replace(SENSORS[0], ip=OTHER.ip), SENSORS[1])),
    "a sensor's MAC": lambda t: replace(t, sensors=(SENSORS[0], replace(SENSORS[1], mac=OTHER.mac))),
    "one sensor more": lambda t: replace(t, sensors=(*SENSORS, OTHER)),
    "one sensor fewer": lambda t: replace(t, sensors=SENSORS[:1]),
    "the sensors' order": lambda t: replace(t, sensors=SENSORS[::-1]),
    "tos": lambda t: replace(t, tos=0),
    "port": lambda t: replace(t, port=12346),
    "mtu": lambda t: replace(t, mtu=1499),
    "size": lambda t: replace(t, size=1025),
}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for objects."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MIDSTREAM_CACHE", str(folder))
    return folder


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources in another place, to be changed."""
    copy = copied_sources(tmp_path / "sources")
    monkeypatch.setattr(compiler, "SOURCES", copy)
    return copy


def copied_sources(target: Path) -> Path:
    return shutil.copytree(compiler.SOURCES, target, ignore=shutil.ignore_patterns("__pycache__", "*.py"))


def test_const_h() -> None:
    """Addresses in host byte order; the sensors by address, each with its number in const.toml."""
    assert compiler.const_header(TOPOLOGY) == CONST_H


@pytest.mark.parametrize("name", clang.PROGRAMS)
def test_compiles(kept: Path, name: str) -> None:
    path = compiler.compile_program(name, TOPOLOGY)
    head = path.read_bytes()[:20]
    assert head[:6] == b"\x7fELF\2\1"  # 64 bits, little-endian
    assert int.from_bytes(head[18:20], "little") == 247  # EM_BPF
    assert [entry.name for entry in kept.iterdir() if entry.is_file()] == [path.name]


def test_an_object_is_kept(kept: Path) -> None:
    first = compiler.compile_program("pass", TOPOLOGY)
    os.utime(first, ns=(1, 1))
    again = compiler.compile_program("pass", TOPOLOGY)
    assert again == first
    assert again.stat().st_mtime_ns == 1


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", clang.PROGRAMS)
def test_every_constant_is_in_the_key(name: str, change: Callable[[Topology], Topology]) -> None:
    assert compiler.key(name, change(TOPOLOGY)) != compiler.key(name, TOPOLOGY)


def test_the_keys_of_programs_differ() -> None:
    assert len({compiler.key(name, TOPOLOGY) for name in clang.PROGRAMS}) == len(clang.PROGRAMS)


def test_a_changed_constant_makes_another_object(kept: Path) -> None:
    first = compiler.compile_program("sensor", TOPOLOGY)
    second = compiler.compile_program("sensor", replace(TOPOLOGY, port=12346))
    assert first != second
    assert first.read_bytes() != second.read_bytes()


def test_changed_sources_make_another_object(kept: Path, sources: Path) -> None:
    first = compiler.compile_program("pass", TOPOLOGY)
    assert compiler.key("pass", TOPOLOGY) == compiler.key("pass", TOPOLOGY)

    header = sources / "bpf.h"
    header.write_text(header.read_text() + "/* changed */\n")
    second = compiler.compile_program("pass", TOPOLOGY)
    source = sources / "pass.bpf.c"
    source.write_text(source.read_text().replace("XDP_PASS", "XDP_DROP"))
    third = compiler.compile_program("pass", TOPOLOGY)
    (sources / "another.h").touch()
    fourth = compiler.compile_program("pass", TOPOLOGY)
    assert len({first, second, third, fourth}) == 4
    assert second.read_bytes() != third.read_bytes()

    (sources / "another.h").unlink()
    (sources / "logger.bpf.c").write_text("another program")
    assert compiler.compile_program("pass", TOPOLOGY) == third


def test_another_compiler_makes_another_object(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same key: a program that is attached stays."""
    before, key = compiler.compile_program("pass", TOPOLOGY), compiler.key("pass", TOPOLOGY)
    monkeypatch.setattr(compiler, "_compiler_version", lambda: "99.0")
    after = compiler.compile_program("pass", TOPOLOGY)
    assert after != before and compiler.key("pass", TOPOLOGY) == key


def test_other_flags_make_another_object(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiler.key("pass", TOPOLOGY)
    monkeypatch.setattr(clang, "FLAGS", (*clang.FLAGS, "-O1"))
    assert compiler.key("pass", TOPOLOGY) != before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hardworker", "sensor"])
def test_the_same_object_wherever_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither the time, nor where the sources and the objects lie, nor the working directory is in it."""
    objects = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(compiler, "SOURCES", copied_sources(folder / "sources"))
        monkeypatch.setenv("MIDSTREAM_CACHE", str(folder / "cache"))
        objects.append(compiler.compile_program(name, TOPOLOGY))
        monkeypatch.undo()
    assert objects[0].name == objects[1].name
    assert objects[0].read_bytes() == objects[1].read_bytes()
    assert str(tmp_path).encode() not in objects[0].read_bytes()


def test_the_verifier_can_show_the_source(kept: Path) -> None:
    """The lines of the program are in the object's BTF: a refusal names the line, not only instructions."""
    assert b"return XDP_PASS;" in compiler.compile_program("pass", TOPOLOGY).read_bytes()


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIDSTREAM_CACHE", "objects")
    assert compiler.compile_program("pass", TOPOLOGY).parent == tmp_path / "objects"
    assert not list(compiler.SOURCES.rglob("objects"))


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MIDSTREAM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.cache_directory() == tmp_path / "midstream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert compiler.cache_directory() == Path("/home/somebody/.cache/midstream")
    monkeypatch.setenv("MIDSTREAM_CACHE", "/elsewhere")
    assert compiler.cache_directory() == Path("/elsewhere")


def test_a_broken_source(kept: Path, sources: Path) -> None:
    source = sources / "pass.bpf.c"
    source.write_text(source.read_text().replace("XDP_PASS", "XDP_PAS"))
    with pytest.raises(CompileError, match=r"(?s)refused.*pass\.bpf\.c:\d+:\d+: error: .*XDP_PAS"):
        compiler.compile_program("pass", TOPOLOGY)
    assert not [entry for entry in kept.iterdir() if entry.is_file()]


def test_a_warning_is_an_error(kept: Path, sources: Path) -> None:
    source = sources / "pass.bpf.c"
    source.write_text(source.read_text().replace(" __attribute__((unused))", ""))
    with pytest.raises(CompileError, match="unused parameter"):
        compiler.compile_program("pass", TOPOLOGY)


@pytest.mark.parametrize("below", ["", "objects", "objects/deeper"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("MIDSTREAM_CACHE", str(file / below))
    with pytest.raises(CompileError, match=rf"{re.escape(str(file))}.*cannot be kept.*MIDSTREAM_CACHE"):
        compiler.compile_program("pass", TOPOLOGY)
    assert file.read_text() == "mine"


def test_a_file_system_that_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDSTREAM_CACHE", "/proc/midstream")
    with pytest.raises(
        CompileError, match=r"/proc/midstream: objects cannot be kept there \(.+\).*MIDSTREAM_CACHE"
    ):
        compiler.compile_program("pass", TOPOLOGY)


@pytest.mark.parametrize("step", ["_compiler_version", "_compiler"])
def test_a_missing_compiler(kept: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    if step == "_compiler":
        monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    else:
        without_compiler(monkeypatch)
    with pytest.raises(CompilerMissingError, match=r"pip install 'midstream\[compiler\]'"):
        compiler.compile_program("pass", TOPOLOGY)


def test_a_library(kept: Path, tmp_path: Path) -> None:
    """For user space, on this machine: made once, and anew when its source changes."""
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 41; }\n")
    first = compiler.compile_library(source)
    os.utime(first, ns=(1, 1))
    assert compiler.compile_library(source).stat().st_mtime_ns == 1
    source.write_text("int answer(void) { return 42; }\n")
    second = compiler.compile_library(source)
    assert [ctypes.CDLL(str(path)).answer() for path in (first, second)] == [41, 42]
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(CompileError, match="answer"):
        compiler.compile_library(source)


KINDS: dict[str, Callable[[Path], Path]] = {
    "library": compiler.compile_library,
    "executable": compiler.compile_executable,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the compiler is asked for; it makes empty files."""
    commands: list[list[str]] = []

    def run(arguments: Iterable[str], target: Path, **_: object) -> None:
        commands.append(list(arguments))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()

    monkeypatch.setattr(compiler, "_run", run)
    return commands


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_machine_has_its_own(
    kept: Path, asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A cache may be shared by machines of several kinds; without a target the compiler would also use
    features that only this machine has."""
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 41; }\n")
    made = set()
    for name in ("x86_64-linux-gnu", "aarch64-linux-gnu", "arm-linux-gnueabihf"):
        monkeypatch.setattr(compiler, "architecture", lambda name=name: name)
        made |= {KINDS[kind](source), KINDS[kind](source)}
        target = asked[-1][asked[-1].index("-target") + 1]
        assert target == name
    assert len(made) == len(asked) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_other_flags_make_another_for_user_space(
    kept: Path, asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 41; }\n")
    first = KINDS[kind](source)
    monkeypatch.setattr(compiler, "_USER_FLAGS", (*compiler._USER_FLAGS, "-O3"))
    second = KINDS[kind](source)
    monkeypatch.setattr(compiler, "_compiler_version", lambda: "99.0")
    assert len({first, second, KINDS[kind](source)}) == 3


def test_a_library_for_another_machine(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 41; }\n")
    machines = {}
    for name in ("x86_64-linux-gnu", "aarch64-linux-gnu"):
        monkeypatch.setattr(compiler, "architecture", lambda name=name: name)
        machines[name] = int.from_bytes(compiler.compile_library(source).read_bytes()[18:20], "little")
    assert machines == {"x86_64-linux-gnu": 62, "aarch64-linux-gnu": 183}  # EM_X86_64, EM_AARCH64


@pytest.mark.parametrize("variable", ["CPATH", "C_INCLUDE_PATH"])
def test_the_environment_makes_no_difference(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    source = tmp_path / "elsewhere" / "answer.c"
    source.parent.mkdir()
    source.write_text("#include <answer.h>\nint answer(void) { return ANSWER; }\n")
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(CompileError, match=r"answer\.h"):
        compiler.compile_library(source)


def test_objects_for_the_kernel_serve_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiler.key("hardworker", TOPOLOGY)
    monkeypatch.setattr(compiler, "architecture", lambda: "aarch64-linux-gnu")
    assert compiler.key("hardworker", TOPOLOGY) == before


COMPILE = """
import pickle, sys
from midstream.ebpf import clang, compiler
from midstream.errors import CompileError
topology = pickle.load(sys.stdin.buffer)
try:
    print(compiler.compile_program("pass", topology))
except CompileError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def compile_elsewhere() -> subprocess.Popen[bytes]:
    """Compile in a process without any of root's privileges: no capability survives its start."""
    libc = ctypes.CDLL(None)

    def give_up_capabilities() -> None:
        for capability in range(64):
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP

    process = subprocess.Popen(
        [sys.executable, "-c", COMPILE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(midstream.__file__).parents[1])},
        preexec_fn=give_up_capabilities,  # noqa: PLW1509 (no thread runs beside a test)
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(TOPOLOGY))
    process.stdin.close()
    process.stdin = None  # communicate() would flush it
    return process


def test_without_privileges(kept: Path) -> None:
    process = compile_elsewhere()
    printed = process.communicate()[0].decode().strip()
    assert process.returncode == 0, printed
    assert Path(printed).parent == kept
    assert Path(printed) == compiler.compile_program("pass", TOPOLOGY)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_folder_of_somebody_else(kept: Path, mode: int) -> None:
    kept.mkdir(mode=mode)
    try:
        process = compile_elsewhere()
        printed = process.communicate()[0].decode().strip()
    finally:
        kept.chmod(0o755)
    assert process.returncode == CompileError.exit_code, printed
    assert printed == (
        f"{kept}: objects cannot be kept there (Permission denied); "
        "name another folder in the environment variable MIDSTREAM_CACHE"
    )


@pytest.mark.slow
def test_in_two_processes_at_once(kept: Path) -> None:
    """Each renames a whole object into place; neither sees the other's half."""
    processes = [compile_elsewhere() for _ in range(2)]
    printed = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(printed) == 1
    assert len([entry for entry in kept.iterdir() if entry.is_file()]) == 1
