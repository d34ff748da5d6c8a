"""Python code in a process of its own."""

import os
import subprocess
import sys
import textwrap


def run_python(code, *options, timeout=120, **environment):
    """Run `code` in a new interpreter, check that it succeeds, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()
