"""Settings of the whole test run."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)  # a failure there must be one that can be had again
if os.environ.get("CI"):
    settings.load_profile("ci")
