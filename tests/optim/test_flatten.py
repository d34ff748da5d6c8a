"""fm.flatten: one flat buffer instead of many arrays."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of
from tests.helpers.reference import DTYPES, assert_same_bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_flatten_returns_views_that_an_update_of_the_flat_array_updates(dtype):
    shapes = [(3, 4), (0,), (5,), (), (2, 1, 3)]
    arrays = arrays_of(shapes, dtype)
    grads = arrays_of(shapes, dtype, seed=1)
    flat, views = fm.flatten(arrays)
    assert flat.ndim == 1
    assert flat.size == sum(array.size for array in arrays)
    assert [view.shape for view in views] == shapes
    assert all(view.base is flat or view.base.base is flat for view in views if view.size)
    kept = [array.copy() for array in arrays]
    one, many = fm.Momentum(flat, lr=0.1), fm.Momentum(arrays, lr=0.1)
    for _ in range(3):
        one.step(fm.flatten(grads)[0])
        many.step(grads)
    for view, array, before in zip(views, arrays, kept):
        assert_same_bits(view, array)
        assert not array.size or (array != before).any()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (3.0, "arrays: expected a sequence of arrays; got 3.0"),
        ([], "arrays: expected at least one"),
        ([np.ones(2), np.ones(2, np.float32)], r"arrays\[1\]: expected float64, as the first has; got float32"),
        (
            [np.ones(2), np.ones(2, int)],
            r"arrays\[1\]: expected an array of float32, float64, complex64 or complex128; got int64",
        ),
        ([np.ma.ones(3)], r"arrays\[0\]: expected a plain array; got a masked one"),
        ([[1.0]], r"arrays\[0\]: expected a NumPy array"),
    ],
)
def test_flatten_refuses_what_it_cannot_join(arrays, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.flatten(arrays)


def test_flatten_takes_strided_arrays_in_their_order():
    values = np.arange(12.0).reshape(3, 4)
    flat, (turned, every_other, number) = fm.flatten([values.T, values[:, ::2], np.array(7.0)])
    np.testing.assert_array_equal(turned, values.T)
    np.testing.assert_array_equal(every_other, [[0, 2], [4, 6], [8, 10]])
    np.testing.assert_array_equal(flat[-7:], [0, 2, 4, 6, 8, 10, 7])
    assert number.shape == ()


def test_flatten_takes_read_only_arrays_and_copies_them():
    array = np.arange(3.0)
    array.flags.writeable = False
    flat, (view,) = fm.flatten([array])
    view[0] = 7
    assert flat[0] == 7
    assert array[0] == 0
