"""From the measurements of several processes to ratios, rates and goals."""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, NamedTuple

from benchmarks.cases import CEILING, UPDATE
from benchmarks.contenders import OURS


class Result(NamedTuple):
    """A headline: `value` in `unit`, and what it should be."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool


class Summary(NamedTuple):
    """One case at one number of threads: of every side the seconds that each process measured."""

    case: str
    threads: int
    elements: int
    moved: int
    runs: dict[str, list[float]]

    @property
    def where(self) -> str:
        """The case and the number of threads."""
        return f"{self.case}, {self.threads} thread{'s' * (self.threads > 1)}"

    def seconds(self, side: str) -> float:
        """The median over processes."""
        return median(self.runs[side])

    def ratio(self, side: str, base: str = OURS) -> float:
        """Its seconds over ours: the median over processes of the ratio within each."""
        return median(theirs / mine for theirs, mine in zip(self.runs[side], self.runs[base], strict=True))

    @property
    def rate(self) -> float:
        """GB/s that an update of ours moves."""
        return self.moved / self.seconds(OURS) / 1e9

    @property
    def ceiling(self) -> float | None:
        """The share of the best stream's rate, at the same bytes, that ours has; None where none was measured."""
        found = [self.ratio(name) for name in self.runs if name.startswith(CEILING)]
        return min(found) if found else None

    @property
    def peers(self) -> list[str]:
        """The sides that are neither ours nor a stream."""
        return [name for name in self.runs if name != OURS and not name.startswith(CEILING)]


def summaries(lines: Iterable[dict[str, Any]]) -> list[Summary]:
    """What the processes printed, taken together; sides that all of them had."""
    together: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in lines:
        together.setdefault((line["case"], line["threads"]), []).append(line)
    found = []
    for (case, threads), lines_of in together.items():
        first = lines_of[0]
        names = [name for name in first["seconds"] if all(name in line["seconds"] for line in lines_of)]
        runs = {name: [line["seconds"][name] for line in lines_of] for name in names}
        found.append(Summary(case, threads, first["elements"], first["moved"], runs))
    return found


def at_least(name: str, value: float, goal: float, unit: str = "×") -> Result:
    """More is better."""
    return Result(name, value, unit, f"≥ {goal:g}", value >= goal)


def below(name: str, value: float, goal: float, unit: str) -> Result:
    """Less is better."""
    return Result(name, value, unit, f"< {goal:g}", value < goal)


NUMPY = {100: 1.3, 10_000: 2.0, 100_000: 2.0, 1_000_000: 1.8, 16_000_000: 1.8}
"""Goals against NumPy in place, float32, by size; beyond the caches its bytes for ours allow 2.2 to 2.4."""

FUSED = {
    "float32, n = 100": 10.0,
    "1,000 arrays of 100": 25.0,
    "1,000 arrays of 1,000": 8.0,
    "ResNet-50, 161 arrays": 1.0,
    "GPT-2 small, 148 arrays": 1.0,
}
"""Goals against torch's fused step; 0.97 elsewhere."""


def headlines(found: list[Summary]) -> Iterator[Result]:
    """What is aimed at, and what was measured."""
    for each in found:
        where = each.where
        single = each.case.startswith("float32")
        if "NumPy in place" in each.runs and single and each.elements in NUMPY:
            yield at_least(f"NumPy in place over ours, {where}", each.ratio("NumPy in place"), NUMPY[each.elements])
        if "torch fused" in each.runs:
            yield at_least(f"torch fused over ours, {where}", each.ratio("torch fused"), FUSED.get(each.case, 0.97))
        if single and each.elements in (16_000_000, 64_000_000):
            if "the loop in C" in each.runs:
                yield at_least(f"the loop in C over ours, {where}", each.ratio("the loop in C"), 0.95)
            if each.ceiling:
                yield at_least(f"our rate over the ceiling, {where}", each.ceiling, 0.95)
        if each.case.startswith("options"):
            share = (each.ratio("with max_norm") - 1.0) * UPDATE
            yield below(f"max_norm over its share of the bytes, {where}", share, 1.2, "×")
        if each.case == "overhead, n = 16":
            yield below("fm.step with all checks, n = 16", each.seconds("fm.step") * 1e6, 3.0, "µs")
        if each.case == "overhead, n = 100":
            kernel = "the bare kernel"
            yield below("opt.step over the bare kernel, n = 100", each.ratio(OURS, kernel), 1.6, "×")
            yield below("the same with a new gradient", each.ratio("with a new gradient", kernel), 4.0, "×")
        if each.case.startswith("spectral radii"):
            points = each.elements / each.seconds(OURS) / 1e6
            yield at_least(each.case, points, 10.0, "million a second")
        if each.case == "fresh processes":
            for name in each.runs:
                goal = 0.1 if name.startswith("import") else 4.0 if name.endswith("threads") else 1.5
                yield below(name, each.seconds(name), goal, "s")


class Regime(NamedTuple):
    """What bounds one size: the rate of the best stream that moves as much is the prediction."""

    name: str
    elements: int
    threads: int
    predicted: float
    measured: float


def regimes(found: list[Summary], caches: dict[str, int]) -> Iterator[Regime]:
    """The sizes of float32 by where p, v and g have room, and both rates in GB/s."""
    for each in found:
        if each.case.startswith("float32") and each.ceiling:
            held = each.moved * 3 // UPDATE
            name = next((level for level, size in caches.items() if held <= size), "DRAM")
            yield Regime(name, each.elements, each.threads, each.rate / each.ceiling, each.rate)
