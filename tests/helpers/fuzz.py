"""How much a test tries: a part of all cases in every run, and all or many more with the option --long."""

from hypothesis import HealthCheck, settings

USUAL = 100
"""The number of examples that Hypothesis draws if a test does not say how many."""


def is_long():
    """Return whether the tests run with --long."""
    return settings.default.max_examples > USUAL


def examples(count, **options):
    """Return the settings of a test that draws this number of examples, and many times as many with --long."""
    factor = settings.default.max_examples // USUAL
    return settings(deadline=None, max_examples=factor * count, suppress_health_check=[HealthCheck.too_slow], **options)
