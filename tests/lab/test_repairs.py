"""Whatever a daemon has put on its host is put there again when somebody removes it, and data flows on."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.lab.interfaces import remove_clsact
from tests.lab.test_detached import detach_link
from tests.lab.triangle import LOGGER, PINS, SENSOR, command, started, wait_until

from midstream.ebpf import irq_mitigation, quickack, routes
from midstream.ebpf.irq_mitigation import IrqMitigation
from midstream.hardworker import Hardworker
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up

PERIOD = 0.02
MESSAGES = 5
BARE: dict[str, Any] = {"sensors": 1, "bare": True, "hardworker": {"period": PERIOD}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    built = lab_up(run_dir=tmp_path_factory.mktemp("lab"), **BARE)
    daemons.start(built)
    return built


@pytest.fixture(scope="module")
def application(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardworker]:
    """A logger, and an application that follows."""
    arguments = ("logger", "--config", lab.config)
    folder = tmp_path_factory.mktemp("logger")
    with started(lab, "logger", folder, *arguments, ready="listening"):
        wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER)
        with Hardworker(lab.config, follow=True) as made:
            yield made


def state(lab: Lab, name: str) -> dict[str, Any]:
    return daemons.state(lab, name) or {"repairs": [], "repaired": -1, "destination": "", "pid": 0}


def const(lab: Lab, name: str) -> Path:
    return lab.const if name == "hardworker" else daemons.folder(lab, name) / "const.toml"


def without_const(lab: Lab) -> None:
    const(lab, "logger").unlink()


def with_another_const(lab: Lab) -> None:
    const(lab, "hardworker").write_text(const(lab, "hardworker").read_text().replace(SENSOR, "10.83.0.99"))


def without_the_link(_: Lab) -> None:
    detach_link()


def without_any_pin(_: Lab) -> None:
    shutil.rmtree(PINS / "hardworker")


def without_the_journal(_: Lab) -> None:
    (PINS / "hardworker" / "journal").unlink()


def without_the_stamp(_: Lab) -> None:
    (PINS / "hardworker" / "settings").unlink()


def without_the_loggers_pins(_: Lab) -> None:
    shutil.rmtree(PINS / "logger")


def without_the_loggers_filters(lab: Lab) -> None:
    lab.call("logger", remove_clsact)


def without_prompt_acknowledgements(lab: Lab) -> None:
    lab.call("logger", quickack.remove)


def without_deferral(lab: Lab) -> None:
    lab.call("hardworker", irq_mitigation.write, "eth0", IrqMitigation(0, 0))


def without_the_socket(lab: Lab) -> None:
    (daemons.folder(lab, "sensor") / "daemon.sock").unlink()


def prompt() -> list[str]:
    with IPRoute() as netlink:
        return [str(ip) for ip, _ in routes.find(netlink, quickack.PROTOCOL)]


DAMAGES: list[tuple[Callable[[Lab], None], str, str]] = [
    (without_the_link, "hardworker", "program on eth0: gone, attached again"),
    (without_any_pin, "hardworker", "program on eth0: gone"),
    (without_the_stamp, "hardworker", "program on eth0: gone"),
    (without_the_journal, "hardworker", "program on eth0: gone"),
    (without_deferral, "hardworker", "interrupt mitigation of eth0: gone"),
    (with_another_const, "hardworker", "const.toml: removed or changed"),
    (without_const, "logger", "const.toml: removed or changed"),
    (without_the_loggers_pins, "logger", "program on eth0: gone"),
    (without_the_loggers_filters, "logger", "program on eth0: gone"),
    (without_prompt_acknowledgements, "logger", f"route {SENSOR} with quickack: missing"),
    (without_the_socket, "sensor", "daemon.sock: removed, made again"),
]
SHORT = (without_the_link,)


@pytest.mark.parametrize(
    ("damage", "name", "repair"),
    [
        pytest.param(*one, marks=() if one[0] in SHORT else pytest.mark.slow, id=one[0].__name__)
        for one in DAMAGES
    ],
)
def test_it_is_repaired(
    lab: Lab, application: Hardworker, damage: Callable[[Lab], None], name: str, repair: str
) -> None:
    before = state(lab, name)["repaired"]
    damage(lab)
    wait_until(lambda: state(lab, name)["repaired"] > before, 10)
    assert repair in state(lab, name)["repairs"][-1]
    assert lab.call("logger", prompt) == [SENSOR]
    assert lab.call("hardworker", irq_mitigation.read, "eth0") == irq_mitigation.matched(PERIOD)
    given = application.totals.messages
    arguments = ("sensor", "--config", lab.config, "--messages", str(MESSAGES), "--rate", "0")
    sent = command(lab, "sensor", *arguments)
    assert sent.code == 0, sent.err

    def arrived() -> bool:
        application.wait()
        application.read()
        return application.totals.messages - given == MESSAGES

    wait_until(arrived, 5)


@pytest.mark.slow
def test_detach_says_that_the_daemon_attaches_again(lab: Lab, application: Hardworker) -> None:
    pid = state(lab, "hardworker")["pid"]
    config = daemons.folder(lab, "hardworker") / "config.toml"
    ended = command(lab, "hardworker", "detach", "--config", config)
    assert ended.code == 0
    assert f"attaches the program again at once; to stop it: kill {pid}\n" in ended.err
    wait_until((PINS / "hardworker" / "link").exists, 5)
    lab.run("hardworker", ["kill", str(pid)], check=True)
    wait_until(lambda: daemons.state(lab, "hardworker") is None, 5)
    ended = command(lab, "hardworker", "detach", "--config", config)
    assert (ended.code, "again" in ended.err) == (0, False)
