"""Make the row function of a rule, which turns the values of one step into the hyper-parameters of the kernel.

Settings may change at every step, so this has to cost about a microsecond: the function is written as text for the rule
and for the settings that it gets, and compiled once. It accepts only values that are certainly in their ranges. It
leaves any other value to :func:`~fastmomentum.rules.record.check_hyper`, which decides exactly and raises the error.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np

from fastmomentum.checks import FINITE, Range
from fastmomentum.rules.assemble import define, identifiers
from fastmomentum.rules.cache import bounded, kept_with_rule
from fastmomentum.rules.record import STEP, Record, unknown_yet

RowFunction = Callable[[Sequence[float], int], tuple[float, ...] | None]
"""``row(values, step)`` returns the hyper-parameters in double precision; None if a value must be checked exactly.

Those that depend on sums or memory are 1; after all come the values from which they will be derived.
"""


Input = tuple[str, float | None, float | None]
"""A value that a row function gets: its name, and the least and the greatest number that the function accepts."""


@kept_with_rule
def make_row(record: Record, inputs: tuple[Input, ...], dtype: np.dtype[Any]) -> RowFunction:
    """Return the row function of a rule.

    Parameters
    ----------
    record : Record
        The rule.
    inputs : tuple of (str, float, float)
        The name of each value that the function gets, with the least and the greatest number that it accepts; None
        stands for no limit. Values that are no parameters of the rule are only checked, and parameters that are not
        among the inputs have their defaults.
    dtype : dtype
        The narrowest dtype of the arrays, which the derived hyper-parameters must fit.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> row = make_row(fm.rules.ema, (("lr", 0.0, 1e9), ("momentum", 0.0, 1.0)), np.dtype(np.float32))
    >>> row([0.1, 0.75], 1), row([0.1, 1.5], 1)
    ((0.1, 0.75, 0.25), None)
    """
    names = [name for name, _, _ in inputs]
    every = tuple(dict.fromkeys((*names, *record.parameters, STEP)))
    *variables, values = identifiers(
        (*every, "values"), taken=("inf", *(f"derived_{i}" for i in range(len(record.early_entries))))
    )
    known = dict(zip(every, variables))
    namespace: dict[str, Any] = {"inf": inf}
    given = [f"{low} <= {known[name]} <= {high}" for name, low, high in inputs if low is not None]
    defaults = {name: record.defaults.get(name, 0.0) for name in record.parameters if name not in (*names, STEP)}
    lines = [
        f"{known[name]} = {known[value] if isinstance(value, str) else float(value)}"
        for name, value in defaults.items()
    ]
    row, derived = [], []
    for place, (name, derive, sources) in enumerate(record.early_entries):
        if derive is None:
            row.append(f"{known[name]} + 0.0, ")  # which turns -0 into +0
            continue
        is_limited = name in record.ranges and derive is not unknown_yet
        low, high = inner_limits(record.range_of(name) if is_limited else FINITE, dtype)
        constants = [record.defaults[source] for source in sources if source in defaults and source in record.defaults]
        if len(constants) == len(sources) and not any(isinstance(value, str) for value in constants):
            number = derive(*map(float, constants))
            if low <= number <= high:
                row.append(f"{float(number)}, ")
                continue
        row.append(f"derived_{place}, ")
        namespace[f"derive_{place}"] = derive
        lines.append(f"derived_{place} = derive_{place}({', '.join(known[source] for source in sources)})")
        if low == 0.0:  # a number that is not 0 must not become 0 when it is cast
            low = float(np.finfo(dtype).tiny)
            derived.append(f"(derived_{place} == 0.0 or {low} <= derived_{place} <= {high})")
        else:
            derived.append(f"{low} <= derived_{place} <= {high}")
    body = [
        *([f"{''.join(f'{known[name]}, ' for name in names)} = {values}"] if names else []),
        *([f"if not ({' and '.join(given)}):", "    return None"] if given else []),
        *lines,
        *([f"if not ({' and '.join(derived)}):", "    return None"] if derived else []),
        f"return ({''.join(row)}{''.join(f'{known[name]}, ' for name in record.late_parameters)})",
    ]
    text = "\n    ".join([f"def row({values}, {known[STEP]}):", *body]) + "\n"
    row_function: RowFunction = define("row", text, namespace)
    return row_function


@bounded(1024)
def inner_limits(allowed: Range, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the least and the greatest number of this dtype in the range.

    A number between them stays between them when it is cast to the dtype, as rounding is monotone.

    Examples
    --------
    >>> inner_limits(Range(0.0, 1.0, below=True), np.dtype(np.float32))
    (0.0, 0.9999999403953552)
    """
    cast, limits = dtype.type, np.finfo(dtype)
    most = inf if allowed.infinite else float(limits.max)
    low, high = cast(max(allowed.low, -most)), cast(min(allowed.high, most))
    if float(low) < allowed.low or (allowed.above and float(low) == allowed.low):
        low = np.nextafter(low, cast(inf))
    if float(high) > allowed.high or (allowed.below and float(high) == allowed.high):
        high = np.nextafter(high, cast(-inf))
    return float(low), float(high)
