"""Looking at what a repeated call allocates."""

import tracemalloc


def assert_allocates_nothing(run):
    """`run(times)` leaves nothing behind and makes no temporary array of 1,000 doubles or more."""
    run(20)
    tracemalloc.start()
    try:
        run(1000)  # Python keeps small tuples and floats for later: let these stores fill first
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run(1000)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000  # bytes
    assert peak - before < 4000
