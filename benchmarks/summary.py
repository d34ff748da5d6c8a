"""Compute ratios, rates and goals from the lines of several measuring processes."""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import NamedTuple, TypedDict

from benchmarks.cases import CEILING, ELEMENTS_MOVED
from benchmarks.contenders import OURS


class Line(TypedDict):
    """Hold what one process measured of one case: the seconds per call of each contender."""

    case: str
    threads: int
    elements: int
    moved: int
    seconds: dict[str, float]


class Result(NamedTuple):
    """Hold a measured quantity with its unit, its goal as text, and whether it meets the goal."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool


class Summary(NamedTuple):
    """Hold one case at one number of threads: the seconds that each process measured for each contender.

    Attributes
    ----------
    case : str
        The name of the case.
    threads : int
        The number of threads.
    elements : int
        The number of elements that an update updates.
    moved : int
        The bytes that an update of fastmomentum moves.
    runs : dict from str to list of float
        The seconds of each contender, one number per process.
    """

    case: str
    threads: int
    elements: int
    moved: int
    runs: dict[str, list[float]]

    @property
    def label(self) -> str:
        """The case and the number of threads."""
        return f"{self.case}, {self.threads} thread{'s' * (self.threads > 1)}"

    def seconds(self, name: str) -> float:
        """Return the median of a contender's seconds over the processes."""
        return median(self.runs[name])

    def ratio(self, name: str, base: str = OURS) -> float:
        """Return the median over the processes of a contender's seconds over those of `base` in the same process."""
        return median(theirs / mine for theirs, mine in zip(self.runs[name], self.runs[base], strict=True))

    @property
    def rate(self) -> float:
        """The rate of an update of fastmomentum, in GB/s."""
        return self.moved / self.seconds(OURS) / 1e9

    @property
    def ceiling(self) -> float | None:
        """The rate of fastmomentum over that of the fastest stream of as many bytes; None if no stream was measured."""
        found = [self.ratio(name) for name in self.runs if name.startswith(CEILING)]
        return min(found) if found else None

    @property
    def peers(self) -> list[str]:
        """The names of the contenders other than fastmomentum, without the streams."""
        return [name for name in self.runs if name != OURS and not name.startswith(CEILING)]


def summaries(lines: Iterable[Line]) -> list[Summary]:
    """Return a summary of each case at each number of threads, with the contenders that all processes measured."""
    lines_by_case: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        lines_by_case.setdefault((line["case"], line["threads"]), []).append(line)
    found = []
    for (case, threads), lines_of_case in lines_by_case.items():
        first = lines_of_case[0]
        names = [name for name in first["seconds"] if all(name in line["seconds"] for line in lines_of_case)]
        runs = {name: [line["seconds"][name] for line in lines_of_case] for name in names}
        found.append(Summary(case, threads, first["elements"], first["moved"], runs))
    return found


def at_least(name: str, value: float, goal: float, unit: str = "×") -> Result:
    """Return a result that meets its goal if `value` ≥ `goal`."""
    return Result(name, value, unit, f"≥ {goal:g}", value >= goal)


def below(name: str, value: float, goal: float, unit: str) -> Result:
    """Return a result that meets its goal if `value` < `goal`."""
    return Result(name, value, unit, f"< {goal:g}", value < goal)


NUMPY_GOALS = {100: 1.3, 10_000: 2.0, 100_000: 2.0, 1_000_000: 1.8, 16_000_000: 1.8}
"""The least seconds of NumPy in place over ours, by size in float32; beyond the caches their bytes have 2.2 to 2.4."""

TORCH_FUSED_GOALS = {
    "float32, n = 100": 10.0,
    "1,000 arrays of 100": 25.0,
    "1,000 arrays of 1,000": 8.0,
    "ResNet-50, 161 arrays": 1.0,
    "GPT-2 small, 148 arrays": 1.0,
}
"""The least seconds of torch's fused step over ours, by case; 0.97 in all other cases."""


def goal_results(found: list[Summary]) -> Iterator[Result]:
    """Yield the measured value of every quantity that has a goal."""
    for each in found:
        label = each.label
        is_float32 = each.case.startswith("float32")
        if "NumPy in place" in each.runs and is_float32 and each.elements in NUMPY_GOALS:
            goal = NUMPY_GOALS[each.elements]
            yield at_least(f"NumPy in place over ours, {label}", each.ratio("NumPy in place"), goal)
        if "torch fused" in each.runs:
            goal = TORCH_FUSED_GOALS.get(each.case, 0.97)
            yield at_least(f"torch fused over ours, {label}", each.ratio("torch fused"), goal)
        if is_float32 and each.elements in (16_000_000, 64_000_000):
            if "the loop in C" in each.runs:
                yield at_least(f"the loop in C over ours, {label}", each.ratio("the loop in C"), 0.95)
            if each.ceiling:
                yield at_least(f"our rate over the ceiling, {label}", each.ceiling, 0.95)
        if each.case.startswith("options"):
            over_expected = (each.ratio("with max_norm") - 1.0) * ELEMENTS_MOVED
            yield below(f"time added by max_norm, over that expected from its bytes, {label}", over_expected, 1.2, "×")
        if each.case == "overhead, n = 16":
            yield below("fm.step with all checks, n = 16", each.seconds("fm.step") * 1e6, 3.0, "µs")
        if each.case == "overhead, n = 100":
            kernel, new = "the bare kernel", "with a new gradient"
            yield below("opt.step over the compiled kernel alone, n = 100", each.ratio(OURS, kernel), 1.6, "×")
            name = "opt.step with a new gradient over the compiled kernel alone, n = 100"
            yield below(name, each.ratio(new, kernel), 4.0, "×")
        if each.case.startswith("spectral radii"):
            points = each.elements / each.seconds(OURS) / 1e6
            yield at_least(f"{each.case} points", points, 10.0, "million per second")
        if each.case == "fresh processes":
            for name in each.runs:
                goal = 0.1 if name.startswith("import") else 4.0 if name.endswith("threads") else 1.5
                yield below(f"new process: {name}", each.seconds(name), goal, "s")


class Regime(NamedTuple):
    """Hold the predicted and the measured rate of one size, in GB/s, and the memory that its arrays fit into.

    Attributes
    ----------
    name : str
        The smallest cache that holds p, v and g, such as "L1", or "DRAM".
    elements : int
        The size of the array.
    threads : int
        The number of threads.
    predicted : float
        The rate of the fastest stream that moves as many bytes.
    measured : float
        The rate of an update of fastmomentum.
    """

    name: str
    elements: int
    threads: int
    predicted: float
    measured: float


def regimes(found: list[Summary], caches: dict[str, int]) -> Iterator[Regime]:
    """Yield the regime of every size in float32 with streams; `caches` has the bytes of each cache."""
    for each in found:
        if each.case.startswith("float32") and each.ceiling:
            bytes_of_arrays = each.moved * 3 // ELEMENTS_MOVED
            name = next((level for level, size in caches.items() if bytes_of_arrays <= size), "DRAM")
            yield Regime(name, each.elements, each.threads, each.rate / each.ceiling, each.rate)
