"""Update NumPy arrays and CUDA arrays by momentum methods, in one compiled pass over memory and with equal bits.

The public names are loaded when they are first used: importing the package imports neither Numba nor SciPy.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmomentum import jit, rules, schedules, theory
    from fastmomentum import plots as plots
    from fastmomentum.backends.cpu.kernel_cache import set_cache
    from fastmomentum.backends.cpu.threads import set_threads
    from fastmomentum.optim.diagnose import diagnose
    from fastmomentum.optim.momentum import Momentum
    from fastmomentum.optim.optimizer import Optimizer
    from fastmomentum.optim.sparse import SparseRows
    from fastmomentum.optim.step import flatten, step
    from fastmomentum.optim.trace import Trace
    from fastmomentum.rules import stages
    from fastmomentum.rules.averages import averaged
    from fastmomentum.rules.base import Rule
    from fastmomentum.rules.cache import clear_cache
    from fastmomentum.rules.cautious import cautious
    from fastmomentum.rules.compose import chain
    from fastmomentum.rules.convert import convert
    from fastmomentum.rules.stage import Stage
    from fastmomentum.solvers import minimize

__version__ = "0.1.0"

_modules = {
    "Momentum": "optim.momentum",
    "Optimizer": "optim.optimizer",
    "Rule": "rules.base",
    "SparseRows": "optim.sparse",
    "Stage": "rules.stage",
    "Trace": "optim.trace",
    "averaged": "rules.averages",
    "cautious": "rules.cautious",
    "chain": "rules.compose",
    "clear_cache": "rules.cache",
    "set_cache": "backends.cpu.kernel_cache",
    "convert": "rules.convert",
    "diagnose": "optim.diagnose",
    "flatten": "optim.step",
    "minimize": "solvers",
    "set_threads": "backends.cpu.threads",
    "stages": "rules",
    "step": "optim.step",
}
"""The module that each public name is loaded from; public modules of this package are loaded by their own names."""

__all__ = [
    "Momentum",
    "Optimizer",
    "Rule",
    "SparseRows",
    "Stage",
    "Trace",
    "__version__",
    "averaged",
    "cautious",
    "chain",
    "clear_cache",
    "convert",
    "diagnose",
    "flatten",
    "jit",
    "minimize",
    "rules",
    "schedules",
    "set_cache",
    "set_threads",
    "stages",
    "step",
    "theory",
]


def __getattr__(name: str) -> Any:
    if name in _modules:
        value = getattr(import_module(f"{__name__}.{_modules[name]}"), name)
    elif name in __all__ or name == "plots":  # `import *` works without matplotlib, so plots is not in __all__
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__ if find_spec("matplotlib") is None else sorted([*__all__, "plots"])
