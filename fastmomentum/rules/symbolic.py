"""Run a rule on symbols instead of numbers, to find the operations that it is made of.

A rule is a plain Python function of scalars. Called with :class:`Symbol` objects, it returns its own operations. No
source text is needed, so rules made by a factory or typed at a prompt can be read as well. :func:`evaluate` refuses a
rule that has a branch (the backends would differ), calls another function than :data:`FUNCTIONS` and ``numpy.where``,
or holds a numeric literal (a Python float beside a float32 gives float64 in compiled code, which is slower and has
other bits than NumPy).
"""

from collections.abc import Callable, Mapping, Sequence
from dis import get_instructions
from types import FunctionType
from typing import Any, NoReturn

import numpy as np

FUNCTIONS = {
    np.minimum: "minimum",
    np.maximum: "maximum",
    np.absolute: "absolute",
    np.sqrt: "sqrt",
    np.sign: "sign",
}
"""The functions that a rule may call beside the operators ``+ - * /`` and :data:`WHERE`; every backend has them."""

WHERE = "where"
"""The operation of ``numpy.where(a < b, x, y)``: x where the comparison holds, y elsewhere, also if a or b is NaN."""

COMPARISONS = ("<", "<=", ">", ">=")
"""The comparisons that numpy.where may have in a rule."""

ALLOWED = f"{', '.join(sorted(FUNCTIONS.values()))} and {WHERE}"


class Node:
    """Represent an operation on other nodes."""

    __slots__ = ("operands", "operation")

    def __init__(self, operation: str, operands: "tuple[Node, ...]" = ()) -> None:
        self.operation = operation
        self.operands = operands

    def __repr__(self) -> str:
        return f"{self.operation}({', '.join(map(repr, self.operands))})" if self.operands else self.operation


class Comparison(Node):
    """Represent the comparison of two values, which only the first argument of numpy.where may be."""

    __slots__ = ()

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """Raise the TypeError of any other use."""
        raise TypeError("it uses a comparison as a number or a condition; choose by numpy.where(a < b, x, y)")

    __bool__ = __array_ufunc__ = __and__ = __or__ = __xor__ = __invert__ = __neg__ = __abs__ = refuse

    def __array_function__(self, function: Any, types: Any, inputs: Any, keywords: Any) -> "Symbol":
        return where(function, inputs, keywords)


class Symbol(Node):
    """Represent a value inside a rule: a named argument, or an operation on other symbols."""

    __slots__ = ()

    def _with(self, operation: str, *others: object) -> "Symbol":
        return type(self)(operation, (self, *map(self._operand, others)))

    def _operand(self, other: object) -> "Symbol":
        if isinstance(other, Comparison):
            other.refuse()
        if not isinstance(other, Symbol):
            raise TypeError(f"it holds the literal {other!r}; make it a hyper-parameter, or derive a hyper-parameter")
        return other

    def __add__(self, other: object) -> "Symbol":
        return self._with("+", other)

    def __sub__(self, other: object) -> "Symbol":
        return self._with("-", other)

    def __mul__(self, other: object) -> "Symbol":
        return self._with("*", other)

    def __truediv__(self, other: object) -> "Symbol":
        return self._with("/", other)

    def __radd__(self, other: object) -> "Symbol":
        return self._operand(other) + self

    def __rsub__(self, other: object) -> "Symbol":
        return self._operand(other) - self

    def __rmul__(self, other: object) -> "Symbol":
        return self._operand(other) * self

    def __rtruediv__(self, other: object) -> "Symbol":
        return self._operand(other) / self

    def __neg__(self) -> "Symbol":
        return self._with("negative")

    def __abs__(self) -> "Symbol":
        return self._with("absolute")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: object, **keywords: object) -> "Symbol":
        if ufunc not in FUNCTIONS or method != "__call__" or keywords:
            raise TypeError(f"it calls numpy.{ufunc.__name__}; allowed are {ALLOWED}")
        if not isinstance(inputs[0], Symbol):
            raise TypeError(f"it holds the literal {inputs[0]!r}; make it a hyper-parameter")
        return inputs[0]._with(FUNCTIONS[ufunc], *inputs[1:])

    def __array_function__(self, function: Any, types: Any, inputs: Any, keywords: Any) -> "Symbol":
        return where(function, inputs, keywords)

    def _compared(self, operation: str, other: object) -> "Comparison":
        return Comparison(operation, (self, self._operand(other)))

    def __lt__(self, other: object) -> "Comparison":
        return self._compared("<", other)

    def __le__(self, other: object) -> "Comparison":
        return self._compared("<=", other)

    def __gt__(self, other: object) -> "Comparison":
        return self._compared(">", other)

    def __ge__(self, other: object) -> "Comparison":
        return self._compared(">=", other)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(f"it branches on, converts or raises to a power; a rule is + - * /, {ALLOWED}")

    def _refuse_in_place(self, *_: object) -> NoReturn:
        raise TypeError("it assigns in place (v *= mu), which would write to a whole array: write v = mu * v")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = _refuse_in_place
    __bool__ = __float__ = __int__ = __index__ = _refuse
    __pow__ = __rpow__ = __mod__ = __floordiv__ = __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__


