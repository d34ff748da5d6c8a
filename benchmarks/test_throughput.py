"""The same cases for pytest-benchmark: ``pytest benchmarks``; each side of its own, without taking turns."""

from typing import Any

import pytest

from benchmarks.cases import Case, cases
from benchmarks.contenders import OURS
from fastmomentum.backends.threads import available

CASES = [
    pytest.param(case, id=f"{case.name}, threads = {threads}")
    for threads in dict.fromkeys((1, available()))
    for case in cases(threads, smoke=False)
    if case.moved
]
SIDES = (OURS, "NumPy, four lines", "NumPy in place", "numexpr", "torch fused", "optax, jitted", "the loop in C")


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("case", CASES)
def test_update(case: Case, name: str, benchmark: Any) -> None:
    """One side of one case."""
    side = case.sides().get(name)
    if side is None:
        pytest.skip("not installed, or not at this number of threads")
    benchmark.group = case.name
    benchmark.extra_info["bytes"] = case.moved
    benchmark(side)
    if benchmark.stats is not None:
        benchmark.extra_info["GB/s"] = case.moved / benchmark.stats.stats.median / 1e9
