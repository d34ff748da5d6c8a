"""Write and compile one scalar function that calls several: the composed update of a rule."""

import keyword
import linecache
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

Function = Callable[..., Any]
"""A function of scalars, which also works on arrays, fractions and symbols."""

Wrap = Callable[..., Function]
"""A decorator ``wrap(function, count)`` that a backend puts on a function before compiled code calls it.

`count` is the number of arguments of a function of a rule; it is left out for functions that only call such functions.
"""


def identity(function: Function, count: int = 0) -> Function:
    """Return the function unchanged: the wrap of plain Python."""
    return function


class Part(NamedTuple):
    """Hold one scalar function of a rule, and the names of the values that it reads and writes.

    The names are "p" (parameter), "g" (gradient), "x" (the point after the gradient step of a position rule, before its
    extrapolation), those of the rule's state slots, and any others for values that one part passes to a later one.

    Attributes
    ----------
    function : callable
        ``function(*reads, *hyper) -> writes``.
    reads, writes : tuple of str
        The values that it takes and returns, in order.
    hyper : tuple of str
        The hyper-parameters that it takes after the values, by their names in its record.
    packed : bool
        Whether the function returns a tuple even of one value, as the update function of a rule does.
    """

    function: Function
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    hyper: tuple[str, ...]
    packed: bool = False


class Call(NamedTuple):
    """Hold one line of a composed function: a function, the variables it takes, and the variables it sets."""

    function: Function
    takes: tuple[str, ...]
    sets: tuple[str, ...]
    packed: bool


def identifiers(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return a Python identifier for each name, all different: the name itself if it is free.

    Examples
    --------
    >>> identifiers(("p", "low", "low", "lambda"))
    ['p', 'low', 'low_2', 'lambda_2']
    """
    used = set(taken)
    found = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        candidate, count = plain, 1
        while candidate in used or keyword.iskeyword(candidate) or not candidate.isidentifier():
            count += 1
            candidate = f"{plain}_{count}" if plain.isidentifier() else f"_{plain}_{count}"
        used.add(candidate)
        found.append(candidate)
    return found


def write_source(name: str, arguments: Sequence[str], calls: Sequence[Call], results: Sequence[str]) -> str:
    """Return the text of a function that makes these calls one after another."""
    functions = _function_names(name, arguments, calls)
    lines = [f"def {name}({', '.join(arguments)}):"]
    for call in calls:
        target = f"({call.sets[0]},)" if call.packed and len(call.sets) == 1 else ", ".join(call.sets)
        lines.append(f"    {target} = {functions[call.function]}({', '.join(call.takes)})")
    lines.append(f"    return {', '.join(results)}{',' * (len(results) == 1)}")
    return "\n".join(lines) + "\n"


def assemble(
    name: str, arguments: Sequence[str], calls: Sequence[Call], results: Sequence[str], wrap: Wrap = identity
) -> Function:
    """Return a function that makes these calls one after another, each callee put through `wrap`.

    The function is compiled from text, as dataclasses are. A loop over closures that take ``*arguments`` would do the
    same, but Numba has to type and lower each of them.

    Parameters
    ----------
    name : str
        The name of the function.
    arguments, results : sequence of str
        The variables that the function takes and returns; it always returns a tuple.
    calls : sequence of Call
        The lines of its body.
    wrap : callable, optional
        The decorator of the backend.
    """
    functions = _function_names(name, arguments, calls)
    counts = {call.function: len(call.takes) for call in calls}
    namespace = {called: wrap(function, counts[function]) for function, called in functions.items()}
    return define(name, write_source(name, arguments, calls, results), namespace)


FILES = 1024
"""The number of texts that linecache keeps, those that were defined last."""

_files: dict[str, None] = {}


def define(name: str, text: str, namespace: Mapping[str, Any]) -> Function:
    """Return the function `name` that this text defines, in which the names of `namespace` are known.

    The last texts are kept in :mod:`linecache`, so that tracebacks and coverage show it.
    """
    filename = f"<fastmomentum {name} {sha256(text.encode()).hexdigest()[:16]}>"
    _files[filename] = _files.pop(filename, None)  # at the end: the first one was not defined for the longest time
    if len(_files) > FILES:
        forgotten = next(iter(_files))
        _files.pop(forgotten, None)
        linecache.cache.pop(forgotten, None)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    variables: dict[str, Any] = {"__name__": __name__, **namespace}
    exec(compile(text, filename, "exec"), variables)
    function: Function = variables[name]
    return function


def _function_names(name: str, arguments: Sequence[str], calls: Sequence[Call]) -> dict[Function, str]:
    """Return the name by which the composed function `name` calls each function; none is its own or a variable's."""
    functions = list(dict.fromkeys(call.function for call in calls))
    taken = {name, *arguments, *(variable for call in calls for variable in call.sets)}
    names = [function.__name__.lstrip("_") or "function" for function in functions]
    names = [f"{called}_function" if called in taken else called for called in names]
    return dict(zip(functions, identifiers(names, taken=taken)))
