"""Kernels that form the gradient of a coordinate and use it at once; :mod:`fastmomentum.jit` says what they are for."""

from typing import Any

from numba.extending import register_jitable

from fastmomentum.backends.embedded import SHAPES, SHARED, Call, embed, once
from fastmomentum.backends.loops import make_advance, make_cut, make_descent, make_loop
from fastmomentum.parts import Function
from fastmomentum.records import Update

BLOCK = 16_384
"""Coordinates that take all their steps before the next ones do, so that their arrays stay in the cache (from 2,048 to
16,384 measured within a fifth of each other)."""


def make_kernel(rule: Update) -> Any:
    """``kernel(p, *state, g, *hyper)``: one update, with a gradient that lies in an array."""
    arrays = 1 + len(rule.state)
    loop = make_loop(make_advance(rule), arrays)
    return embed(once(loop), Call(("p", *rule.slots, "g", *rule.hyper), arrays, 1))


def make_fused(rule: Update, gradient: Function, data: tuple[str, ...]) -> Any:
    """``kernel(p, *state, *data, *hyper)``: one update, with a gradient that follows from p and the data."""
    arrays = 1 + len(rule.state)
    loop = make_loop(make_descent(rule, gradient), arrays, len(data))
    return embed(once(loop), _call(rule, data))


def make_many_fused(rule: Update, gradient: Function, data: tuple[str, ...]) -> Any:
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


def _call(rule: Update, data: tuple[str, ...]) -> Call:
    return Call(("p", *rule.slots, *data, *rule.hyper), 1 + len(rule.state), len(data))


def _twice(advance: Any) -> Any:
    return register_jitable(lambda now, data, hyper: advance(advance(now, data, hyper), data, hyper))
