"""Make kernels that compute the gradient themselves, so that it is never written to memory."""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.backends.cpu.loops import (
    as_like,
    compiled_part,
    inlined,
    make_cut,
    make_descent,
    make_load,
    make_loop,
    make_store,
    make_two_steps,
)
from fastmomentum.jit.embedding import (
    MEMORY_SHARED,
    SHAPES_DIFFER,
    SHAPES_MESSAGE,
    SHARED_MESSAGE,
    KernelArguments,
    embed,
    single_sweep,
)
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.registry import find

BLOCK = 16_384
"""The number of elements in a block. ``run`` does all steps on one block before it goes to the next, so that the block
stays in the cache (the times for blocks from 2,048 to 16,384 elements were measured within 20 % of each other)."""

Offsets = Sequence[tuple[int, ...]]
"""The places of a stencil's neighbours relative to a point, with one shift for each axis."""


class Fused(NamedTuple):
    """Two kernels made by :func:`fuse`, for Python and for code compiled by Numba.

    Attributes
    ----------
    step : function
        ``step(p, *state, *data, *hyper)`` does one update.
    run : function
        ``run(steps, p, *state, *data, *hyper)`` does `steps` updates with the same hyper-parameters. The bits are those
        of repeated calls of `step`.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> step, run = fm.jit.fuse(lambda p, h: h * p, "sgd")
    >>> p, h = np.array([1.0, 2.0]), np.array([1.0, 0.5])
    >>> run(2, p, h, 0.5)
    >>> p
    array([0.25 , 1.125])
    """

    step: Callable[..., None]
    run: Callable[..., None]


def fuse(grad: Function, rule: str | Rule) -> Fused:
    """Return kernels that compute the gradient of each element from its parameter and use it at once.

    p, *state ← update(p, *state, grad(p, *data), *hyper)

    Parameters
    ----------
    grad : function
        ``grad(p, *data) -> g`` for one element: a plain Python function that Numba can compile, or a function that
        Numba has compiled (it is compiled again, with strict arithmetic). Its result is cast to the dtype of p. It must
        not raise, as an exception would leave the update half done. A number literal in it is a double, as in all code
        for Numba, so with float32 the bits differ from NumPy's and the loop is slower. ``numpy.float32`` constants
        defined outside of the function, or data, keep the arithmetic in float32.
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    Fused
        ``step`` and ``run``. p, state and data are arrays as for :func:`fastmomentum.jit.kernel`; the hyper-parameters
        are those of ``rule.hyper`` (:func:`fastmomentum.jit.hyper` computes them).

    Raises
    ------
    TypeError, ValueError
        If `grad` is not such a function, or there is no such rule. The returned kernels raise the errors of
        :func:`fastmomentum.jit.kernel`.

    Notes
    -----
    With float32 and one state array, an update moves 16 bytes an element plus the data. With a gradient in memory it
    moves 20, plus the bytes that the computation of the gradient moves. ``run`` does all steps on one block of elements
    before it goes to the next, so that the block stays in the cache.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> descent = fm.jit.fuse(lambda p, h, b: h * p - b, "heavy_ball")
    >>> h, b, p = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 1.0]), np.zeros(3)
    >>> descent.run(200, p, p.copy(), h, b, *fm.jit.hyper("heavy_ball", lr=0.3, momentum=0.2))
    >>> print(p)
    [1.   0.5  0.25]
    """
    chosen, data = find(rule), _argument_names(grad)[1:]
    key = (chosen.structure, chosen.slots, chosen.hyper, grad)
    return Fused(
        cached_kernel(("fused", *key), lambda: _make_step(chosen, grad, data)),
        cached_kernel(("many fused", *key), lambda: _make_run(chosen, grad, data)),
    )


