"""The commands for a control station, which need nothing of Linux."""

from pathlib import Path

import pytest
from tests.unit.cli.test_cli import CONST, run

LINUX = ["fcntl", "grp", "pyroute2", "sqlalchemy", "midstream.ebpf.libbpf", "midstream.doctor.repair"]


def station(folder: Path, *arguments: str) -> tuple[int, str, str]:
    (folder / "const.toml").write_text(CONST)
    (folder / "config.toml").write_text("")
    absent = f"sys.modules.update(dict.fromkeys({LINUX!r}))"
    ended = run("doctor", "--station", *arguments, before=absent, cwd=folder)
    return ended.returncode, ended.stdout, ended.stderr


def test_windows(tmp_path: Path) -> None:
    assert station(tmp_path, "windows") == (
        0,
        (
            'netsh interface ipv4 add route 10.83.0.2/32 "Ethernet" store=persistent\n'
            'netsh interface ipv4 add neighbors "Ethernet" 10.83.0.2 02-00-00-00-00-02 store=persistent\n'
            'netsh interface ipv4 add route 10.83.0.3/32 "Ethernet" store=persistent\n'
            'netsh interface ipv4 add neighbors "Ethernet" 10.83.0.3 02-00-00-00-00-03 store=persistent\n'
            'netsh interface ipv4 add route 10.83.0.11/32 "Ethernet" store=persistent\n'
            'netsh interface ipv4 add neighbors "Ethernet" 10.83.0.11 02-00-00-00-00-0b store=persistent\n'
        ),
        "",
    )


def test_macos(tmp_path: Path) -> None:
    code, out, _ = station(tmp_path, "macos", "--interface", "en7")
    assert code == 0
    assert out.splitlines()[:2] == [
        "sudo route -n add -host 10.83.0.2 -interface en7",
        "sudo arp -s 10.83.0.2 02:00:00:00:00:02 ifscope en7",
    ]
    assert len(out.splitlines()) == 6


def test_linux_as_json(tmp_path: Path) -> None:
    code, out, _ = station(tmp_path, "linux", "--json")
    assert code == 0
    assert '"ip neigh replace 10.83.0.11 lladdr 02:00:00:00:00:0b dev eth0 nud permanent"' in out


@pytest.mark.parametrize("system", ["beos", "Windows"])
def test_an_unknown_system(tmp_path: Path, system: str) -> None:
    code, out, err = station(tmp_path, system)
    assert (code, out) == (2, "")
    assert f"--station = {system!r}: must be windows, macos or linux" in err
