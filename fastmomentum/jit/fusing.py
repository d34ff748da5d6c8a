"""Kernels that form the gradient themselves, so that it is never written to memory."""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, NamedTuple

from fastmomentum import checks
from fastmomentum.backends import fused, keep, stencils
from fastmomentum.records import Update
from fastmomentum.rules import find


class Fused(NamedTuple):
    """Functions for Python and for code compiled by Numba, made by :func:`fuse`.

    Attributes
    ----------
    step : function
        ``step(p, *state, *data, *hyper)``: one update.
    run : function
        ``run(steps, p, *state, *data, *hyper)``: so many updates with the same hyper-parameters, with the same bits.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> step, run = fm.jit.fuse(lambda p, h: h * p, "sgd")
    >>> p, h = np.array([1.0, 2.0]), np.array([1.0, 0.5])
    >>> run(2, p, h, 0.5)
    >>> p
    array([0.25 , 1.125])
    """

    step: Any
    run: Any


def fuse(grad: Callable[..., Any], rule: str | Update) -> Fused:
    """One update in which the gradient of a coordinate follows from its parameter, and is used at once.

    16 bytes an element move in float32, and those of the data, where a gradient in memory takes 20 beside what forming
    it takes. Many steps in one call (``run``) keep a block of coordinates in the cache until it has had them all.

    Parameters
    ----------
    grad : function
        ``grad(p, *data) -> g``, of one coordinate: a Python function that Numba can compile, or one it has compiled
        (it is compiled anew, strictly). Its value is cast to the dtype of p. It must not raise, which would leave an
        update half done. A number written in it is a double, as in all code for Numba, so that in float32 the bits are
        not NumPy's, and the loop is slower; ``numpy.float32`` constants from outside, or data, keep to float32.
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    Fused
        ``step`` and ``run``. p, state and data are arrays as :func:`fastmomentum.jit.kernel` takes them, the
        hyper-parameters those of ``rule.hyper`` (:func:`fastmomentum.jit.hyper`).

    Raises
    ------
    TypeError, ValueError
        If `grad` is no such function, or there is no such rule; where they are called, as
        :func:`fastmomentum.jit.kernel`.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> descent = fm.jit.fuse(lambda p, h, b: h * p - b, "heavy_ball")
    >>> h, b, p = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 1.0]), np.zeros(3)
    >>> descent.run(200, p, p.copy(), h, b, *fm.jit.hyper("heavy_ball", lr=0.3, momentum=0.2))
    >>> print(p)
    [1.   0.5  0.25]
    """
    chosen, data = find(rule), _arguments(grad)[1:]
    key = (chosen.structure, chosen.slots, chosen.hyper, grad)
    return Fused(
        keep(("fused", *key), lambda: fused.make_fused(chosen, grad, data)),
        keep(("many fused", *key), lambda: fused.make_many_fused(chosen, grad, data)),
    )


def fuse_stencil(grad: Callable[..., Any], rule: str | Update, offsets: Sequence[Sequence[int]]) -> Any:
    """One update in which the gradient at a grid point follows from the old parameters at it and around it.

    Parameters
    ----------
    grad : function
        ``grad(*neighbours, *data) -> g``: the parameters at the `offsets`, in their order, and what the data hold at
        the point itself; as :func:`fuse` takes it.
    rule : str, Rule or chain
        The update rule.
    offsets : sequence of tuples of int
        Where the neighbours are, along each axis: for five points in two dimensions
        ``[(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]``.

    Returns
    -------
    function
        ``step(new, *state, old, *data, *hyper)``, for Python and for code compiled by Numba: what it writes comes
        first. C-contiguous arrays of one shape, with as many axes as an offset. Along each axis, points nearer to an
        edge than the farthest offset are not written, in `new` as in the state: give `new` and `old` the same boundary,
        and exchange them after each step.

    Raises
    ------
    TypeError, ValueError
        If `grad` is no such function, takes fewer arguments than there are offsets, these are not of one length, or
        there is no such rule; where it is called, as :func:`fastmomentum.jit.kernel`.

    Examples
    --------
    Laplace's equation in one dimension, between 0 and 1:

    >>> import numpy as np, fastmomentum as fm
    >>> step = fm.jit.fuse_stencil(lambda left, here, right: 2 * here - left - right, "pytorch", [(-1,), (0,), (1,)])
    >>> new, old, v = np.array([0.0, 0.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.0, 1.0]), np.zeros(5)
    >>> for _ in range(100):
    ...     step(new, v, old, *fm.jit.hyper("pytorch", lr=0.3, momentum=0.3))
    ...     new, old = old, new
    >>> print(old.round(6))
    [0.   0.25 0.5  0.75 1.  ]
    """
    chosen, names = find(rule), _arguments(grad)
    if any(not isinstance(offset, tuple | list) for offset in offsets):
        raise TypeError(f"offsets: expected a tuple for each neighbour, (-1,) in one dimension; got {offsets!r}")
    places = tuple(tuple(checks.whole("offsets", shift, least=-(2**31)) for shift in offset) for offset in offsets)
    if not places or not places[0] or any(len(place) != len(places[0]) for place in places):
        raise ValueError(f"offsets: expected one shift for each axis, alike for all; got {offsets!r}")
    if len(names) < len(places):
        raise TypeError(f"grad: expected an argument for each of {len(places)} offsets; got {', '.join(names)}")
    key = ("stencil", chosen.structure, chosen.slots, chosen.hyper, grad, places)
    return keep(key, lambda: stencils.make_stencil(chosen, grad, places, names[len(places) :]))


def _arguments(grad: Any) -> tuple[str, ...]:
    function = getattr(grad, "py_func", grad)
    if not isinstance(function, FunctionType):
        raise TypeError(f"grad: expected a plain function, or one compiled by Numba; got {checks.shown(grad)}")
    found = tuple(signature(function).parameters.values())
    fixed = all(each.kind is Parameter.POSITIONAL_OR_KEYWORD and each.default is Parameter.empty for each in found)
    if not found or not fixed:
        raise TypeError(f"grad: expected arguments of a fixed number, one at least, without defaults; got {function!r}")
    return tuple(each.name for each in found)