def fuse_stencil(grad: Function, rule: str | Rule, offsets: Sequence[Sequence[int]]) -> Callable[..., None]:
    """Return a kernel that computes the gradient at each grid point from the old parameters at it and around it.

    new, *state ← update(old, *state, grad(*neighbours of old, *data), *hyper)

    Parameters
    ----------
    grad : function
        ``grad(*neighbours, *data) -> g``: takes the parameters at the `offsets`, in their order, and the data at the
        point itself. The requirements are those of :func:`fuse`.
    rule : str, Rule or chain
        The update rule.
    offsets : sequence of tuples of int
        The places of the neighbours relative to the point, along each axis: for five points in two dimensions
        ``[(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]``.

    Returns
    -------
    function
        ``step(new, *state, old, *data, *hyper)``, for Python and for code compiled by Numba; the written arrays come
        first. All are C-contiguous arrays of one shape, with as many axes as an offset. Along each axis, points nearer
        to an edge than the farthest offset are not written, neither in `new` nor in the state: give `new` and `old` the
        same boundary, and exchange them after each step.

    Raises
    ------
    TypeError, ValueError
        If `grad` is not such a function, takes fewer arguments than there are offsets, the offsets differ in length, or
        there is no such rule. The returned kernel raises the errors of :func:`fastmomentum.jit.kernel`.

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
    chosen, names = find(rule), _argument_names(grad)
    if any(not isinstance(offset, tuple | list) for offset in offsets):
        raise TypeError(f"offsets: expected a tuple for each neighbour, (-1,) in one dimension; got {offsets!r}")
    places = tuple(tuple(checks.integer("offsets", shift, least=-(2**31)) for shift in offset) for offset in offsets)
    if not places or not places[0] or any(len(place) != len(places[0]) for place in places):
        raise ValueError(
            f"offsets: expected one shift for each axis in each offset, and one offset at least; got {offsets!r}"
        )
    if len(names) < len(places):
        raise TypeError(f"grad: expected an argument for each of {len(places)} offsets; got {', '.join(names)}")
    key = ("stencil", chosen.structure, chosen.slots, chosen.hyper, grad, places)
    return cached_kernel(key, lambda: _make_stencil(chosen, grad, places, names[len(places) :]))


def _argument_names(grad: object) -> tuple[str, ...]:
    """Return the names of the arguments of a gradient function; raise a TypeError if a kernel cannot call it."""
    function = getattr(grad, "py_func", grad)
    if not isinstance(function, FunctionType):
        raise TypeError(f"grad: expected a plain function, or one compiled by Numba; got {checks.describe(grad)}")
    found = tuple(signature(function).parameters.values())
    fixed = all(each.kind is Parameter.POSITIONAL_OR_KEYWORD and each.default is Parameter.empty for each in found)
    if not found or not fixed:
        raise TypeError(
            "grad: expected a fixed number of arguments, at least one, without defaults; "
            f"got {function.__name__}{signature(function)}"
        )
    return tuple(each.name for each in found)


def _make_step(rule: Rule, gradient: Function, data: tuple[str, ...]) -> Callable[..., None]:
    """Return ``kernel(p, *state, *data, *hyper)``, which does one update."""
    expected = _kernel_arguments(rule, data)
    loop = make_loop(make_descent(rule, gradient, expected.read), expected.written, expected.read)
    return embed(single_sweep(loop), expected)


def _make_run(rule: Rule, gradient: Function, data: tuple[str, ...]) -> Callable[..., None]:
    """Return ``kernel(steps, p, *state, *data, *hyper)``, which does `steps` updates, block by block."""
    expected, advance = _kernel_arguments(rule, data), make_descent(rule, gradient, len(data))
    single = make_loop(advance, expected.written, expected.read)
    # Two steps for each load and store of an element. More steps leave too few elements to be computed side by side
    # (measured for 1, 2, 4, 8 steps: 7, 12, 10, 7 times the speed of an update with the gradient in memory).
    two_steps = make_two_steps(advance, expected.written, expected.read)
    double = make_loop(two_steps, expected.written, expected.read)
    cut, cut_data = make_cut(expected.written), make_cut(expected.read)

    def make_body(split_arguments: Function) -> Callable[..., None]:
        def body(steps: Any, *arguments: Any) -> None:
            problem, written, read, hyper = split_arguments(arguments)
            if problem == SHAPES_DIFFER:
                raise ValueError(SHAPES_MESSAGE)
            if problem == MEMORY_SHARED:
                raise ValueError(SHARED_MESSAGE)
            if steps < 0:
                raise ValueError("steps: expected a whole number from 0; got a negative one")
            size = written[0].size
            for first in range(0, size, BLOCK):
                last = min(size, first + BLOCK)
                block, block_data = cut(written, first, last), cut_data(read, first, last)
                for _ in range(steps // 2):
                    double(block, block_data, hyper)
                if steps % 2 == 1:
                    single(block, block_data, hyper)

        return body

    return embed(make_body, expected, with_steps=True)


def _kernel_arguments(rule: Rule, data: tuple[str, ...]) -> KernelArguments:
    return KernelArguments(("p", *rule.slots, *data, *rule.hyper), 1 + len(rule.state), len(data))


def _make_stencil(rule: Rule, gradient: Function, offsets: Offsets, data: tuple[str, ...]) -> Callable[..., None]:
    """Return ``kernel(new, *state, old, *data, *hyper)``, which updates all points that are not too near to an edge."""
    axes = len(offsets[0])
    margins = [max(abs(offset[axis]) for offset in offsets) for axis in range(axes)]
    sweep_axes = _make_sweep(_make_point(rule, gradient, offsets, len(data)), margins)

    def sweep(written: Any, read: Any, hyper: Any) -> None:
        sweep_axes(written, read, hyper, ())

    names = ("new", *rule.slots, "old", *data, *rule.hyper)
    return embed(single_sweep(inlined(sweep)), KernelArguments(names, 1 + len(rule.state), 1 + len(data), axes))


def _make_point(rule: Rule, gradient: Function, offsets: Offsets, data: int) -> Function:
    """Return ``point(written, read, hyper, index)``, which updates the point at this index."""
    update, slope, neighbours = rule.build(compiled_part), inlined(gradient), _make_neighbours(offsets)
    load, load_data, store = make_load(len(rule.state)), make_load(data), make_store(1 + len(rule.state))
    unsigned = _make_shifted((0,) * len(offsets[0]))

    def point(written: Any, read: Any, hyper: Any, index: Any) -> None:
        place, old = unsigned(index), read[0]
        g = as_like(slope(*neighbours(old, index), *load_data(read[1:], place)), old)
        store(written, place, update(old[place], *load(written[1:], place), g, *hyper))

    return inlined(point)


def _make_sweep(point: Function, margins: Sequence[int]) -> Function:
    """Return ``sweep(written, read, hyper, index)``, which calls `point` in a loop over each remaining axis.

    `index` holds the places along the axes of the outer loops. Each margin is the number of points that are left out at
    both ends of an axis.
    """
    if not margins:
        return point
    margin, axis = margins[0], -len(margins)
    inner = _make_sweep(point, margins[1:])

    def sweep(written: Any, read: Any, hyper: Any, index: Any) -> None:
        for i in range(margin, written[0].shape[axis] - margin):
            inner(written, read, hyper, (*index, i))

    return inlined(sweep)


def _make_neighbours(offsets: Offsets) -> Function:
    """Return ``neighbours(old, index)``, a tuple of the values at these offsets from the point at `index`."""
    shifted = _make_shifted(offsets[0])
    if len(offsets) == 1:
        return inlined(lambda old, index: (old[shifted(index)],))
    others = _make_neighbours(offsets[1:])
    return inlined(lambda old, index: (old[shifted(index)], *others(old, index)))


def _make_shifted(offset: Sequence[int]) -> Function:
    """Return ``shifted(index)``, the index moved by an offset, as unsigned integers."""
    # Numba tests whether signed indices are negative; unsigned indices need no test.
    first = offset[0]
    if len(offset) == 1:
        return inlined(lambda index: (np.uintp(index[0] + first),))
    others = _make_shifted(offset[1:])
    return inlined(lambda index: (np.uintp(index[0] + first), *others(index[1:])))
