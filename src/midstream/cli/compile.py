"""midstream compile."""

from pathlib import Path
from typing import Annotated

import typer

from midstream import network
from midstream.cli.options import find_role, say
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
) -> None:
    """Compile a host's eBPF program from const.toml; needs no root, and no Linux."""
    compiled = compiler.compile_program(find_role(role), network.load(const))
    try:
        output.write_bytes(compiled.read_bytes())
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}); name another file") from error
    say(f"{output}: {output.stat().st_size} bytes")
