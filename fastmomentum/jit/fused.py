"""Kernels that form the gradient of a coordinate and use it at once; :mod:`fastmomentum.jit` says what they are for.

Kernels whose gradient at a point follows from the parameters around it, as they were before the update.

The parameters are read in one array and written to another.

Kernels that form the gradient themselves, so that it is never written to memory.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastmomentum import checks
from fastmomentum.backends.base import cached_kernel
from fastmomentum.backends.cpu.loops import (
    as_like,
    inlined,
    make_advance,
    make_cut,
    make_descent,
    make_load,
    make_loop,
    make_store,
)
from fastmomentum.jit.embedding import SHAPES, SHARED, Call, embed, once
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.registry import find

BLOCK = 16_384
"""Coordinates that take all their steps before the next ones do, so that their arrays stay in the cache (from 2,048 to
16,384 measured within a fifth of each other)."""


def make_kernel(rule: Rule) -> Any:
    """``kernel(p, *state, g, *hyper)``: one update, with a gradient that lies in an array."""
    arrays = 1 + len(rule.state)
    loop = make_loop(make_advance(rule), arrays)
    return embed(once(loop), Call(("p", *rule.slots, "g", *rule.hyper), arrays, 1))


def make_fused(rule: Rule, gradient: Function, data: tuple[str, ...]) -> Any:
    """``kernel(p, *state, *data, *hyper)``: one update, with a gradient that follows from p and the data."""
    arrays = 1 + len(rule.state)
    loop = make_loop(make_descent(rule, gradient), arrays, len(data))
    return embed(once(loop), _call(rule, data))


def make_many_fused(rule: Rule, gradient: Function, data: tuple[str, ...]) -> Any:
    """``kernel(steps, p, *state, *data, *hyper)``: so many updates, block by block."""
    arrays, advance = 1 + len(rule.state), make_descent(rule, gradient)
    single = make_loop(advance, arrays, len(data))
    # Two steps for each load and store of a coordinate: more leave too few coordinates under way at once (measured: 1,
    # 2, 4, 8 steps: 7, 12, 10, 7 times the speed of a gradient in memory).
    double = make_loop(_twice(advance), arrays, len(data))
    cut, cut_data = make_cut(arrays), make_cut(len(data))

    def make_body(parted: Any) -> Any:
        def body(steps: Any, *arguments: Any) -> None:
            problem, written, read, hyper = parted(arguments)
            if problem == 1:
                raise ValueError(SHAPES)
            if problem == 2:
                raise ValueError(SHARED)
            if steps < 0:
                raise ValueError("steps: expected a whole number >= 0; got one below")
            size = written[0].size
            for first in range(0, size, BLOCK):
                last = min(size, first + BLOCK)
                ours, given = cut(written, first, last), cut_data(read, first, last)
                for _ in range(steps // 2):
                    double(ours, given, hyper)
                if steps % 2 == 1:
                    single(ours, given, hyper)

        return body

    return embed(make_body, _call(rule, data), steps=True)


def _call(rule: Rule, data: tuple[str, ...]) -> Call:
    return Call(("p", *rule.slots, *data, *rule.hyper), 1 + len(rule.state), len(data))


def _twice(advance: Any) -> Any:
    return register_jitable(lambda now, data, hyper: advance(advance(now, data, hyper), data, hyper))


Offsets = Sequence[tuple[int, ...]]


def make_stencil(rule: Rule, gradient: Function, offsets: Offsets, data: tuple[str, ...]) -> Any:
    """``kernel(new, *state, old, *data, *hyper)``: one update of all points but those too near to the edge."""
    written, read, axes = 1 + len(rule.state), 1 + len(data), len(offsets[0])
    halos = [max(abs(offset[axis]) for offset in offsets) for axis in range(axes)]
    sweep = _make_sweep(_make_point(rule, gradient, offsets, len(data)), halos)

    def whole(written: Any, read: Any, hyper: Any) -> None:
        sweep(written, read, hyper, ())

    names = ("new", *rule.slots, "old", *data, *rule.hyper)
    return embed(once(register_jitable(whole)), Call(names, written, read, axes))


def _make_point(rule: Rule, gradient: Function, offsets: Offsets, data: int) -> Any:
    """``point(written, read, hyper, at)``: the update of one point."""
    update, slope, around = rule.build(register_jitable), inlined(gradient), _make_around(offsets)
    load, load_data, store = make_load(len(rule.state)), make_load(data), make_store(1 + len(rule.state))
    here = _make_shifted((0,) * len(offsets[0]))

    def point(written: Any, read: Any, hyper: Any, at: Any) -> None:
        place, old = here(at), read[0]
        g = as_like(slope(*around(old, at), *load_data(read[1:], place)), old)
        store(written, place, update(old[place], *load(written[1:], place), g, *hyper))

    return register_jitable(point)


def _make_sweep(point: Any, halos: Sequence[int]) -> Any:
    """Loops over all axes, so far from both ends of each; `at` holds the places along those outside."""
    if not halos:
        return point
    halo, axis = halos[0], -len(halos)
    within = _make_sweep(point, halos[1:])

    def sweep(written: Any, read: Any, hyper: Any, at: Any) -> None:
        for i in range(halo, written[0].shape[axis] - halo):
            within(written, read, hyper, (*at, i))

    return register_jitable(sweep)


def _make_around(offsets: Offsets) -> Any:
    """``around(old, at)``: the values at these offsets from a point."""
    shifted = _make_shifted(offsets[0])
    if len(offsets) == 1:
        return register_jitable(lambda old, at: (old[shifted(at)],))
    rest = _make_around(offsets[1:])
    return register_jitable(lambda old, at: (old[shifted(at)], *rest(old, at)))


def _make_shifted(offset: Sequence[int]) -> Any:
    """``shifted(at)``: a place, by so much further along each axis; unsigned, as Numba looks whether others are < 0."""
    first = offset[0]
    if len(offset) == 1:
        return register_jitable(lambda at: (np.uintp(at[0] + first),))
    rest = _make_shifted(offset[1:])
    return register_jitable(lambda at: (np.uintp(at[0] + first), *rest(at[1:])))


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


def fuse(grad: Callable[..., Any], rule: str | Rule) -> Fused:
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
        cached_kernel(("fused", *key), lambda: make_fused(chosen, grad, data)),
        cached_kernel(("many fused", *key), lambda: make_many_fused(chosen, grad, data)),
    )


def fuse_stencil(grad: Callable[..., Any], rule: str | Rule, offsets: Sequence[Sequence[int]]) -> Any:
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
    places = tuple(tuple(checks.integer("offsets", shift, least=-(2**31)) for shift in offset) for offset in offsets)
    if not places or not places[0] or any(len(place) != len(places[0]) for place in places):
        raise ValueError(f"offsets: expected one shift for each axis, alike for all; got {offsets!r}")
    if len(names) < len(places):
        raise TypeError(f"grad: expected an argument for each of {len(places)} offsets; got {', '.join(names)}")
    key = ("stencil", chosen.structure, chosen.slots, chosen.hyper, grad, places)
    return cached_kernel(key, lambda: make_stencil(chosen, grad, places, names[len(places) :]))


def _arguments(grad: Any) -> tuple[str, ...]:
    function = getattr(grad, "py_func", grad)
    if not isinstance(function, FunctionType):
        raise TypeError(f"grad: expected a plain function, or one compiled by Numba; got {checks.describe(grad)}")
    found = tuple(signature(function).parameters.values())
    fixed = all(each.kind is Parameter.POSITIONAL_OR_KEYWORD and each.default is Parameter.empty for each in found)
    if not found or not fixed:
        raise TypeError(f"grad: expected arguments of a fixed number, one at least, without defaults; got {function!r}")
    return tuple(each.name for each in found)
