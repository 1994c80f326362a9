"""midstream compile."""

from pathlib import Path
from typing import Annotated

import typer

from midstream import network
from midstream.cli.options import Json, find_role, say, show
from midstream.ebpf import compiler
from midstream.errors import ConfigError

app = typer.Typer()


@app.command("compile")
def compile_(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="sensor, hardworker or logger.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OBJ", help="Where the object goes.")],
    const: Annotated[Path, typer.Option("--const", metavar="FILE", help="The topology.")] = Path(
        "const.toml"
    ),
    as_json: Json = False,
) -> None:
    """Compile a host's eBPF program from const.toml; needs no root, and no Linux."""
    compiled = compiler.compile_program(find_role(role), network.load(const))
    try:
        output.write_bytes(compiled.read_bytes())
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}); name another file") from error
    size = output.stat().st_size
    if as_json:
        show({"file": str(output), "bytes": size}, as_json)
    else:
        say(f"{output}: {size} bytes")
