"""Settings of the whole test run."""

from hypothesis import settings

from fastmomentum.rules import cache
from tests.helpers.fuzz import USUAL

LONG = 20
"""The factor by which --long multiplies the number of random examples."""

# The examples are the same in every run, so that a failure can be reproduced; --long draws new ones.
settings.register_profile("short", derandomize=True, database=None, max_examples=USUAL)
settings.register_profile("long", max_examples=USUAL * LONG)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help=f"draw new random examples, {LONG} times as many")


def pytest_configure(config):
    cache.KERNELS = 10_000  # the tests use more rules than a program does, and would compile many of them again
    settings.load_profile("long" if config.getoption("long") else "short")
