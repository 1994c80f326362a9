"""What a host without a compiler attaches: objects that the compiler of a logger's host makes.

They come over a line (line.py), so only a host with the shared key can send one. The host says what it needs
by const.toml's text and the object's key: a logger with other sources refuses.
"""

from pathlib import Path

from midstream import key, network
from midstream.config import Config, Role
from midstream.ebpf import compiler, pins
from midstream.errors import CompileError, MidstreamError
from midstream.line import call
from midstream.network import Topology

_COMPILING = 60.0  # seconds that a logger may take, on a slow board too


def provide(config: Config, role: Role, topology: Topology, folder: Path) -> None:
    """See that this host has what `attach` needs. folder: where it pins; what is attached there may be that.

    Raises CompilerMissingError, which says why no logger gave it, if there is no compiler and no object.
    """
    if compiler.installed() or role == "logger" or pins.stand(role, config, topology, folder):
        return
    for name in compiler.programs(role):
        if compiler.kept(name, topology) is None:
            _fetch(config, name, topology)


def _fetch(config: Config, name: str, topology: Topology) -> None:
    reasons = []
    for logger in topology.loggers:
        try:
            compiler.keep(name, topology, *_ask(config, str(logger.ip), name, topology))
        except MidstreamError as error:
            reasons.append(f"{logger.ip}: {error}")
        else:
            return
    raise compiler.CompilerMissingError("; ".join(reasons))


def _ask(config: Config, logger: str, name: str, topology: Topology) -> tuple[str, bytes]:
    """The compiler's version, and the object."""
    if not config.logger.replay_port:
        raise CompileError("it is not asked, for logger.replay_port = 0")
    with call(logger, key.read(config.key_path), config.logger.replay_port) as line:
        asked = {"kind": "compile", "program": name, "key": compiler.key(name, topology)}
        line.send(asked | {"const": network.dumps(topology)})
        said, data = line.receive(compiler.MAX_BYTES, _COMPILING)
    made_by = said.get("compiler")
    if not isinstance(made_by, str) or not made_by.replace(".", "").isalnum():
        raise CompileError(str(said.get("failed", "it does not say which compiler it has")))
    made = bytes(data)
    if not made.startswith(b"\x7fELF"):
        raise CompileError("what it sends is no object")
    return made_by, made
