"""A NATS server that asks for user and password: what stands encoded in the URL reaches it as it is meant."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.database.servers import free_port, patient

from midstream.errors import StoreError
from midstream.storage.databases import open_log

USER, PASSWORD = "arm:1@lab", "p@ss/w:%rd"
TOKEN = "t@ken/:%41"


@pytest.fixture(scope="module", params=["password", "token"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """What stands in front of the @, and HOST:PORT."""
    folder: Path = tmp_path_factory.mktemp("nats")
    port = free_port()
    login = f"token: {json.dumps(TOKEN)}"
    front = quote(TOKEN, safe="")
    if request.param == "password":
        login = f"user: {json.dumps(USER)}, password: {json.dumps(PASSWORD)}"
        front = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
    (folder / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/store" }}\n'
        f"authorization {{ {login} }}\n"
    )
    program = Path(sys.executable).with_name("nats-server")
    process = subprocess.Popen(
        [program, "-c", folder / "nats.conf"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield front, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_a_login_is_decoded(server: tuple[str, str]) -> None:
    front, where = server
    url = f"nats://{front}@{where}/decoded"
    patient(url).close()
    with open_log(url) as log:
        assert log.connections() == []
        assert log.name == f"nats://{where}/decoded"


def test_another_is_refused_and_not_repeated(server: tuple[str, str]) -> None:
    front, where = server
    patient(f"nats://{front}@{where}/refused").close()
    with pytest.raises(StoreError, match="refuse user or password") as caught:
        patient(f"nats://{front}x@{where}/refused")
    assert front not in str(caught.value)
