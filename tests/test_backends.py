"""Which backend serves which arrays, and what is said where there is no CUDA."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends import cuda


class OnDevice:
    """An array that a CUDA library would have made."""

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


def test_without_numba_cuda_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    for call in calls():
        with pytest.raises(RuntimeError, match=r"numba-cuda, which is not installed: pip install fastmomentum\[cuda\]"):
            call()


def test_without_a_device_the_message_says_so():
    pytest.importorskip("numba_cuda", reason="the extra cuda is not installed")
    from numba import cuda as driver

    if driver.is_available():
        pytest.skip("there is a GPU")
    for call in calls():
        with pytest.raises(RuntimeError, match="needs a CUDA device and its driver; numba-cuda finds none"):
            call()


def test_the_host_needs_no_cuda():
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
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_streams_are_for_devices():
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


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend: expected None, 'numpy' or 'cpu' or 'cuda'; got 'gpu'"):
        fm.Momentum(np.zeros(3), lr=0.1, backend="gpu")
