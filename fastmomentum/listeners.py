"""Who hears of a minimiser under way: SciPy's two forms of callback, and whoever reads what is printed."""

from collections.abc import Callable
from inspect import signature
from time import perf_counter
from typing import Any

from scipy.optimize import OptimizeResult

from fastmomentum import checks
from fastmomentum.descents import Descent, Told


def told_of(callback: Callable[..., Any] | None, disp: bool) -> Told | None:
    """What hears of a run: SciPy's two forms of callback, and lines that are printed about each second."""
    if callback is None and not disp:
        return None
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function; got {checks.shown(callback)}")
    whole = callback is not None and set(signature(callback).parameters) == {"intermediate_result"}
    last = perf_counter()

    def told(run: Descent) -> bool:
        nonlocal last
        if disp and perf_counter() - last > 1.0:
            last = perf_counter()
            print(f"step {run.steps:,}: objective {run.value:.10g}")
        if callback is None:
            return False
        try:
            if whole:
                callback(intermediate_result=OptimizeResult(x=run.point, fun=run.value, nit=run.steps))
            else:
                callback(run.point)
        except StopIteration:
            return True
        return False

    return told
