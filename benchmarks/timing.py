"""Timing sides in turn."""

from collections.abc import Callable, Mapping
from gc import disable, enable
from statistics import median
from time import perf_counter, sleep

TARGET = 2e-3
"""Seconds that one round of one side should take: many calls of a short one, one of a long one."""

PAUSE = 2e-3
"""Seconds in which the threads of the side before come to rest; a short call, not timed, then wakes one's own.

OpenMP's threads spin for a while after each region and hold the cores in the next side's turn. With the pause all sides
take, in turn, what they take alone (two threads, n = 100 to 10⁶; without, numexpr took 2.6 times as long).
"""


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


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds a call of every side: the median over rounds in which all sides run in turn.

    These machines are shared: a slow minute is one for all sides, and the median forgets what happens seldom. Every
    other round runs backwards, so that no side has the same one in front of it throughout.
    """
    calls = {name: calls_a_round(side) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    disable()
    try:
        for turn in range(rounds):
            for name, side in reversed(order) if turn % 2 else order:
                repeat = range(calls[name])
                sleep(PAUSE)
                if calls[name] > 1:
                    side()
                begin = perf_counter()
                for _ in repeat:
                    side()
                times[name].append((perf_counter() - begin) / calls[name])
    finally:
        enable()
    return {name: median(values) for name, values in times.items()}
