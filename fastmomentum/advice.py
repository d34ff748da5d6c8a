"""Make the parts of error messages that describe a value and say what to do instead.

Every expression in an advice does what the user wants when it is evaluated, with the value in the place of ``...``. A
parameter is updated in place, so the advice for one keeps the user's own arrays updated, or says to replace them.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Set, Sized
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, TypeGuard

import numpy as np

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "eta", "alpha", "step_size"), "lr"),
    **dict.fromkeys(("mu", "beta", "beta1"), "momentum"),
    **dict.fromkeys(("max_grad_norm", "global_clipnorm"), "max_norm"),
    "clipnorm": "clip_norm",
    "use_nesterov": "nesterov",
    "clipvalue": "clip_value",
}
"""Names of options in the literature and in other packages, each with the name of that option here."""


def did_you_mean(name: str, known: Iterable[str], function: str = "", synonyms: Mapping[str, str] = SYNONYMS) -> str:
    """Return the end of a message about an unknown name, which proposes the name that may have been meant.

    Parameters
    ----------
    name : str
        The name that the user gave.
    known : iterable of str
        All names that the call takes. No other name is proposed.
    function : str
        The function whose help lists the names; the message ends with it if no name is near.
    synonyms : mapping of str to str
        Other names for the known ones.

    Examples
    --------
    >>> did_you_mean("learning_rate", ["lr"]), did_you_mean("weight_decy", ["lr", "weight_decay"])
    ('. Did you mean lr?', '. Did you mean weight_decay?')
    >>> did_you_mean("max_norm", ["lr"]), did_you_mean("foreach", ["lr"], "fastmomentum.step")
    ('', '. help(fastmomentum.step) has all options')
    """
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = [each for each in known if each != name]
    near = [synonyms[plain]] if synonyms.get(plain) in names else get_close_matches(plain, names, 1, 0.75)
    if near:
        return f". Did you mean {near[0]}?"
    return f". help({function}) has all options" if function else ""


def describe(value: object) -> str:
    """Return a short description of a value, for a message."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if is_tensor(value):
        return f"{type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, tuple | list) else kind


def is_tensor(value: object) -> TypeGuard[Any]:
    """Return whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def how_to_convert(value: Any, dtype: np.dtype[Any] | None = None, write: bool = True) -> str:
    """Return the end of a message about a value that is no array: how to make one, or nothing if there is no way.

    Parameters
    ----------
    value : object
        The value that the user passed.
    dtype : dtype, optional
        The dtype that the array must have.
    write : bool
        Whether the array is updated in place.
    """
    if is_tensor(value):
        return how_to_convert_tensor(value, dtype, write)
    if isinstance(value, list | tuple) and len(value) == 1 and hasattr(value[0], "dtype"):
        return ". Pass the array inside of it"
    replace = ". Replace it by" if write else ". Pass"
    if hasattr(type(value), "toarray"):  # a sparse array of SciPy
        return f"{replace} .toarray()"
    found = _numbers(value)
    if found is None or (dtype is not None and not np.can_cast(found.dtype, dtype, "same_kind")):
        return ""
    if write and type(value).__module__.startswith("jax"):
        return ". JAX arrays are immutable, so no step can update one in place: keep numpy.array(...), a copy, instead"
    made = f"numpy.array(..., dtype=numpy.{kept_dtype(found.dtype) if dtype is None else dtype})"
    if not write:
        return f". {made} makes one"
    if found.dtype.char in "fdFD":
        if hasattr(value, "__dlpack__"):
            return ". For an array in host memory, numpy.from_dlpack(...) returns one on the same memory"
        with suppress(TypeError, BufferError):
            if not memoryview(value).readonly:
                return ". numpy.asarray(...) returns one on the same memory"
    return f". No step can update a {type(value).__name__}: replace it by {made}"


def how_to_pass(params: Any) -> str:
    """Return the end of a message about an argument `params` that is neither an array nor a container of arrays."""
    if hasattr(type(params), "named_parameters"):
        return ". Pass the parameters of the torch module, dict(module.named_parameters())"
    return how_to_convert(params)


def _numbers(value: Any) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Return a value as an array of numbers; None if it is none, such as a dict, a text, or an object of any class."""
    try:
        found = np.asarray(value)
        if found.dtype == object and hasattr(type(value), "__dlpack__"):
            found = np.from_dlpack(value)
    except Exception:  # code of the value's class
        return None
    return found if kept_dtype(found.dtype) is not None else None


