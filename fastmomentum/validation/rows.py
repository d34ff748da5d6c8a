"""One line of the validation's table."""

from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """What was predicted, what was measured, and how far apart they may be.

    Attributes
    ----------
    what : str
        The quantity, and of which run.
    predicted, measured : float
        By the theory, and on the compiled kernels.
    error : float
        In the measure that the topic names.
    limit : float
        Up to which error the prediction holds.
    group : str
        What rows it is shown together with: the table has the worst of each group.
    topic : str
        What it is an instance of, with the measure of the error: the summary has the worst of each topic.
    """

    what: str
    predicted: float
    measured: float
    error: float
    limit: float
    group: str
    topic: str

    @property
    def holds(self) -> bool:
        """The verdict; an error that is not a number is a miss."""
        return self.error <= self.limit

    @property
    def severity(self) -> float:
        """The error in units of its limit; nothing is worse than what is no number."""
        if not self.holds:
            return self.error / self.limit if self.limit and self.error == self.error else float("inf")
        return self.error / self.limit if self.limit else 0.0


def relative(what: str, predicted: float, measured: float, limit: float, group: str, topic: str) -> Row:
    """A row whose error is relative to what was predicted."""
    return Row(what, predicted, measured, abs(measured / predicted - 1.0), limit, group, topic)


def worst(rows: Iterable[Row], key: str = "group") -> list[tuple[Row, int]]:
    """Of every group or topic the row that is nearest to its limit, or furthest beyond it, and how many there are."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(getattr(row, key), []).append(row)
    return [(max(each, key=lambda row: row.severity), len(each)) for each in together.values()]
