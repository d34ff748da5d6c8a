"""How many random examples a test draws: few in every run, many with the option --long."""

from hypothesis import HealthCheck, settings

USUAL = 100
"""The number of examples that Hypothesis draws if a test does not say how many."""


def examples(count, **options):
    """Return the settings of a test that draws this number of examples, and many times as many with --long."""
    factor = settings.default.max_examples // USUAL
    return settings(deadline=None, max_examples=factor * count, suppress_health_check=[HealthCheck.too_slow], **options)