def where(function: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Symbol:
    """Return the symbol of a call of numpy.where; refuse any other function of NumPy."""
    if function is not np.where:
        raise TypeError(f"it calls numpy.{function.__name__}; allowed are {ALLOWED}")
    if len(inputs) != 3 or keywords:
        raise TypeError("where takes a comparison and two values: numpy.where(a < b, x, y)")
    condition, *values = inputs
    if not isinstance(condition, Comparison):
        raise TypeError("the first argument of where must be one comparison: <, <=, > or >=")
    for value in values:
        if isinstance(value, Comparison):
            value.refuse()
        if not isinstance(value, Symbol):
            raise TypeError(f"it holds the literal {value!r}; make it a hyper-parameter, or derive a hyper-parameter")
    result: Symbol = type(values[0])(WHERE, (condition, *values))
    return result


class Term(Symbol):
    """Represent a value inside the formula of a derived hyper-parameter, which may contain numbers."""

    __slots__ = ()

    def _operand(self, other: object) -> Symbol:
        return Term(repr(float(other))) if isinstance(other, int | float) else super()._operand(other)


def evaluate_formula(function: Callable[..., Any], arguments: Sequence[str]) -> Symbol:
    """Return the operations of a function that derives one hyper-parameter from others in double precision.

    Raises
    ------
    TypeError
        If the function does more than arithmetic.

    Examples
    --------
    >>> evaluate_formula(lambda lr, decay: 1 - lr * decay, ("lr", "decay"))
    -(1.0, *(lr, decay))
    """
    try:
        result = function(*map(Term, arguments))
        return Term("unused")._operand(result)  # a constant result becomes a Term, too
    except Exception as error:
        raise TypeError(f"{function.__name__}({', '.join(arguments)}) is not arithmetic alone: {error}") from error


def evaluate(function: Callable[..., Any], arguments: Sequence[str], results: int | None = None) -> Any:
    """Return the operations of a rule's or stage's function, by calling it with symbols of these names.

    Parameters
    ----------
    function : callable
        A scalar function of ``len(arguments)`` positional arguments.
    arguments : sequence of str
        The names of the symbols.
    results : int, optional
        Length of the tuple that the function must return; None if it must return a single value.

    Returns
    -------
    Symbol or tuple of Symbol
        The results.

    Raises
    ------
    TypeError
        If the function does not take these arguments, returns another number of results, or does anything that a rule
        must not do.

    Examples
    --------
    >>> evaluate(lambda p, g, lr: (p - lr * g,), ("p", "g", "lr"), 1)
    (-(p, *(lr, g)),)
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"update or stage: expected a plain Python function, which Numba can compile; got {function!r}")
    called = f"{function.__name__}({', '.join(arguments)})"
    if any("JUMP" in step.opname or "FOR_ITER" in step.opname for step in get_instructions(function)):
        raise TypeError(
            f"{called} cannot serve as an update: it branches or loops; a rule is assignments and one return"
        )
    try:
        outcome = function(*map(Symbol, arguments))
    except Exception as error:
        why = str(error)
        if type(error).__module__.startswith("numba"):  # its compiler does not know the symbols
            why = "it calls a compiled function; decorate that one with numba.extending.register_jitable instead"
        raise TypeError(f"{called} cannot serve as an update: {why}") from error
    found = outcome if isinstance(outcome, tuple) else (outcome,)
    if isinstance(outcome, tuple) != (results is not None) or len(found) != (results or 1):
        expected = "one value" if results is None else f"a tuple of {results}"
        raise TypeError(f"{called} must return {expected}; it returned {outcome!r}")
    for value in found:
        if isinstance(value, Comparison):
            raise TypeError(f"{called} returns a comparison; every result must be a number")
        if not isinstance(value, Symbol):
            raise TypeError(f"{called} returns the literal {value!r}; every result must come from the arguments")
    return outcome


Formula = tuple[tuple[Any, ...], ...]
"""The operations of a function: for each its name and the numbers of its operands; at last those of the results."""


def formula(function: Callable[..., Any], count: int) -> Formula:
    """Return the operations of a function of `count` scalars that :func:`evaluate` accepts, for comparison.

    Two functions that have equal ones compute the same bits, also if they use other names. An operation is its name and
    the numbers of its operands: the arguments have the first numbers, then each operation in order. The last entry has
    the numbers of the results.

    Examples
    --------
    >>> formula(lambda p, g, lr: p - lr * g, 3)
    (('*', 2, 1), ('-', 0, 3), (4,))
    >>> formula(lambda x, y, rate: x - rate * y, 3) == formula(lambda p, g, lr: p - lr * g, 3)
    True
    """
    arguments: list[Node] = [Symbol(str(i)) for i in range(count)]
    outcome = function(*arguments)
    numbers = {symbol: i for i, symbol in enumerate(arguments)}
    known: dict[tuple[Any, ...], int] = {}
    waiting = list(outcome) if isinstance(outcome, tuple) else [outcome]
    results = tuple(waiting)
    while waiting:
        symbol = waiting[-1]
        missing = [operand for operand in symbol.operands if operand not in numbers]
        if symbol in numbers or not missing:
            waiting.pop()
            operation = (symbol.operation, *(numbers[operand] for operand in symbol.operands))
            if symbol not in numbers:
                numbers[symbol] = known.setdefault(operation, count + len(known))
        waiting += missing
    return *known, tuple(numbers[result] for result in results)


def follow(formula: Formula, arguments: Sequence[Any], apply: Callable[..., Any]) -> list[Any]:
    """Return the results of a :func:`formula` for these arguments; ``apply(name, *operands)`` does one operation.

    Examples
    --------
    >>> follow(formula(lambda p, g, lr: p - lr * g, 3), ("p", "g", "lr"), lambda name, a, b: f"({a} {name} {b})")
    ['(p - (lr * g))']
    """
    *operations, results = formula
    values = list(arguments)
    for name, *operands in operations:
        values.append(apply(name, *[values[i] for i in operands]))
    return [values[i] for i in results]


TEXTS = dict.fromkeys(("+", "-", "*", "/", *COMPARISONS), "{0} {operation} {1}") | {"negative": "-{0}"}
"""The Python expression of each operation; operations without an entry are calls of a function of their name."""


def operations_text(name: str, function: Callable[..., Any], count: int) -> str:
    """Return the text of a function that does the operations of another one, each on a line of its own.

    Examples
    --------
    >>> print(operations_text("update", lambda p, g, lr: p - lr * np.sign(g), 3))
    def update(x0, x1, x2):
        x3 = sign(x1)
        x4 = x2 * x3
        x5 = x0 - x4
        return x5
    <BLANKLINE>
    """
    *operations, results = formula(function, count)
    lines = [f"def {name}({', '.join(f'x{i}' for i in range(count))}):"]
    for number, (operation, *operands) in enumerate(operations, count):
        values = [f"x{i}" for i in operands]
        call = f"{operation}({', '.join(values)})"
        text = TEXTS[operation].format(*values, operation=operation) if operation in TEXTS else call
        lines.append(f"    x{number} = {text}")
    is_tuple = isinstance(function(*(Symbol(str(i)) for i in range(count))), tuple)
    lines.append(f"    return {', '.join(f'x{i}' for i in results)}{',' * (is_tuple and len(results) == 1)}")
    return "\n".join(lines) + "\n"
