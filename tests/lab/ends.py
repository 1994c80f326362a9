"""Hardworker and logger as programs, with one config.toml and a database of their own."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.triangle import Program, Result, command, started, variant

from midstream.lab import Lab


@dataclass
class Ends:
    """A logger and a hardworker that run with one config.toml."""

    config: Path
    record: Path
    database: Path
    logger: Program
    hardworker: Program

    def end(self) -> tuple[Result, Result]:
        """Stop both; the hardworker's and the logger's results."""
        results = self.hardworker.end(), self.logger.end(signal.SIGTERM)
        for result in results:
            assert result.code == 0, result.err
        return results


@contextmanager
def running(
    lab: Lab,
    folder: Path,
    *,
    disk: Path | None = None,
    launcher: Sequence[str] = (),
    **tables: Mapping[str, object] | float,
) -> Iterator[Ends]:
    """Both, with a config.toml and a database of their own. disk: the database's. launcher: the logger's."""
    record, database = folder / "record", (disk or folder) / "logged.db"
    config = variant(lab, f"{folder.name}.toml", logger={"database": f"sqlite:///{database}"}, **tables)
    arguments = ("--config", config, "--json")
    with ExitStack() as stack:
        logger = stack.enter_context(started(lab, "logger", folder, "logger", *arguments, launcher=launcher))
        hardworker = stack.enter_context(
            started(
                lab, "hardworker", folder, "hardworker", *arguments, "--record", record, ready="receiving"
            )
        )
        logger.wait_for("listening")
        ends = Ends(config, record, database, logger, hardworker)
        try:
            yield ends
        finally:
            ends.logger.process.kill()  # it may be another one by now
            ends.logger.process.wait()


def sensor(lab: Lab, config: Path, *options: str | Path) -> Result:
    return command(lab, "sensor", "sensor", "--config", config, "--json", *options)