def how_to_convert_tensor(tensor: Any, dtype: np.dtype[Any] | None, write: bool) -> str:
    """Return the end of a message about a torch tensor, with the arguments of :func:`how_to_convert`."""
    kind, is_on_host = str(tensor.dtype).removeprefix("torch."), tensor.device.type == "cpu"
    if str(tensor.layout) != "torch.strided":
        return f"{'. Replace it by' if write else '. Pass'} .to_dense()"
    if tensor.device.type == "meta":
        return ""
    if kind.startswith("complex") and not is_on_host:
        return ". torch.view_as_real(...) returns its real and imaginary parts on the same memory"
    if dtype is not None and kind != dtype.name:
        if tensor.is_complex() and dtype.kind != "c":
            return ""
        replace = ". The tensor is updated in place: replace it everywhere by" if write else ". Pass"
        return f"{replace} {'.detach()' * write}.to(torch.{dtype})"
    if kind in ("float32", "float64", "complex64", "complex128") and is_on_host:
        return ". For a torch tensor on the host, .detach().numpy() returns one on the same memory"
    if not write:
        return f". Pass .to(torch.{'float32' if dtype is None else dtype})"
    if not tensor.is_floating_point():
        return ". No step can update whole numbers: replace it by .float()"
    make, back = (".numpy()", "torch.from_numpy(p)") if is_on_host else ("", "p")
    return (
        f". Update p = tensor.detach().float(){make}, a copy, and write it back after each step: "
        f"tensor.detach().copy_({back})"
    )


def kept_dtype(dtype: np.dtype[Any]) -> str | None:
    """Return the name of the served dtype that keeps the values of another one best; None if it has no numbers.

    Examples
    --------
    >>> [kept_dtype(np.dtype(name)) for name in ("float16", "int64", "clongdouble", "U3")]
    ['float32', 'float64', 'complex128', None]
    """
    is_extension = dtype.kind == "V" and np.can_cast(dtype, np.float32)  # bfloat16 of JAX, for example
    if dtype.names is not None or not (dtype.kind in "biufc" or is_extension):
        return None
    if dtype.kind == "c":
        return "complex64" if dtype.itemsize <= 8 else "complex128"
    return "float32" if np.can_cast(dtype, np.float32) else "float64"


def how_to_cast(dtype: np.dtype[Any], wanted: np.dtype[Any] | None, write: bool, is_complex_served: bool) -> str:
    """Return the end of a message about an array of a dtype that is not served; nothing if no cast keeps its values.

    Parameters
    ----------
    dtype : dtype
        The array's dtype.
    wanted : dtype or None
        The dtype that it must have; None for any that is served.
    write : bool
        Whether the array is updated in place.
    is_complex_served : bool
        Whether complex arrays are served.
    """
    if dtype.names:
        each = "its field" if len(dtype.names) == 1 else "each field as an array of its own, such as"
        return f". Pass {each} [{dtype.names[0]!r}], on the same memory"
    target = kept_dtype(dtype) if wanted is None else wanted.name
    if target is None or not np.can_cast(dtype, target, "same_kind"):
        return ""
    if target.startswith("complex") and not is_complex_served:
        real = f".view(numpy.float{8 * dtype.itemsize // 2})"
        return f". Pass {real}, its real and imaginary parts on the same memory" if dtype == target else ""
    if write:
        return f". The array is updated in place: replace it everywhere by .astype(numpy.{target})"
    return f". Pass numpy.asarray(..., dtype=numpy.{target})"


def how_to_list(value: Any, length: int, name: str = "") -> str:
    """Return the end of a message about a value that is no sequence: how to make one of this length, or nothing.

    `name` is the name of the argument.
    """
    if hasattr(type(value), "named_parameters"):
        own = {"params": "list(module.parameters())", "grads": "[p.grad for p in module.parameters()]"}.get(name)
        return f". Pass {own}" if own and len([*value.parameters()]) == length else ""
    if isinstance(value, Mapping):
        return ". For a dict d, list(d.values()) returns its arrays, in order" if len(value) == length else ""
    if length == 1 and hasattr(value, "dtype"):
        return ". Pass [...], a list with this array"
    is_long_enough = isinstance(value, Iterator) or (isinstance(value, Sized) and len(value) == length)
    is_ordered = isinstance(value, Iterable) and not isinstance(value, Set | str)
    return ". Pass list(...)" if is_ordered and is_long_enough else ""
