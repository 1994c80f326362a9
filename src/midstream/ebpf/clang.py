"""How clang, as the `ziglang` wheel has it, is asked for an object. hatch_build.py reads this file alone."""

from collections.abc import Iterable
from pathlib import Path

PROGRAMS = ("sensor", "hardworker", "streams", "logger", "selftest", "pass")
"""What hosts, and the lab's switch, attach."""

FLAGS = (
    "-target",
    "bpfel-freestanding",
    "-mcpu=v3",  # atomics and 32-bit registers; every kernel from 5.12 on
    "-O2",
    "-g",  # BTF, which maps and spin locks need
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
)


def arguments(program: str, compiler: Path, folders: Iterable[Path]) -> list[str]:
    """For `zig cc` in the source's folder. compiler: its package's folder. folders: where headers are."""
    headers = compiler / "lib/libc/include"
    # The kernel's types are the same on every architecture that BPF supports; x86's serve all.
    folders = list(folders)
    places = [*folders, headers / "any-linux-any", headers / "x86-linux-any"]
    # Debug information names files; where they lie on this machine must make no difference. The sources'
    # names stay readable from their own folder: clang puts their lines into the verifier's log.
    named = {headers: "include"} | {folder: "." for folder in folders if folder.is_absolute()}
    nameless = ["-ffile-compilation-dir=.", *(f"-ffile-prefix-map={at}={name}" for at, name in named.items())]
    return [*FLAGS, *nameless, *(f"-I{place}" for place in places), "-c", f"{program}.bpf.c"]
