"""A host without a compiler gets what it attaches from a logger's host, or says why it does not."""

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.exchanges import asking, exchanging, write_key
from tests.support.objects import without_compiler
from tests.support.site import Serving, Site

from midstream import network
from midstream.config import Config, load
from midstream.daemon import objects
from midstream.ebpf import compiler
from midstream.ebpf.compiler import CompilerMissingError
from midstream.network import Host, Topology

NOTHING = Path("/nonexistent")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return exchanging(Site(tmp_path))


@pytest.fixture
def bare(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Topology]:
    """This process is such a host from now on; what was started before has a compiler, and another cache."""
    monkeypatch.setenv("MIDSTREAM_CACHE", str(tmp_path / "bare"))
    without_compiler(monkeypatch)
    config = load(site.config)
    return config, network.load(config.const_path)


def test_a_logger_compiles_for_it(site: Site, request: pytest.FixtureRequest) -> None:
    with Serving(site.config):
        config, topology = request.getfixturevalue("bare")
        # Where one logger does not answer, the next is asked.
        topology = replace(
            topology, logger=Host(IPv4Address("127.0.0.99"), "02:00:00:00:00:99"), standbys=(topology.logger,)
        )
        objects.provide(config, "hardworker", topology, NOTHING)
        found = [compiler.compile_program(name, topology) for name in ("hardworker", "selftest")]
    objects.provide(config, "hardworker", topology, NOTHING)  # it is kept: nobody is asked
    assert all(path.read_bytes().startswith(b"\x7fELF") for path in found)
    with pytest.raises(CompilerMissingError):
        compiler.compile_program("sensor", topology)


def test_why_it_has_none(site: Site, bare: tuple[Config, Topology], tmp_path: Path) -> None:
    config, topology = bare
    with pytest.raises(CompilerMissingError, match=r"127\.0\.0\.1: .*no answer.*'midstream\[compiler\]'"):
        objects.provide(config, "hardworker", topology, NOTHING)
    with Serving(site.config):
        with asking(site):  # it has read its key
            write_key(config.key_path, b"x" * 32)
        with pytest.raises(CompilerMissingError, match="key"):
            objects.provide(config, "hardworker", topology, NOTHING)
    silent = config.model_copy(update={"logger": config.logger.model_copy(update={"replay_port": 0})})
    with pytest.raises(CompilerMissingError, match=r"logger\.replay_port = 0"):
        objects.provide(silent, "hardworker", topology, NOTHING)
    assert not list((tmp_path / "bare").glob("*"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"program": "impair"}, "there is no program 'impair'"),
        ({"program": None}, "there is no program None"),
        ({"key": "0"}, "another version of midstream"),
        ({"const": "[mac]"}, "const.toml of the host that asks"),
        ({"const": 7}, "const.toml of the host that asks"),
    ],
)
def test_what_a_logger_refuses(site: Site, changed: dict[str, object], said: str) -> None:
    topology = network.load(load(site.config).const_path)
    asked = {
        "kind": "compile",
        "program": "selftest",
        "key": compiler.key("selftest", topology),
        "const": network.dumps(topology),
    }
    with Serving(site.config), asking(site) as line:
        line.send(asked | changed)
        assert said in line.receive()[0]["failed"]
