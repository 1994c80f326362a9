"""midstream and sockets in turns: who is attached when, and what is left."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.hosts import HARDWORKER, LOGGER, SENSORS, free_port, topology

from midstream import network
from midstream.config import Config
from midstream.errors import NetworkError
from midstream_bench import turns


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in its order."""
    found: list[str] = []

    @contextmanager
    def receiving(config: Config) -> Iterator[None]:
        found.append(f"receive {config.hardworker.receiver}")
        yield

    monkeypatch.setattr(turns, "_receiving", receiving)
    monkeypatch.setattr("midstream.ebpf.loader.attach", lambda *_: found.append("attach"))
    monkeypatch.setattr("midstream.ebpf.loader.detach", lambda *_: found.append("detach"))
    monkeypatch.setattr(
        "midstream_bench.host.sample", lambda label, *_, **__: found.append(f"sample {label}")
    )
    monkeypatch.setattr(turns, "SETTLE", 0.0)
    return found


def config(folder: Path, port: int = 12345) -> Config:
    network.write(folder / "const.toml", topology(port=port), written_by="a test")
    return Config.model_validate(
        {"const": str(folder / "const.toml"), "network": {"pins": str(folder / "pins")}}
    )


def take(chosen: Config, folder: Path, number: int, *, stopped: bool = False) -> None:
    turns.take_turns(
        chosen,
        folder,
        number,
        seconds=1,
        interval=0.1,
        interface="",
        tick=0.01,
        tell=lambda text: None,
        stop=lambda: stopped,
    )


def test_each_has_its_turns(tmp_path: Path, done: list[str]) -> None:
    take(config(tmp_path), tmp_path, 2)
    turn = ["attach", "receive ebpf", "sample midstream", "detach", "receive socket", "sample sockets"]
    assert done == [*turn, *turn, "detach"]


def test_what_was_attached_is_attached_again(tmp_path: Path, done: list[str]) -> None:
    (tmp_path / "pins" / "hardworker").mkdir(parents=True)
    take(config(tmp_path), tmp_path, 1)
    assert done[-1] == "attach"
    done.clear()
    take(config(tmp_path), tmp_path, 1, stopped=True)
    assert done == ["attach"]


def test_a_receiver_that_does_not_start_is_told(tmp_path: Path) -> None:
    port = free_port()
    chosen = config(tmp_path, port)
    sockets = chosen.model_copy(
        update={"hardworker": chosen.hardworker.model_copy(update={"receiver": "socket"})}
    )
    with (
        socket.create_server((HARDWORKER, port)),
        pytest.raises(NetworkError, match=r"the receiver \(socket\) does not start: .*cannot listen"),
        turns._receiving(sockets),
    ):
        pass
    with socket.create_server((LOGGER, port)), turns._receiving(sockets):  # and this one does
        socket.create_connection((HARDWORKER, port), 5, (SENSORS[0], 0)).close()
