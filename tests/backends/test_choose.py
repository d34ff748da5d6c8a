"""The choice of the backend, and the messages when CUDA is missing."""

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends import cuda
from tests.helpers.processes import run_python


class OnDevice:
    """An array with the CUDA array interface, as a CUDA library makes it."""

    def __init__(self):
        self.__cuda_array_interface__ = {
            "shape": (3,),
            "typestr": "<f4",
            "data": (1 << 20, False),
            "strides": None,
            "version": 3,
        }


def calls():
    p = OnDevice()
    return [
        lambda: fm.step(p, p, p, lr=0.1),
        lambda: fm.Momentum(p, lr=0.1),
        lambda: fm.Momentum([p, p], lr=0.1),
        lambda: fm.Momentum(np.zeros(3), lr=0.1, backend="cuda"),
        lambda: fm.step(np.zeros(3), np.zeros(3), np.zeros(3), lr=0.1, backend="cuda"),
    ]


def test_cuda_arrays_are_refused_with_advice_when_numba_cuda_is_missing(monkeypatch):
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    for call in calls():
        with pytest.raises(RuntimeError, match=r"numba-cuda, which is not installed: pip install fastmomentum\[cuda\]"):
            call()


def test_cuda_arrays_are_refused_when_no_device_is_found():
    pytest.importorskip("numba_cuda", reason="the extra cuda is not installed")
    from numba import cuda as driver

    if driver.is_available():
        pytest.skip("there is a GPU")
    for call in calls():
        with pytest.raises(RuntimeError, match="needs a CUDA device and its driver; numba-cuda finds none"):
            call()


def test_host_backends_import_no_cuda():
    code = """
        import sys
        import numpy as np, fastmomentum as fm
        p = np.zeros(3)
        fm.Momentum(p, lr=1.0).step(np.ones(3))
        fm.step(p, np.zeros(3), np.ones(3), lr=1.0)
        assert (p == -2).all()
        found = [name for name in sys.modules if name.startswith(("numba.cuda.cudadrv", "cuda."))]
        assert not found, found
        """
    run_python(code)


def test_stream_is_refused_for_host_arrays():
    values = np.zeros(3), np.zeros(3), np.ones(3)
    with pytest.raises(TypeError, match="stream: expected None, as the arrays are on the host; got 5"):
        fm.step(*values, lr=0.1, stream=5)
    opt = fm.Momentum(values[0], lr=0.1)
    for _ in range(2):
        with pytest.raises(TypeError, match="stream: expected None, as the arrays are on the host; got 5"):
            opt.step(values[2], stream=5)
    assert not values[0].any()
    opt.step(values[2])
    assert values[0].all()


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend: expected None, 'numpy' or 'cpu' or 'cuda'; got 'gpu'"):
        fm.Momentum(np.zeros(3), lr=0.1, backend="gpu")
