"""Sets of bytes of a stream: spans that neither overlap nor touch, in order."""

from collections.abc import Iterable, Iterator

Span = tuple[int, int]  # the first byte, and the one behind the last


class Spans:
    """Made of spans in any order; empty ones count for nothing."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans: list[Span] = []
        for start, end in sorted(span for span in spans if span[0] < span[1]):
            if self._spans and start <= self._spans[-1][1]:
                self._spans[-1] = (self._spans[-1][0], max(end, self._spans[-1][1]))
            else:
                self._spans.append((start, end))

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def end(self) -> int:
        """Behind the last byte; 0 if there is none."""
        return self._spans[-1][1] if self._spans else 0

    def without(self, others: "Spans") -> "Spans":
        """What is in none of the others."""
        left: list[Span] = []
        for start, end in self:
            following = start
            for other_start, other_end in others:
                if other_end > following and other_start < end:
                    left.append((following, min(other_start, end)))
                    following = other_end
            left.append((following, end))
        return Spans(left)

    def within(self, others: "Spans") -> "Spans":
        """What is in one of the others, too."""
        return self.without(self.without(others))
