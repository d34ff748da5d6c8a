"""Identify what a function that Numba is to compile consists of, so that its machine code can be kept on disk."""

import builtins
import dataclasses
import functools
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from opcode import opmap
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.core import config, event
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.core.typing.templates import Signature, builtin_registry

PACKAGE = __name__.partition(".")[0]

VERSIONED = frozenset({PACKAGE, "numba", "numpy", "math", "cmath", "operator", "builtins"})
"""The packages whose code belongs to :func:`environment`: a name stands for what is found in them."""

UNRELATED = ("CACHE_", "NUMBA_NUM_THREADS", "NUMBA_DEFAULT_NUM_THREADS", "THREADING_LAYER", "COLOR_SCHEME")
"""Beginnings of the names of Numba's settings that do not change machine code."""

PLAIN_TYPES = (types.Number, types.Boolean, types.NoneType, types.NumberClass, types.DType, types.UnicodeType)
"""Types of Numba whose text tells all about them, as the text of an array or a tuple of them does."""


class UnknownPart(Exception):
    """A function holds an object whose meaning for compiled code is not known."""


@cache
def environment() -> str:
    """Return a digest of what machine code depends on beside the function and Numba's settings.

    These are the versions, the processor, and the sources: all files of this package, by their contents.
    """
    root = Path(__file__).parents[2]
    sources = sorted(root.rglob("*.py"))
    if Path(__file__) not in sources:
        raise UnknownPart("the package's sources")
    found = sha256()
    for path in sources:
        found.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    versions = (sys.implementation.cache_tag, sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    features = llvmlite.binding.get_host_cpu_features().flatten()
    processor = (llvmlite.binding.get_process_triple(), llvmlite.binding.get_host_cpu_name(), features)
    found.update(repr((versions, object.__basicsize__, processor)).encode())
    return found.hexdigest()


@cache
def prepare() -> None:
    """Note the package's sources as they are now, and from now on what the functions that Numba compiles are made of.

    An upgrade may change the sources while this process runs the old ones.
    """
    event.register("numba:compile", _Listener())
    with suppress(Exception):  # then no kernel is kept
        environment()


def settings() -> str:
    """Return Numba's settings that may change machine code, as a program can set them at any time."""
    found = {
        name: value
        for name, value in vars(config).items()
        if name.isupper() and not name.startswith(UNRELATED) and isinstance(value, str | int | float | None)
    }
    return repr(sorted(found.items()))


def fingerprint(*parts: object) -> str | None:
    """Return a digest of functions, types and numbers, equal in every process; None if one of them is not known.

    Functions of this package count by name, as :func:`environment` holds their text, and by what they close over. All
    others count by their bytecode, their defaults, what they close over, and the globals that they use. A function of
    a user that Numba has compiled before is not known if it may have used other globals then (:data:`_compiled`).
    """
    walk = _Walk()
    try:
        walk.add(parts)
        return walk.digest(environment(), settings())
    except Exception:  # UnknownPart, or an error that an object of the user raises
        return None


class _Walk:
    """Collect the tokens of an object and of all that it holds.

    Attributes
    ----------
    tokens : list of str
        One line for each object that was met, in order.
    """

    def __init__(self, as_compiled: bool = True) -> None:
        self.tokens: list[str] = []
        self._as_compiled = as_compiled
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []

    def add(self, value: object) -> None:
        """Add the tokens of this object."""
        kind = value.__class__
        if kind in (bool, int, str, bytes, type(None), type(...)) or isinstance(value, np.dtype):
            self._note(kind.__name__, repr(value))
        elif kind in (float, complex):  # as bits, since there are several NaN
            number = complex(value)  # type: ignore[call-overload]
            self._note(kind.__name__, struct.pack("dd", number.real, number.imag).hex())
        elif isinstance(value, tuple) and (kind is tuple or hasattr(value, "_fields")):
            self._add_all(f"tuple {kind.__name__} {len(value)}", (getattr(value, "_fields", None), *value))
        elif isinstance(value, list) and kind is list:
            self._add_all(f"list {len(value)}", value)
        elif isinstance(value, dict) and kind is dict:
            self._add_all(f"mapping {len(value)}", (item for pair in value.items() for item in pair))
        elif isinstance(value, slice):
            self._add_all("slice", (value.start, value.stop, value.step))
        elif isinstance(value, np.generic):
            self._add_all("number", (value.dtype, value.tobytes()))
        elif isinstance(value, np.ndarray) and kind is np.ndarray and not value.dtype.hasobject:
            self._add_all("array", (value.dtype, value.shape, value.strides, value.tobytes()))
        elif isinstance(value, types.Type):
            self._add_type(value)
        elif id(value) in self._seen:
            self._note("seen", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._add_object(value)
            self._add_overloads(value)

    def digest(self, *more: str) -> str:
        """Return a digest of all tokens, and of more text."""
        return sha256("\n".join([*more, *self.tokens]).encode()).hexdigest()

    def _add_object(self, value: object) -> None:
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, CodeType):
            self._add_code(value)
        elif isinstance(value, Dispatcher):
            self._check_compiled(value.py_func, len(value.overloads))
            signatures = () if value._can_compile else tuple(value.nopython_signatures)  # type: ignore[attr-defined]
            self._add_all("dispatcher", (value.py_func, value.targetoptions, value.locals, signatures))
        elif isinstance(value, _Intrinsic):
            self._add_all("intrinsic", (value._defn, value._prefer_literal))
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
        code, module = function.__code__, function.__globals__.get("__name__")
        if _is_versioned(module) and vars(sys.modules[str(module)]) is function.__globals__:
            self._note("function", f"{module} {code.co_qualname} {code.co_firstlineno}")
        else:
            # Loading imports the function's module, as Numba knows it: so this is a part of the function.
            self._add_all(f"code in {function.__module__}", (code, function.__kwdefaults__ or {}))
            used = _used_globals(function)
            self._add_all(f"globals {len(used)}", used.items())
            for value in used.values():
                if isinstance(value, ModuleType):
                    self._add_attributes(value, set(_names(code)), set())
            for name in _names(code) if not _is_versioned(module) else ():
                self._add_overloads(name)
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self._add_all("held", (function.__defaults__, cells))

    def _add_attributes(self, module: ModuleType, names: set[str], passed: set[str]) -> None:
        """Add what a function of a user may find in a versioned module beside what belongs to the package's version."""
        passed.add(module.__name__)
        for name in sorted(names):
            value = getattr(module, name, None)
            if isinstance(value, ModuleType) and _is_versioned(value.__name__) and value.__name__ not in passed:
                self._add_attributes(value, names, passed)
            elif isinstance(value, FunctionType) and _is_versioned(module.__name__, {PACKAGE}):
                self.add(value)  # fm.jit.<name> of a rule that the user has registered
            else:
                self._add_overloads(value)

    def _add_code(self, code: CodeType) -> None:
        if opmap["IMPORT_NAME"] in code.co_code[::2]:  # a function that Numba calls to get another may import anything
            raise UnknownPart(code)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        tables = (code.co_code, getattr(code, "co_exceptiontable", b""))
        self._add_all("bytecode", (counts, names, tables, code.co_consts))

    def _add_overloads(self, value: object) -> None:
        """Add the functions by which users give a function its compiled form, or those of methods of this name."""
        templates = _templates_of(value)
        if isinstance(value, FunctionType) and templates and _is_users(value):
            self._check_compiled(value, sum(len(getattr(kind, "_impl_cache", ())) for kind in templates))
        found: dict[str, None] = {}  # in the order in which Numba tries them
        for kind in templates:
            function = getattr(kind, "_overload_func", None)
            if (function is not None and _is_users(function)) or (isinstance(value, FunctionType) and _is_users(value)):
                options = (getattr(kind, "_jit_options", None), getattr(getattr(kind, "_inline", None), "value", None))
                walk = _Walk(self._as_compiled)
                walk._seen, walk._alive = dict(self._seen), self._alive
                walk.add((function, options))
                found["\n".join(walk.tokens)] = None
        for text in found:
            self._note("overload", text)

    def _check_compiled(self, function: FunctionType, forms: int) -> None:
        """Raise UnknownPart if Numba may have compiled a function, in this many forms, with other globals than now."""
        if not self._as_compiled or not forms or not _is_users(function):
            return
        changeable = [
            name
            for name, value in _used_globals(function).items()
            if name in function.__globals__ and not isinstance(value, ModuleType)
        ]
        if not changeable and not function.__closure__:
            return
        states = _compiled.get(function, [])
        if len(states) < forms or {*states} != {_state(function)}:
            raise UnknownPart(function)

    def _add_type(self, kind: types.Type) -> None:
        if isinstance(kind, types.Tuple | types.UniTuple):
            self._add_all(f"tuple type {len(kind)}", kind.types)
        elif isinstance(kind, PLAIN_TYPES) or (isinstance(kind, types.Array) and isinstance(kind.dtype, PLAIN_TYPES)):
            self._note(f"type {kind.__class__.__name__}", str(kind))
        else:
            raise UnknownPart(kind)

    def _add_all(self, label: str, values: Iterable[object]) -> None:
        self._note("(", label)
        for value in values:
            self.add(value)
        self._note(")", "")

    def _note(self, label: str, text: str) -> None:
        self.tokens.append(f"{label} {len(text)} {text}")


def _is_versioned(module: object, packages: Iterable[str] = VERSIONED) -> bool:
    """Return whether a module, by its name, belongs to these packages, or to those whose versions count."""
    return isinstance(module, str) and module.partition(".")[0] in packages


def _is_users(function: FunctionType) -> bool:
    """Return whether a function is defined outside of the packages whose versions count."""
    return not _is_versioned(function.__globals__.get("__name__"))


def _names(code: CodeType) -> list[str]:
    """Return the global names that a code object and those nested in it may use."""
    nested: list[Any] = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for inner in nested for name in _names(inner))]))


