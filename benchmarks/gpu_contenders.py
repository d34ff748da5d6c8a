"""Make the contenders on a CUDA device: fastmomentum, and other implementations that are installed here."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda
from numba.cuda.cudadrv import driver

import fastmomentum as fm
from benchmarks import shapes
from benchmarks.contenders import LR, MOMENTUM, OURS, TORCH_KINDS, optax_jitted
from benchmarks.native import Run
from fastmomentum.backends.cuda import kernels, tables
from fastmomentum.backends.cuda.codegen import CONTRACTED

Maker = Callable[[], Run | None]
"""A function that returns a contender's run; it returns None if the library is not installed."""

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
COPY, OURS_CONTRACTED = "device-to-device copy", "ours, contracted to FMA"
MANY_ARRAYS: dict[str, Callable[[], list[shapes.Shape]]] = {
    "1,000 arrays of 1,000": lambda: [(1000,)] * 1000,
    "ResNet-50, 161 arrays": shapes.resnet50,
    "GPT-2 small, 148 arrays": shapes.gpt2_small,
}
"""The shapes of all arrays in each case of many arrays."""

DeviceArray = Any  # numba-cuda ships no types
Arrays = list[tuple[DeviceArray, DeviceArray, DeviceArray]]
"""The parameter, the velocity and the gradient of each array."""


class Case(NamedTuple):
    """Hold the name of a case, and the shapes of its arrays of float32."""

    name: str
    shapes: Sequence[shapes.Shape]

    @property
    def elements(self) -> int:
        """The number of elements that are updated."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def moved(self) -> int:
        """The bytes that a fused update reads and writes."""
        return 20 * self.elements


def cases(smoke: bool) -> Iterator[Case]:
    """Yield all cases for which the device has enough memory; if `smoke`, one small case."""
    free = float(cuda.current_context().get_memory_info()[0])
    for size in SIZES[:1] if smoke else SIZES:
        if 16 * size < free:
            yield Case(f"n = {size:,}", [(100 if smoke else size,)])
    for name, make in {} if smoke else MANY_ARRAYS.items():
        yield Case(name, make())


def copies(case: Case) -> list[Arrays]:
    """Return sets of the case's arrays that together take at least three times the room of the device's cache.

    When updates go round these sets, each update reads memory that the cache no longer holds.
    """
    cached = 0 if config.ENABLE_CUDASIM else cuda.get_current_device().L2_CACHE_SIZE
    made = []
    for _ in range(1 + 3 * cached // (12 * case.elements)):
        values = [
            (np.full(shape, 1.5, np.float32), np.zeros(shape, np.float32), np.full(shape, 1e-3, np.float32))
            for shape in case.shapes
        ]
        made.append([tuple(map(cuda.to_device, each)) for each in values])
    return made


def makers(case: Case) -> dict[str, Maker]:
    """Return the makers of all contenders, on the same memory; some contenders exist for one array only."""
    shared_copies = cache(lambda: copies(case))
    one_array: dict[str, Maker] = {
        COPY: partial(_copy, shared_copies),
        OURS_CONTRACTED: partial(_contracted, shared_copies),
        "CuPy": partial(_cupy, shared_copies),
        "optax, jitted, synchronised": partial(_optax, shared_copies),
    }
    return {
        OURS: lambda: _in_turn([_momentum_step(each) for each in shared_copies()]),
        **(one_array if len(case.shapes) == 1 else {}),
        **{f"torch {kind}": partial(_torch, shared_copies, kind) for kind in TORCH_KINDS},
    }


def _in_turn(runs: list[Run]) -> Run:
    """Return a function that calls one of the runs, at each call the next."""
    following = cycle(runs)
    return lambda: next(following)()


def _momentum_step(arrays: Arrays) -> Run:
    opt = fm.Momentum([p for p, _, _ in arrays], lr=LR, momentum=MOMENTUM)
    grads = [g for _, _, g in arrays]
    return lambda: opt.step(grads)


def _copy(make: Callable[[], list[Arrays]]) -> Run:
    """Return copies within the device that move the bytes of an update: 2.5 arrays are read, 2.5 are written."""

    def run_of(p: DeviceArray, v: DeviceArray, g: DeviceArray) -> Run:
        half = p.size // 2
        pairs = [(p, g, p.size), (v, g, v.size), (p[:half], v[:half], half)]

        def run() -> None:
            for target, source, elements in pairs:
                driver.device_to_device(target, source, 4 * elements, stream=cuda.default_stream())

        return run

    return _in_turn([run_of(*each) for [each] in make()])


def _contracted(make: Callable[[], list[Arrays]]) -> Run | None:
    """Return updates by the kernel of fastmomentum, but with multiplications and additions contracted to FMA."""
    if config.ENABLE_CUDASIM:
        return None
    rule, dtype = fm.rules.pytorch, np.dtype(np.float32)
    kernel = kernels.compiled(kernels.make_kernel(rule, dtype, CONTRACTED))
    hyper = (dtype.type(LR), dtype.type(MOMENTUM), dtype.type(1))

    def run_of(*arrays: DeviceArray) -> Run:
        addresses, size = tuple(map(tables.address_of, arrays)), arrays[0].size
        blocks, head = -(-size // kernels.TILE), kernels.head_of(addresses, 4)
        return lambda: kernels.launch(kernel, blocks, cuda.default_stream(), addresses, size, head, hyper)

    return _in_turn([run_of(*each) for [each] in make()])


def _torch(make: Callable[[], list[Arrays]], kind: str) -> Run | None:
    """Return calls of one of the implementations in torch.optim.SGD."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def run_of(arrays: Arrays) -> Run:
        params = [torch.nn.Parameter(torch.as_tensor(p, device="cuda")) for p, _, _ in arrays]
        for param, (_, _, g) in zip(params, arrays):
            param.grad = torch.as_tensor(g, device="cuda")
        implementation = {"foreach": kind == "foreach", "fused": kind == "fused"}
        return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, **implementation).step

    return _in_turn([run_of(arrays) for arrays in make()])


def _cupy(make: Callable[[], list[Arrays]]) -> Run | None:
    """Return calls of a kernel that CuPy compiles from the formula."""
    try:
        import cupy
    except ImportError:
        return None
    kernel = cupy.ElementwiseKernel(
        "float32 g, float32 lr, float32 mu", "float32 p, float32 v", "v = mu * v + g; p = p - lr * v", "momentum"
    )

    def run_of(*arrays: DeviceArray) -> Run:
        p, v, g = map(cupy.asarray, arrays)
        return lambda: kernel(g, LR, MOMENTUM, p, v)

    return _in_turn([run_of(*each) for [each] in make()])


def _optax(make: Callable[[], list[Arrays]]) -> Run | None:
    """Return calls of optax.sgd in a jitted function, on one set of arrays that XLA allocates.

    Each call waits until it is done, since JAX runs it in a stream of its own, which the events do not see.
    """
    try:
        import jax
    except ImportError:
        return None
    if jax.default_backend() != "gpu":
        return None
    contender = optax_jitted(*(make()[0][0][i].copy_to_host() for i in (0, 2)))
    return contender and contender.run
