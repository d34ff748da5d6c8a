"""Rules as functions of scalars, for code that Numba compiles."""

from typing import Any

from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

from fastmomentum.backends.embedded import check_count, named
from fastmomentum.backends.loops import FLOATS, NUMBERS, make_cast
from fastmomentum.records import Update


def make_scalar(rule: Update) -> Any:
    """``scalar(p, *state, g, *hyper) -> (p, *state)``, all in the dtype of p."""
    names = ("p", *rule.slots, "g", *rule.hyper)
    compute, update, cast = rule.build(), rule.build(register_jitable), make_cast(len(names) - 1)

    def scalar(*given: Any) -> Any:
        check_count(names, given, TypeError)
        return compute(*given)

    @overload(scalar, strict=False)
    def compiled(*given: Any) -> Any:
        check_count(names, given, TypingError)
        if types.unliteral(given[0]) not in FLOATS:
            raise TypingError(f"p: expected float32 or float64; got {given[0]}")
        for name, each in zip(names, given):
            if not isinstance(each, NUMBERS):
                raise TypingError(f"{name}: expected a number; got {each}")
        return lambda *given: update(given[0], *cast(given[1:], given[0]))

    return named(scalar, names)