def _used_globals(function: FunctionType) -> dict[str, object]:
    """Return the globals, builtins among them, whose names occur in a function."""
    known = vars(builtins) | function.__globals__
    return {name: known[name] for name in _names(function.__code__) if name in known}


_compiled: WeakKeyDictionary[FunctionType, list[str]] = WeakKeyDictionary()
"""What each function of a user was made of whenever Numba compiled it.

Numba keeps compiled functions: a kernel that calls one has the values of globals that it was compiled with, though they
may have others now.
"""


class _Listener(event.Listener):  # type: ignore[misc]  # Numba has no types
    """Note what functions of users are made of when Numba compiles them."""

    def on_start(self, event: Any) -> None:
        """Note the function that is compiled."""
        function = getattr(event.data.get("dispatcher"), "py_func", None)
        if isinstance(function, FunctionType) and _is_users(function):
            _compiled.setdefault(function, []).append(_state(function))

    def on_end(self, event: Any) -> None:
        """Do nothing."""


def _state(function: FunctionType) -> str:
    """Return a digest of all that a function is made of now; an empty text if something is not known."""
    walk = _Walk(as_compiled=False)
    try:
        walk.add(function)
        return walk.digest()
    except Exception:
        return ""


_templates: dict[object, list[Any]] = {}
_read = {"globals": 0, "attributes": 0}


def _templates_of(value: object) -> list[Any]:
    """Return Numba's templates of a function, by its identity, or of the methods and attributes of a name."""
    found = builtin_registry.globals[_read["globals"] :]
    for function, kind in found:  # the registry holds the functions, so that no other object has their identities
        _templates.setdefault(id(function), []).extend(getattr(kind, "templates", ()))
    attributes = builtin_registry.attributes[_read["attributes"] :]
    for kind in attributes:
        if hasattr(kind, "_overload_func"):
            _templates.setdefault(kind._attr, []).append(kind)
    _read["globals"] += len(found)
    _read["attributes"] += len(attributes)
    return _templates.get(value if isinstance(value, str) else id(value), [])
