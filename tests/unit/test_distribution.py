"""What is built for others: its version, its metadata, what it says of where it comes from."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatch_build import EXTENSION, OBJECTS, address, compile_extension, described
from packaging.metadata import Metadata

from midstream.ebpf import clang

ROOT = Path(__file__).parents[2]
FILES = [".git_archival.txt", ".gitattributes", "LICENSE", "README.md", "hatch_build.py", "pyproject.toml"]
MODULE = f"midstream/{EXTENSION}"
RELATIVE = re.compile(r"\]\((?!https://|#)")
BUILD = "from hatchling.build import build_sdist, build_wheel; build_sdist('dist'); build_wheel('dist')"
MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64 and EM_AARCH64 of ELF


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with this tree as its only commit, without tags, without a remote."""
    folder = tmp_path / "clone"
    for name in ("src/midstream", "LICENSES"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    git(folder.parent, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


def build(folder: Path, machine: str = "x86_64") -> Path:
    """The wheel for that processor; the sdist lies beside it."""
    # One cache for all: the compiler makes its C library only once.
    environment = {
        "ZIG_GLOBAL_CACHE_DIR": str(ROOT / "build/zig"),
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }
    subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=folder,
        env=os.environ | environment,
        check=True,
        capture_output=True,
    )
    return folder / f"dist/midstream-0.3.0-cp311-abi3-manylinux_2_17_{machine}.whl"


def version(folder: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=folder, check=True, capture_output=True, text=True
    )
    return run.stdout.strip()


def metadata(wheel: Path) -> Metadata:
    """Checked as an index checks it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name), validate=True)


@pytest.mark.slow
def test_the_version_is_that_of_git(clone: Path) -> None:
    assert re.fullmatch(r"0\.1\.0\.dev1\+g[0-9a-f]+", version(clone))
    git(clone, "tag", "v0.3.0")
    git(clone, "commit", "--allow-empty", "--message", "two")
    assert re.fullmatch(r"0\.3\.1\.dev1\+g[0-9a-f]+", version(clone))


@pytest.mark.slow
def test_the_version_of_an_archive(clone: Path, tmp_path: Path) -> None:
    """Of git archive, as the sites offer it for download: without a tag, as of a mere copy, and with one."""
    for tag, expected in (("", "0.1.0.dev0"), ("v0.3.0", "0.3.0")):
        folder = tmp_path / f"archive{tag}"
        folder.mkdir()
        if tag:
            git(clone, "tag", tag)
        git(clone, "archive", "--output", str(folder / "all.tar"), "HEAD")
        with tarfile.open(folder / "all.tar") as archive:
            archive.extractall(folder, filter="data")
        assert version(folder) == expected


def test_what_is_built(clone: Path, tmp_path: Path) -> None:
    """A wheel of the clone and one of its sdist are alike, and no link of theirs leads nowhere."""
    git(clone, "tag", "v0.3.0")
    git(clone, "remote", "add", "origin", "git@git.example:robots/midstream.git")
    wheels = [build(clone)]
    with tarfile.open(clone / "dist/midstream-0.3.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / "midstream-0.3.0"
    wheels.append(build(unpacked))
    told, again = map(metadata, wheels)
    assert told.as_rfc822().as_bytes() == again.as_rfc822().as_bytes()
    assert told.project_urls == {
        "Repository": "https://git.example/robots/midstream",
        "Documentation": "https://git.example/robots/midstream/blob/HEAD/docs",
        "Changelog": "https://git.example/robots/midstream/blob/HEAD/CHANGELOG.md",
        "Issues": "https://git.example/robots/midstream/issues",
    }
    assert told.description_content_type == "text/markdown"
    assert told.description
    assert "](https://git.example/robots/midstream/blob/HEAD/docs/guarantees.md)" in told.description
    assert not RELATIVE.search(told.description)
    with zipfile.ZipFile(wheels[1]) as archive:
        names = set(archive.namelist())
    assert {"midstream/py.typed", "midstream/ebpf/hardworker.bpf.c", MODULE} <= names
    assert not [name for name in names if name.startswith("midstream/hardworker/") and name.endswith(".c")]


@pytest.mark.slow
def test_a_wheel_for_each_processor(clone: Path, tmp_path: Path) -> None:
    """What the tag promises holds, and an index takes them."""
    git(clone, "tag", "v0.3.0")
    for machine, code in MACHINES.items():
        wheel = build(clone, machine)
        with zipfile.ZipFile(wheel) as archive:
            assert int.from_bytes(archive.read(MODULE)[18:20], "little") == code
            for program in clang.PROGRAMS:  # the same for all
                own = archive.read(f"midstream/{OBJECTS}/{program}.o")
                assert own == (ROOT / "src/midstream" / OBJECTS / f"{program}.o").read_bytes()
        audit = subprocess.run(
            [sys.executable, "-m", "auditwheel", "show", str(wheel)],
            check=True,
            capture_output=True,
            text=True,
        )
        assert f'platform tag: "manylinux_2_17_{machine}"' in " ".join(audit.stdout.split())
    files = sorted(map(str, (clone / "dist").iterdir()))
    assert len(files) == 3
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_headers_as_debian_lays_them_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str
) -> None:
    """pyconfig.h includes the one of the processor, which lies elsewhere, and only that of this machine's."""
    headers, configured = Path(sysconfig.get_path("include")), sysconfig.get_config_h_filename()
    include = tmp_path / "include"
    include.mkdir()
    for path in headers.iterdir():
        (include / path.name).symlink_to(path)
    (include / "pyconfig.h").unlink()
    version = sysconfig.get_python_version()
    (include / "pyconfig.h").write_text(f"#include <{machine}-linux-gnu/python{version}/pyconfig.h>\n")
    monkeypatch.setattr("hatch_build.sysconfig.get_path", lambda name: str(include))
    monkeypatch.setattr("hatch_build.sysconfig.get_config_h_filename", lambda: configured)
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(ROOT / "build/zig"))
    target = tmp_path / "_ring.so"
    compile_extension(ROOT / "src/midstream", target, machine, tmp_path / "build")
    assert int.from_bytes(target.read_bytes()[18:20], "little") == MACHINES[machine]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["linux-armv7l", "linux-riscv64", "macosx-14.0-arm64"])
