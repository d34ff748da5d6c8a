"""The memory that a repeated call allocates."""

import tracemalloc


def assert_allocates_nothing(run):
    """Check that `run(times)` keeps no memory, and that it makes no temporary array of 1,000 doubles or more."""
    run(20)
    tracemalloc.start()
    try:
        run(1000)  # Python keeps small tuples and floats for reuse: this fills those stores
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run(1000)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000  # bytes
    assert peak - before < 4000
