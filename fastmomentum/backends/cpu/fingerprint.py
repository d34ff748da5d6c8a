"""Identify what a function that Numba is to compile consists of, so that its machine code can be kept on disk."""

import builtins
import dataclasses
import functools
import sys
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.core import config
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.core.typing.templates import Signature, builtin_registry

PACKAGE = __name__.partition(".")[0]

VERSIONED = frozenset({PACKAGE, "numba", "numpy", "math", "cmath", "operator", "builtins"})
"""The packages whose code belongs to :func:`environment`: a name stands for what is found in them."""

UNRELATED = ("CACHE_DIR", "NUM_THREADS", "DEFAULT_NUM_THREADS", "THREADING_LAYER", "COLOR_SCHEME")
"""Beginnings of the names of Numba's settings that do not change machine code."""


class UnknownPart(Exception):
    """A function holds an object whose meaning for compiled code is not known."""


@cache
def environment() -> str:
    """Return a digest of all that machine code depends on beside the function: sources, versions, processor, settings.

    The sources are all files of this package, by their contents.
    """
    root = Path(__file__).parents[2]
    found = sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    settings = {
        name: value
        for name, value in vars(config).items()
        if name.isupper() and not name.startswith(UNRELATED) and isinstance(value, str | int | float | None)
    }
    versions = (sys.implementation.cache_tag, sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    features = llvmlite.binding.get_host_cpu_features().flatten()
    processor = (llvmlite.binding.get_process_triple(), llvmlite.binding.get_host_cpu_name(), features)
    found.update(repr((versions, processor, sorted(settings.items(), key=str))).encode())
    return found.hexdigest()


def fingerprint(*parts: object) -> str | None:
    """Return a digest of functions, types and numbers, equal in every process; None if one of them is not known.

    Functions of this package count by name, as :func:`environment` holds their text, and by what they close over. All
    others count by their bytecode, their defaults, what they close over, and the globals that they use.
    """
    walk = _Walk()
    try:
        walk.add(parts)
    except UnknownPart:
        return None
    return sha256("\n".join([environment(), *walk.tokens]).encode()).hexdigest()


class _Walk:
    """Collect the tokens of an object and of all that it holds.

    Attributes
    ----------
    tokens : list of str
        One line for each object that was met, in order.
    """

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []

    def add(self, value: object) -> None:
        """Add the tokens of this object."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype):
            self._note(value.__class__.__name__, repr(value))
        elif isinstance(value, tuple | list):
            self._add_all(f"{value.__class__.__name__} {len(value)}", value)
        elif isinstance(value, dict):
            self._add_all(f"mapping {len(value)}", (item for pair in value.items() for item in pair))
        elif isinstance(value, np.generic):
            self._add_all("number", (value.dtype, value.tobytes()))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._add_all("array", (value.dtype, value.shape, value.tobytes()))
        elif isinstance(value, types.Dispatcher):
            self._add_all("dispatcher type", (value.dispatcher,))
        elif isinstance(value, types.Type):
            self._add_type(value)
        elif id(value) in self._seen:
            self._note("seen", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._add_object(value)

    def _add_object(self, value: object) -> None:
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, CodeType):
            self._add_code(value)
        elif isinstance(value, Dispatcher):
            self._add_all("dispatcher", (value.py_func, value.targetoptions))
        elif isinstance(value, _Intrinsic):
            self._add_all("intrinsic", (value._defn,))
        elif isinstance(value, Signature):
            self._add_all("signature", (value.args, value.return_type))
        elif isinstance(value, functools.partial):
            self._add_all("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, ModuleType) and _is_versioned(value.__name__):
            self._note("module", value.__name__)
        elif _is_versioned(module) and getattr(sys.modules.get(str(module)), str(name), None) is value:
            self._note("name", f"{module}.{name}")
        elif isinstance(value, np.ufunc) and getattr(np, str(name), None) is value:
            self._note("ufunc", str(name))
        elif dataclasses.is_dataclass(value) and _is_versioned(module):
            self._add_all("record", (value.__class__, *(getattr(value, f.name) for f in dataclasses.fields(value))))
        else:
            raise UnknownPart(value)

    def _add_function(self, function: FunctionType) -> None:
        known = _is_versioned(function.__module__) and not function.__code__.co_filename.startswith("<")
        if known:
            self._note("function", f"{function.__module__} {function.__qualname__} {function.__code__.co_firstlineno}")
        else:
            self._add_all("code", (function.__code__, function.__kwdefaults__ or {}))
            names = [name for name in _names(function.__code__) if not hasattr(builtins, name)]
            used = [(name, function.__globals__[name]) for name in names if name in function.__globals__]
            self._add_all(f"globals {len(used)}", used)
            if not _is_versioned(function.__module__):
                self._add_overloads(function)
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self._add_all("held", (function.__defaults__, cells))

    def _add_code(self, code: CodeType) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        tables = (code.co_code, getattr(code, "co_exceptiontable", b""))
        self._add_all("bytecode", (counts, names, tables, code.co_consts))

    def _add_overloads(self, function: FunctionType) -> None:
        """Add the functions that give a function of the user its compiled form, by numba.extending.overload."""
        found = set()
        for known, kind in builtin_registry.globals:
            if known is function:
                for template in getattr(kind, "templates", ()):
                    walk = _Walk()
                    walk._seen, walk._alive = dict(self._seen), self._alive
                    walk.add(getattr(template, "_overload_func", None))
                    found.add("\n".join(walk.tokens))
        for text in sorted(found):
            self._note("overload", text)

    def _add_type(self, kind: types.Type) -> None:
        text = str(kind)
        if " at 0x" in text:
            raise UnknownPart(kind)
        self._note(f"type {kind.__class__.__name__}", text)

    def _add_all(self, label: str, values: Iterable[object]) -> None:
        self._note("(", label)
        for value in values:
            self.add(value)
        self._note(")", "")

    def _note(self, label: str, text: str) -> None:
        self.tokens.append(f"{label} {len(text)} {text}")


def _is_versioned(module: object) -> bool:
    """Return whether a module, by its name, belongs to the packages whose versions count."""
    return isinstance(module, str) and module.partition(".")[0] in VERSIONED


def _names(code: CodeType) -> list[str]:
    """Return the global names that a code object and those nested in it may use."""
    nested: list[Any] = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for inner in nested for name in _names(inner))]))
