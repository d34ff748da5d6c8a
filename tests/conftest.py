"""Settings of the whole test run."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)  # so that a failure can be reproduced
if os.environ.get("CI"):
    settings.load_profile("ci")
