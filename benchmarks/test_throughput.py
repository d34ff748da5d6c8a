"""Run the same cases in pytest-benchmark, one contender at a time and not in alternation: ``pytest benchmarks``.

If the environment has ``CI``, only small sizes run.
"""

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import Case, cases
from fastmomentum.backends.cpu.threads import available

CASES = [
    pytest.param(case, name, threads, id=f"{case.name}, threads = {threads}, {name}")
    for threads in dict.fromkeys((1, available()))
    for case in cases(threads, smoke="CI" in os.environ)
    for name in case.makers()
]


@pytest.mark.parametrize(("case", "name", "threads"), CASES)
def test_update(case: Case, name: str, threads: int, benchmark: BenchmarkFixture) -> None:
    """Measure one contender of one case."""
    run = case.makers()[name]()
    if run is None:
        pytest.skip(f"{name} is not installed")
    run()  # the first call may compile
    benchmark.group = f"{case.name}, threads = {threads}"
    benchmark(run)
    if case.moved:
        benchmark.extra_info["bytes of a fused update"] = case.moved
        if benchmark.stats is not None:
            benchmark.extra_info["GB/s"] = case.moved / benchmark.stats.stats.median / 1e9
