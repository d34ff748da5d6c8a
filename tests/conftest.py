"""Settings of the whole test run."""

from itertools import groupby

import pytest
from hypothesis import settings

from fastmomentum.backends.cpu import kernel_cache
from fastmomentum.rules import cache
from tests.helpers.fuzz import USUAL

LONG = 20
"""The factor by which --long multiplies the number of random examples."""

# The examples are the same in every run, so that a failure can be reproduced; --long draws new ones.
settings.register_profile("short", derandomize=True, database=None, max_examples=USUAL)
settings.register_profile("long", max_examples=USUAL * LONG)


@pytest.fixture
def compiled_here(monkeypatch):
    """Let this process compile all kernels of the test itself, and load none that another process has compiled."""
    monkeypatch.setattr(kernel_cache, "_folder", None)
    cache.clear_cache()


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help=f"run every variant, and draw {LONG} times as many examples")


def pytest_configure(config):
    settings.load_profile("long" if config.getoption("long") else "short")
    cache.KERNELS = 10_000  # the tests use more rules than a program does, and would compile many of them again


def place(item):
    """Return the sum of the numbers that a variant's values have in the tables of ``parametrize``, each from 0."""
    number, total = next(iter(item.callspec.indices.values())), 0  # pytest numbers the variants; the last table is fast
    for mark in reversed([*item.iter_markers("parametrize")]):
        number, digit = divmod(number, len(mark.args[1]))
        total += digit
    return total


def pytest_collection_modifyitems(config, items):
    """Leave out variants of tests with the mark ``sampled(n)``: run those whose place is a multiple of n.

    If a table has n values or more, every combination of values of the other tables is run with some value of it. A
    test that is asked for by the name of its variant is always run.
    """
    if config.getoption("long"):
        return
    kept = []
    for _, variants in groupby(items, lambda item: item.nodeid.split("[")[0]):
        variants = list(variants)
        mark = variants[0].get_closest_marker("sampled")
        chosen = [item for item in variants if mark is None or place(item) % mark.args[0] == 0]
        kept += chosen or variants[:1]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
