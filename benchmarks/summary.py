"""From the measurements of several processes to ratios, rates and goals."""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, NamedTuple

from benchmarks.contenders import OURS
from benchmarks.native import MOVED

CEILING = "ceiling: "


class Result(NamedTuple):
    """A headline: `value` in `unit`, and what it should be."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool


class Summary(NamedTuple):
    """One case at one number of threads, over all processes: medians of seconds, and of ratios taken within each."""

    case: str
    threads: int
    moved: int
    seconds: dict[str, float]
    ratio: dict[str, float]

    @property
    def rate(self) -> float:
        """GB/s that an update of ours moves."""
        return self.moved / self.seconds[OURS] / 1e9

    @property
    def ceiling(self) -> float | None:
        """The best rate of copy, scale and triad over ours; None where these were not measured."""
        rates = {name: MOVED[name] / MOVED["update"] / self.ratio[CEILING + name] for name in MOVED if self.has(name)}
        return max(rates.values()) if rates else None

    def has(self, name: str) -> bool:
        """Whether this stream was measured."""
        return CEILING + name in self.ratio


def summaries(lines: Iterable[dict[str, Any]]) -> list[Summary]:
    """What the processes printed, taken together."""
    together: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in lines:
        together.setdefault((line["case"], line["threads"]), []).append(line)
    found = []
    for (case, threads), runs in together.items():
        names = [name for name in runs[0]["seconds"] if all(name in run["seconds"] for run in runs)]
        seconds = {name: median(run["seconds"][name] for run in runs) for name in names}
        ratio = (
            {name: median(run["seconds"][name] / run["seconds"][OURS] for run in runs) for name in names}
            if OURS in names
            else {}
        )
        found.append(Summary(case, threads, runs[0]["bytes"], seconds, ratio))
    return found


def at_least(name: str, value: float, goal: float, unit: str = "×") -> Result:
    """More is better."""
    return Result(name, value, unit, f"≥ {goal:g}", value >= goal)


def below(name: str, value: float, goal: float, unit: str) -> Result:
    """Less is better."""
    return Result(name, value, unit, f"< {goal:g}", value < goal)


NUMPY = {"n = 10,000": 2.0, "n = 100,000": 2.0, "n = 1,000,000": 1.8, "n = 16,000,000": 1.8, "n = 100": 1.3}
"""Goals against NumPy in place; beyond the caches its 44 bytes for our 20 allow 2.2."""

FUSED = {
    "float32, n = 100": 10.0,
    "1,000 arrays of 100": 25.0,
    "1,000 arrays of 1,000": 8.0,
    "ResNet-50, 161 arrays": 1.0,
    "GPT-2 small, 148 arrays": 1.0,
}
"""Goals against torch's fused step; 0.97 elsewhere."""

MEMORY = ("float32, n = 16,000,000", "float32, n = 64,000,000")


def headlines(found: list[Summary]) -> Iterator[Result]:
    """What is aimed at, and what was measured."""
    for each in found:
        where = f"{each.case}, {each.threads} thread{'s' if each.threads > 1 else ''}"
        if "NumPy in place" in each.ratio and each.case.removeprefix("float32, ") in NUMPY:
            goal = NUMPY[each.case.removeprefix("float32, ")]
            yield at_least(f"NumPy in place over ours, {where}", each.ratio["NumPy in place"], goal)
        if "torch fused" in each.ratio and not each.case.startswith("float64"):
            yield at_least(f"torch fused over ours, {where}", each.ratio["torch fused"], FUSED.get(each.case, 0.97))
        if each.case in MEMORY and "the loop in C" in each.ratio:
            yield at_least(f"the loop in C over ours, {where}", each.ratio["the loop in C"], 0.95)
            if each.ceiling:
                yield at_least(f"our rate over the ceiling, {where}", 1.0 / each.ceiling, 0.95)
        if each.case.startswith("options"):
            share = (each.ratio["with max_norm"] - 1.0) * MOVED["update"]
            yield below(f"max_norm over its share of the bytes, {where}", share, 1.2, "×")
        if each.case == "overhead, n = 16":
            yield below("fm.step with all checks, n = 16", each.seconds["fm.step"] * 1e6, 3.0, "µs")
        if each.case == "overhead, n = 100":
            kernel = each.seconds["the bare kernel"]
            yield below("opt.step over the bare kernel, n = 100", each.seconds[OURS] / kernel, 1.6, "×")
            yield below("the same with a new gradient", each.seconds["with a new gradient"] / kernel, 4.0, "×")
        if each.case == "theory":
            yield at_least("spectral radii", 10.0 / each.seconds[OURS], 10.0, "million a second")
        if each.case == "fresh processes":
            for name, seconds in each.seconds.items():
                goal = 0.1 if name.startswith("import") else 4.0 if name.endswith("threads") else 1.5
                yield below(name, seconds, goal, "s")