def test_where_nobody_reads_a_ring_the_rest_is_built(
    clone: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    git(clone, "tag", "v0.3.0")
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", platform)
    subprocess.run([sys.executable, "-c", BUILD], cwd=clone, check=True, capture_output=True)
    assert (clone / "dist/midstream-0.3.0-py3-none-any.whl").exists()


def test_headers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hatch_build.sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r"Python\.h is missing: install Python's headers"):
        compile_extension(ROOT / "src/midstream", tmp_path / "_ring.so", "x86_64", tmp_path)


def test_a_readme_without_a_home_has_no_link_that_leads_nowhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert RELATIVE.search(readme)
    said = described(readme, "")
    assert not RELATIVE.search(said)
    assert "docs/guarantees.md says exactly what holds" in said


def test_a_picture_is_found_as_such() -> None:
    assert described("![a picture](docs/a.svg)", "https://a.example/b") == (
        "![a picture](https://a.example/b/raw/HEAD/docs/a.svg)"
    )
    assert described("![a picture](docs/a.svg)", "") == "a picture"


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://git.example/a/b.git", "https://git.example/a/b"),
        ("https://user:secret@git.example:8443/a/b/", "https://git.example:8443/a/b"),
        ("ssh://git@git.example:22/a/b.git", "https://git.example/a/b"),
        ("git@git.example:a/b.git", "https://git.example/a/b"),
        ("/srv/git/b.git", ""),
        ("../b", ""),
        ("file:///srv/b", ""),
    ],
)
def test_where_a_browser_finds_a_remote(remote: str, url: str) -> None:
    assert address(remote) == url
