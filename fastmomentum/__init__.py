"""Momentum as a compiled primitive: every convention of it, one pass over memory, the same bits on every backend.

The public names are loaded when they are first used: importing the package imports neither Numba nor SciPy.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmomentum import jit, rules, schedules, stages, theory
    from fastmomentum import plots as plots
    from fastmomentum.averaging import averaged
    from fastmomentum.backends.threads import set_threads
    from fastmomentum.chains import chain
    from fastmomentum.conventions import convert
    from fastmomentum.diagnosis import diagnose
    from fastmomentum.flat import flatten
    from fastmomentum.optimizer import Momentum
    from fastmomentum.records import Rule, Stage
    from fastmomentum.solvers import minimize
    from fastmomentum.sparse import SparseRows
    from fastmomentum.traces import Trace
    from fastmomentum.update import step

__version__ = "0.1.0"

_home = {
    "Momentum": "optimizer",
    "Rule": "records",
    "SparseRows": "sparse",
    "Stage": "records",
    "Trace": "traces",
    "averaged": "averaging",
    "chain": "chains",
    "convert": "conventions",
    "diagnose": "diagnosis",
    "flatten": "flat",
    "minimize": "solvers",
    "set_threads": "backends.threads",
    "step": "update",
}

__all__ = [
    "Momentum",
    "Rule",
    "SparseRows",
    "Stage",
    "Trace",
    "__version__",
    "averaged",
    "chain",
    "convert",
    "diagnose",
    "flatten",
    "jit",
    "minimize",
    "rules",
    "schedules",
    "set_threads",
    "stages",
    "step",
    "theory",
]


def __getattr__(name: str) -> Any:
    if name in _home:
        value = getattr(import_module(f"{__name__}.{_home[name]}"), name)
    elif name in __all__ or name == "plots":  # which __all__ leaves out: import * goes without matplotlib
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__ if find_spec("matplotlib") is None else sorted([*__all__, "plots"])
