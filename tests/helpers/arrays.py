"""Seeded arrays, gradients for whole runs, and arrays that the package has to refuse."""

from math import prod

import numpy as np


def random_arrays(shape, count, dtype=np.float64, seed=0):
    """Return `count` arrays of normally distributed numbers, each in memory of its own."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for _ in range(count)]


def arrays_of(shapes, dtype=np.float64, seed=0):
    """Return one array of normally distributed numbers for each shape."""
    return gradients_of(shapes, 1, dtype, seed)[0]


def gradients(shape, steps, dtype=np.float64, seed=0, kind="normal"):
    """Return the gradients of one array, of shape (steps, *shape).

    The kinds: "normal" numbers; "whole" ones from −8 to 8; "dyadic" ones, multiples of 1/4 from −2 to 2; "awkward"
    ones, which are normal with some zeros, and some numbers that are subnormal in float32. Sums of whole and dyadic
    numbers, and their products with powers of two, are exact.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    rng = np.random.default_rng(seed)
    if kind in ("whole", "dyadic"):
        return (rng.integers(-8, 9, (steps, *shape)) / (1 if kind == "whole" else 4)).astype(dtype)
    found = rng.standard_normal((steps, *shape)).astype(dtype)
    if kind == "awkward":
        flat = found.reshape(steps, prod(shape))
        flat[:, flat.shape[1] // 2 :: 5] = 0
        flat[1:, 1::7] *= dtype(1e-39)
    return found


def gradients_of(shapes, steps, dtype=np.float64, seed=0, kind="normal", absent=lambda step, i: False):
    """Return for each step a list of gradients, one for each shape, or None where `absent(step, i)` is true."""
    stacked = [gradients(shape, steps, dtype, (seed, i), kind) for i, shape in enumerate(shapes)]
    return [
        [None if absent(step, i) else np.asarray(grads[step]) for i, grads in enumerate(stacked)]
        for step in range(steps)
    ]


def read_only(array):
    """Return a copy that cannot be written to."""
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    """Return zeros of the same dtype and size whose memory begins at an odd address."""
    view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    assert not view.flags.aligned
    return view


REFUSED_ARRAYS = {
    "a list": (lambda a: a.tolist(), TypeError, "a list of 5"),
    "None": (lambda a: None, TypeError, "None"),
    "a number": (lambda a: 1.0, TypeError, "1.0"),
    "double": (lambda a: a.astype(np.float64), TypeError, "float64"),
    "half": (lambda a: a.astype(np.float16), TypeError, "float16"),
    "integers": (lambda a: a.astype(np.int32), TypeError, "int32"),
    "complex": (lambda a: a.astype(np.complex64), TypeError, "complex64"),
    "objects": (lambda a: a.astype(object), TypeError, "object"),
    "byte order": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, "byte order"),
    "masked": (np.ma.masked_array, TypeError, "mask"),
    "short": (lambda a: a[:4].copy(), ValueError, r"\(4,\)"),
    "long": (lambda a: np.append(a, a[:1]), ValueError, r"\(6,\)"),
    "empty": (lambda a: a[:0], ValueError, r"\(0,\)"),
    "2-D": (lambda a: a[None].copy(), ValueError, r"\(1, 5\)"),
    "strided": (lambda a: np.repeat(a, 2)[::2], ValueError, "strides"),
    "reversed": (lambda a: a[::-1], ValueError, "strides"),
    "broadcast": (lambda a: np.broadcast_to(a[:1], 5), ValueError, "strides"),
    "misaligned": (misaligned, ValueError, "aligned"),
}
"""By name: what makes such an argument of an array of five float32, the error, and what the message says."""


def assert_untouched(arrays, copies):
    """Check that arrays have the very bytes of the copies that were made of them before."""
    for array, copy in zip(arrays, copies, strict=True):
        assert array.tobytes() == copy.tobytes()
