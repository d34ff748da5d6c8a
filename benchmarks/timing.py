"""Time functions that alternate within one process."""

from collections.abc import Callable, Mapping
from gc import disable, enable
from statistics import median
from time import perf_counter, sleep

TARGET = 2e-3
"""The seconds that one contender should take in a round: a short function is called many times, a long one once."""

PAUSE = 2e-3
"""The seconds of sleep before each contender, in which the threads of the contender before it come to rest.

OpenMP's threads spin for a while after each parallel region, and hold the cores while the next contender runs. After
the pause one call that is not timed wakes the contender's own threads, if its calls are short. With pause and call
every contender takes in alternation the time that it takes alone (two threads, n = 100 to 10⁶); without them numexpr
took 2.6 times as long.
"""


def calls_per_round(run: Callable[[], object], target: float = TARGET) -> int:
    """Return the number of calls of `run` that take about `target` seconds, at least 1."""
    run()
    calls = 1
    while True:
        begin = perf_counter()
        for _ in range(calls):
            run()
        spent = perf_counter() - begin
        if spent >= target / 4:
            return max(1, round(calls * target / spent))
        calls *= 4


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the seconds per call of every contender: the median over rounds in which each contender runs in turn.

    If the machine is shared, a slow minute slows all contenders alike, and the median ignores rare delays. Every other
    round runs in reverse order, so that a contender does not always follow the same one.
    """
    calls = {name: calls_per_round(run) for name, run in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    disable()
    try:
        for turn in range(rounds):
            for name, run in reversed(order) if turn % 2 else order:
                repeat = range(calls[name])
                sleep(PAUSE)
                if calls[name] > 1:
                    run()
                begin = perf_counter()
                for _ in repeat:
                    run()
                times[name].append((perf_counter() - begin) / calls[name])
    finally:
        enable()
    return {name: median(values) for name, values in times.items()}
