"""What is summed by the tree: the squares of a gradient, and the motion of a step that is still to be done."""

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.loops import make_cut, make_load
from fastmomentum.backends.motion import BLOCK, PAIRS, WIDTH, make_motion
from fastmomentum.backends.numpy import LANES
from fastmomentum.backends.trees import make_add
from fastmomentum.records import Update


def make_add_squares(arrays: int) -> Any:
    """``add(lanes, (p, *state, g), hyper)``: the squares of g, for so many arrays in front of it."""
    add = make_add(((0, 0),), LANES)
    return register_jitable(lambda lanes, chunk, hyper: add(lanes, chunk[arrays:]))


def make_add_motion(rule: Update, dtype: np.dtype[Any]) -> Any:
    """``add(lanes, (p, *state, g), hyper)``: the products that make up a :class:`~fastmomentum.backends.motion.Motion`.

    In two turns, block by block: one loop over the elements that LLVM vectorises, as it does the update's, then rows of
    products, eight lanes of all seven sums at once (what 32 registers hold).
    """
    arrays, taken, kind, block = 1 + len(rule.state), len(rule.hyper), dtype.type, BLOCK // dtype.itemsize
    motion, add = make_motion(rule, register_jitable), make_add(PAIRS, 8)
    load, cut = make_load(arrays), make_cut(arrays + 1)

    @register_jitable
    def fill(v: Any, moved: Any, left: Any, chunk: Any, g: Any, hyper: Any) -> None:
        for i in range(g.size):
            v[i], moved[i], left[i] = motion(load(chunk, i), g[i], hyper)

    def add_motion(lanes: Any, chunk: Any, hyper: Any) -> None:
        row = to_fixed_tuple(hyper, taken)
        spare = lanes[WIDTH * LANES :].view(kind)
        v, moved, left = spare[:block], spare[block : 2 * block], spare[2 * block : 3 * block]
        for start in range(0, chunk[0].size, block):
            part = cut(chunk, start, min(start + block, chunk[0].size))
            g, p = part[arrays], part[0]
            fill(v[: g.size], moved[: g.size], left[: g.size], part[:arrays], g, row)
            add(lanes, (v[: g.size], g, moved[: g.size], left[: g.size], p))

    return register_jitable(add_motion)
