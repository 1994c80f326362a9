"""What `midstream service status` makes of what systemd says."""

import json

import pytest
from typer.testing import CliRunner

from midstream import cli
from midstream.systemd import run, state

SHOWN = """LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
StateChangeTimestamp=Sun 2026-11-29 22:05:56 UTC
StatusText=waiting: /etc/midstream/key: there is no key = none
NRestarts=2
"""
JOURNAL = """2026-11-29T22:05:50+0000 arm systemd[1]: Started midstream-daemon.service.
2026-11-29T22:05:51+0000 arm midstream[70]: waiting: /etc/midstream/key: there is no key
2026-11-29T22:05:52+0000 arm midstream[70]: 2026-11-29T22:05:52.000+00:00 info started role=hardworker
"""


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A systemd that knows the daemon and an application of the user robot."""

    def answer(*command: str) -> str:
        if command[:2] == ("systemctl", "list-units"):
            return "midstream-hardworker@robot.service loaded active running the application\n"
        if command[0] == "journalctl":
            return JOURNAL if "--unit=midstream-daemon.service" in command else ""
        return (
            SHOWN
            if command[-1].split("@")[0] in ("midstream-daemon.service", "midstream-hardworker")
            else ("LoadState=not-found\n")
        )

    monkeypatch.setattr(state, "output", answer)
    monkeypatch.setattr(run, "require", lambda: None)


def test_each_that_is_installed_with_its_words_and_its_last_error() -> None:
    told = json.loads(CliRunner().invoke(cli.app(["service"]), ["service", "status", "--json"]).stdout)
    daemon, application = told["units"]
    assert daemon == {
        "unit": "midstream-daemon.service",
        "enabled": "enabled",
        "active": "active (running)",
        "since": "Sun 2026-11-29 22:05:56 UTC",
        "restarts": 2,
        "status": "waiting: /etc/midstream/key: there is no key = none",
        "last_error": "2026-11-29T22:05:51+0000 waiting: /etc/midstream/key: there is no key",
    }
    assert (application["unit"], application["last_error"]) == ("midstream-hardworker@robot.service", "")


def test_in_words() -> None:
    shown = CliRunner().invoke(cli.app(["service"]), ["service", "status"]).stdout.splitlines()
    assert shown[0] == (
        "midstream-daemon.service: active (running) since Sun 2026-11-29 22:05:56 UTC, enabled"
    )
    assert shown[2].startswith("    last error: 2026-11-29T22:05:51+0000 waiting: ")
