"""Keep what is made of rules: kernels by formula, and other results with the rule that they are made of.

Every cache is bounded. What an optimiser uses it holds itself, so that no cache can release it.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from fastmomentum.rules.record import KEPT, Record

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
AnyRecord = TypeVar("AnyRecord", bound=Record)

KERNELS = 256
"""The number of kernels that are kept, those that were asked for last."""

RESULTS = 64
"""The number of results of one function that are kept with a rule, those that were asked for last."""

_kernels: dict[Hashable, Any] = {}
_bounded: list[Callable[[], None]] = []
_records: WeakSet[Record] = WeakSet()


def cached_kernel(key: Hashable, make: Callable[[], Result]) -> Result:
    """Return the kernel that is cached under this key; make it if there is none.

    Keys hold a rule's structure, not the rule: rules of one formula share their kernel.
    """
    found: Result | None = _kernels.pop(key, None)
    if found is None:
        found = make()
    _kernels[key] = found  # at the end: the first key is the one that was not asked for the longest
    if len(_kernels) > KERNELS:
        _kernels.pop(next(iter(_kernels)), None)
    return found


def bounded(maxsize: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Return the decorator that keeps the last results of a function of values, which :func:`clear_cache` releases."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        cached: Any = lru_cache(maxsize, typed=True)(function)
        _bounded.append(cached.cache_clear)
        result: Callable[Arguments, Result] = cached
        return result

    return decorate


def kept_with_rule(
    function: Callable[Concatenate[AnyRecord, Arguments], Result],
) -> Callable[Concatenate[AnyRecord, Arguments], Result]:
    """Keep the last results of a function of a rule with the rule, so that they are released together with it."""

    @wraps(function)
    def kept(record: AnyRecord, /, *args: Arguments.args, **named: Arguments.kwargs) -> Result:
        caches: dict[Any, Any] | None = vars(record).get(KEPT)
        if caches is None:
            caches = vars(record).setdefault(KEPT, {})
            _records.add(record)
        cached = caches.get(function)
        if cached is None:
            cached = caches.setdefault(function, lru_cache(RESULTS, typed=True)(partial(function, record)))
        result: Result = cached(*args, **named)
        return result

    return kept


def clear_cache() -> None:
    """Release all kernels that no optimiser uses, and all else that is kept of rules.

    The next step of a rule compiles its kernel again. Optimisers go on as before, and the functions of
    :mod:`fastmomentum.jit` that your code holds stay valid.

    Notes
    -----
    Rules of one formula share one kernel, also if a factory makes them in a loop; the last 256 kernels are kept. The
    machine code of a kernel and the types that Numba found for it, 2 to 3 MB, stay in Numba until the process ends, as
    Numba does not release them (measured with Numba 0.68); this function releases about 0.3 MB a kernel.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p, v = np.ones(2), np.zeros(2)
    >>> fm.step(p, v, np.ones(2), lr=0.5)
    >>> fm.clear_cache()
    >>> fm.step(p, v, np.ones(2), lr=0.5)
    """
    _kernels.clear()
    for clear in _bounded:
        clear()
    for record in list(_records):
        vars(record).pop(KEPT, None)
