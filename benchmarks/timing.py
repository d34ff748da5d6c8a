"""Timing sides in turn."""

from collections.abc import Callable, Mapping
from gc import disable, enable
from statistics import median
from time import perf_counter

TARGET = 2e-3
"""Seconds that one round of one side should take: many calls of a short one, one of a long one."""


def calls_a_round(side: Callable[[], object], target: float = TARGET) -> int:
    """How many calls of `side` take about the target time."""
    side()
    calls = 1
    while True:
        begin = perf_counter()
        for _ in range(calls):
            side()
        spent = perf_counter() - begin
        if spent >= target / 4:
            return max(1, round(calls * target / spent))
        calls *= 4


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int = 101) -> dict[str, float]:
    """Seconds a call of every side: the median over rounds in which all sides run in turn.

    These machines are shared: what slows one side down slows its neighbour in time down too, and the median forgets
    what happens seldom.
    """
    calls = {name: calls_a_round(side) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    disable()
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                repeat = range(calls[name])
                begin = perf_counter()
                for _ in repeat:
                    side()
                times[name].append((perf_counter() - begin) / calls[name])
    finally:
        enable()
    return {name: median(values) for name, values in times.items()}
