"""What a person is told while nothing can be stored: once why, and once that it goes on."""

import logging
from collections.abc import Callable

MAX_REASONS = 8  # that are said of one time of waiting

log = logging.getLogger("midstream.logger")


class WaitingReport:
    """`reason` is why nothing can be stored just now, and "" if all can be. times: how often it began. `tell`
    hears it, with what becomes of the sensors."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self.reason = ""
        self.times = 0
        self._said: set[str] = set()

    def because(self, reason: str, comfort: str) -> None:
        """Nothing can be stored; `comfort` says what becomes of the sensors meanwhile."""
        self.times += not self.reason
        self.reason = reason
        self._tell(f"{reason}. {comfort}")
        self.say(f"logger: waiting: {reason}. {comfort}")

    def over(self) -> None:
        if self.reason:
            log.warning("logger: goes on: the database takes everything again")
            self.reason = ""
            self._tell("")
            self._said.clear()

    def say(self, text: str) -> None:
        """Something that is said once until all goes well again."""
        if text not in self._said and len(self._said) < MAX_REASONS:
            self._said.add(text)
            log.warning("%s", text)

    def all_well(self) -> None:
        """Something was stored: what happens now is news."""
        if not self.reason:
            self._said.clear()
