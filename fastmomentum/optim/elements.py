"""Masks, and scales of the learning rate, for each element of a parameter: read, check and hold them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.backends.host_arrays import flat_view, read
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import point_rule
from fastmomentum.rules.elementwise import GIVEN, MASK, with_given


class Elements(NamedTuple):
    """Hold the mask and the scale of lr of one parameter, in arrays that no other code holds.

    The arrays have the memory layout of the parameter, so that their flat views are in the order of its elements. Those
    of a complex parameter hold each value twice, as kernels update the two parts of a complex number as two floats.

    Attributes
    ----------
    mask : ndarray of int8 or int16, or None
        0 where an element is frozen, else −1, whose bits are all set; None if there is no mask. The int16 of a complex
        parameter is a pair of int8.
    lr_scale : ndarray or None
        The factor s of lr of each element, in the dtype of the parameter, s + s·i if that is complex; None for 1.
    """

    mask: npt.NDArray[np.signedinteger] | None = None
    lr_scale: npt.NDArray[Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays that the parameter has, for :func:`~fastmomentum.rules.elementwise.with_given`."""
        return tuple([name for name, values in zip(GIVEN, self) if values is not None])

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """Flat views of the arrays, with an entry for each float, in the order of :attr:`names`."""
        mask = () if self.mask is None else (flat_view(self.mask).view(np.int8),)
        return mask if self.lr_scale is None else (*mask, flat_view(self.lr_scale))

    def given(self, name: str) -> npt.NDArray[Any] | None:
        """Return a copy in C order of an array as users give it: a mask in booleans, a scale in real numbers."""
        if name == MASK:
            return None if self.mask is None else self.mask.astype(bool, order="C")
        return None if self.lr_scale is None else self.lr_scale.real.copy()

    def laid_out_like(self, param: npt.NDArray[Any]) -> "Elements":
        """Return copies in the memory layout of another parameter of the same shape and dtype."""
        found = {}
        for name, values in zip(GIVEN, self):
            if values is not None:
                found[name] = checks.empty_like(param, values.dtype)
                found[name][...] = values
        return Elements(**found)

    def where_moving(self, new: npt.NDArray[Any], old: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return `old` with the values of `new` in the elements that are not frozen."""
        return new if self.mask is None else np.where(self.mask, new, old)

    def write_point(self, rule: Rule, arrays: tuple[npt.NDArray[Any], ...], row: tuple[Any, ...]) -> None:
        """Write the look-ahead point to the last of (p, velocity, point); the point of a frozen element is p."""
        param, velocity, target = map(flat_view, arrays)
        update = with_given(point_rule(rule), self.names).update
        with np.errstate(all="ignore"):
            *_, target[...] = update(param, velocity, target, param, *self.arrays, *row)


def split_by_array(where: str, value: Any, count: int, keys: Sequence[str] | None) -> tuple[list[Any], list[str]]:
    """Return the entry of a mask or scale for each array of a group, and the name of each entry in messages.

    Parameters
    ----------
    where : str
        The name of `value` in messages.
    value : array, sequence or mapping
        As the user gave it: an array for a group of one array; else a sequence, or a mapping by name, of arrays and
        None. None stands for no array.
    count : int
        The number of arrays.
    keys : sequence of str or None
        The names that the user gave to these arrays.

    Raises
    ------
    TypeError, ValueError
        If the value does not have this form.
    """
    if value is None:
        return [None] * count, [where] * count
    if count == 1 and hasattr(value, "dtype"):
        return [value], [where]
    if isinstance(value, Mapping):
        if keys is None:
            raise TypeError(f"{where}: expected a sequence of {count}, as the parameters have no names; got a dict")
        for key in value:
            if key not in keys:
                raise ValueError(f"{where}: expected names of the group's parameters, {', '.join(keys)}; got {key!r}")
        return [value.get(key) for key in keys], [f"{where}[{key!r}]" for key in keys]
    if hasattr(value, "dtype"):
        raise TypeError(
            f"{where}: expected a sequence of {count}, with an array or None for each parameter; got "
            f"{checks.describe(value)}"
        )
    return checks.sequence(where, value, count), [f"{where}[{i}]" for i in range(count)]


def check_elements(name: str, where: str, value: Any, param: Any, backend: str) -> npt.NDArray[Any] | None:
    """Return a mask or a scale, by its name, as a kernel reads it: a copy in the memory layout of the parameter.

    Raises
    ------
    TypeError, ValueError
        If it has another shape than the parameter, or values of a wrong type or out of range, or if the parameter is on
        a device.
    """
    if value is None:
        return None
    if backend == "cuda":
        raise TypeError(f"{where}: expected None, as the arrays are on a device, whose kernels take no {name}")
    kinds, expected = ("b", "booleans") if name == MASK else ("iuf", "numbers")
    try:
        found = np.asarray(read(where, value))
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if isinstance(value, np.ma.MaskedArray) or found.dtype.kind not in kinds:
        raise TypeError(f"{where}: expected an array of {expected}, or None; got {checks.describe(value)}")
    if found.shape != param.shape:
        raise ValueError(f"{where}: expected shape {param.shape}, as the parameter has; got {found.shape}")
    is_complex = param.dtype.kind == "c"
    if name == MASK:
        mask = checks.empty_like(param, np.int16 if is_complex else np.int8)
        mask[...] = np.where(found, -1, 0)
        return mask
    checks.numbers(where, found, checks.AT_LEAST_ZERO)
    copy, dtype = checks.empty_like(param), checks.real_dtype(param.dtype)
    with np.errstate(all="ignore"):
        copy.real[...] = found
        if is_complex:
            copy.imag[...] = found
    if not (np.isfinite(copy.real) & ((copy.real != 0) | (found == 0))).all():
        raise ValueError(f"{where}: expected numbers that {dtype} can hold; got one that becomes 0 or infinite")
    return copy


def read_elements(
    given: Sequence[Mapping[str, tuple[Any, str]]], params: Sequence[Any], backend: str
) -> list[Elements]:
    """Return the masks and scales of lr of all parameters, checked, from the values and their names in messages.

    Raises
    ------
    TypeError, ValueError
        If a value is refused.
    """
    return [
        Elements(**{name: check_elements(name, where, value, param, backend) for name, (value, where) in own.items()})
        for own, param in zip(given, params)
    ]


def check_rules(elements: Sequence[Elements], rules: Sequence[Rule]) -> None:
    """Check for each parameter that its rule can take its mask and its scale of lr.

    Raises
    ------
    ValueError
        If a rule cannot.
    """
    for given, rule in zip(elements, rules):
        with_given(rule, given.names)
