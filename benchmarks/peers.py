"""The same update by others: NumPy in place, torch's fused SGD, a loop in C."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
LR, MOMENTUM = 1e-3, 0.9

C_LOOP = """
void update(long n, float *restrict p, float *restrict v, const float *restrict g, float lr, float mu, float keep) {
    for (long i = 0; i < n; i++) {
        v[i] = mu * v[i] + keep * g[i];
        p[i] = p[i] - lr * v[i];
    }
}
"""


def arrays(size: int, count: int = 1) -> list[tuple[Floats, Floats, Floats]]:
    """Parameter, velocity and gradient, of ordinary numbers: none that a processor is slow with."""
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal(size).astype(np.float32), np.zeros(size, np.float32), np.full(size, 1e-3, np.float32))
        for _ in range(count)
    ]


def numpy_in_place(p: Floats, v: Floats, g: Floats) -> Callable[[], None]:
    """v ← μv + g; p ← p − lr·v by three passes over preallocated arrays: 44 bytes an element."""
    lr, mu, scratch = np.float32(LR), np.float32(MOMENTUM), np.empty_like(p)
    multiply, add, subtract = np.multiply, np.add, np.subtract

    def update() -> None:
        multiply(v, mu, out=v)
        add(v, g, out=v)
        multiply(v, lr, out=scratch)
        subtract(p, scratch, out=p)

    return update


def torch_fused(params: Sequence[Floats], grads: Sequence[Floats]) -> Callable[[], Any] | None:
    """torch.optim.SGD(fused=True).step on one thread, the gradients in place; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g.copy())
    return torch.optim.SGD(tensors, lr=LR, momentum=MOMENTUM, fused=True).step


def c_loop(p: Floats, v: Floats, g: Floats) -> Callable[[], Any] | None:
    """The loop in C, by cc -O3 -march=native; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "update.c"), Path(folder, "update.so")
        source.write_text(C_LOOP)
        subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True)
        function = ctypes.CDLL(str(library)).update
    pointer = ctypes.POINTER(ctypes.c_float)
    number = ctypes.c_float
    given = (ctypes.c_long(p.size), *(a.ctypes.data_as(pointer) for a in (p, v, g)))
    return lambda: function(*given, number(LR), number(MOMENTUM), number(1.0))
