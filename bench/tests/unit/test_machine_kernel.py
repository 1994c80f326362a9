"""Debian's kernel packages, as each release packs them, are found and taken apart."""

import lzma
from pathlib import Path

import pytest
from tests.vm import sweep

from midstream.ebpf import compiler
from midstream.errors import LabError
from midstream_bench.ebpf import PROGRAMS
from midstream_bench.machine import kernel
from midstream_bench.machine.kernel import OLDEST, get

VERSION = "7.3.4+deb13-amd64"
LAYOUTS = {
    "Debian 12": f"boot/vmlinuz-{VERSION}",
    "split packages": f"lib/modules/{VERSION}/vmlinuz",
}


def unpacked(cache: Path, image: str, suffix: str) -> Path:
    """A kernel with two modules, one of which needs the other."""
    folder = cache / OLDEST.name
    modules = folder / "lib" / "modules" / VERSION
    for name in ("kernel/fs/9p/9p.ko", "kernel/net/9p/9pnet.ko"):
        path = modules / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(name.encode()) if suffix else name.encode())
    (modules / "modules.dep").write_text(
        f"kernel/fs/9p/9p.ko{suffix}: kernel/net/9p/9pnet.ko{suffix}\nkernel/net/9p/9pnet.ko{suffix}:\n"
    )
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    (folder / image).touch()
    return folder


@pytest.mark.parametrize("image", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_a_kernel_is_found_and_its_modules_are_unpacked(tmp_path: Path, image: str, suffix: str) -> None:
    folder = unpacked(tmp_path, image, suffix)
    found = get(tmp_path)
    assert (found.version, found.image) == (VERSION, folder / image)

    target = tmp_path / "initramfs"
    found.copy_modules(["9p", "virtio_console"], target)  # the latter is built in
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names == {"kernel/fs/9p/9p.ko", "kernel/net/9p/9pnet.ko", "modules.dep"}
    assert (target / "kernel/fs/9p/9p.ko").read_bytes() == b"kernel/fs/9p/9p.ko"
    assert ".xz" not in (target / "modules.dep").read_text()


TARGETS = """\
main https://tools.example/tools-bookworm/
contrib https://mirror.example/debian/
main https://mirror.example/debian-security/
main https://mirror.example/debian/
"""


def test_the_mirror_is_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_output", lambda *_: TARGETS)
    settings = kernel._apt_settings(tmp_path, kernel.RELEASES["newest"])
    (source,) = (tmp_path / "apt" / "sources").iterdir()
    assert source.read_text().split()[2:] == ["https://mirror.example/debian/", "trixie-backports", "main"]
    assert Path(settings["APT_CONFIG"]).is_relative_to(tmp_path)


def test_a_machine_without_debians_archive_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_output", lambda *_: TARGETS.replace("/debian/", "/ubuntu/"))
    with pytest.raises(LabError, match="Debian host"):
        kernel._mirror()


def test_the_sweep_forgets_no_program() -> None:
    """Each source, and of the hardworker's sizes some that are larger than a segment."""
    programs = {path.name.removesuffix(".bpf.c") for path in compiler.SOURCES.glob("*.bpf.c")} | {*PROGRAMS}
    cases = list(sweep.cases(quick=False))
    assert {case.program for case in cases} == programs
    for mtu in sweep.MTUS:
        assert len({case.size for case in cases if case.mtu == mtu and case.program == "hardworker"}) >= 12
    assert any(case.size > case.mtu for case in cases)
