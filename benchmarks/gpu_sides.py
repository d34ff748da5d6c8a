"""The same update by whom a user of a GPU would pick instead; each is left out where it is not installed."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda
from numba.cuda.cudadrv import driver

import fastmomentum as fm
from benchmarks import shapes
from benchmarks.contenders import LR, MOMENTUM, OURS, TORCH, optax_jitted
from fastmomentum.backends.cuda import kernels, tables
from fastmomentum.backends.cuda.codegen import CONTRACTED

Run = Callable[[], Any]
Maker = Callable[[], Run | None]
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
COPY, CONTRACT = "device-to-device copy", "ours, contracted to FMA"
NETWORKS: dict[str, Callable[[], list[shapes.Shape]]] = {
    "1,000 arrays of 1,000": lambda: [(1000,)] * 1000,
    "ResNet-50, 161 arrays": shapes.resnet50,
    "GPT-2 small, 148 arrays": shapes.gpt2_small,
}
Arrays = list[tuple[Any, Any, Any]]
"""p, v and g of each."""


class Case(NamedTuple):
    """What is compared: shapes of arrays of float32."""

    name: str
    shapes: Sequence[shapes.Shape]

    @property
    def elements(self) -> int:
        """How many are updated."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def moved(self) -> int:
        """Bytes that a fused update reads and writes."""
        return 20 * self.elements


def cases(smoke: bool) -> Iterator[Case]:
    """All comparisons, those that the device has memory for."""
    free = float(cuda.current_context().get_memory_info()[0])
    for size in SIZES[:1] if smoke else SIZES:
        if 16 * size < free:
            yield Case(f"n = {size:,}", [(100 if smoke else size,)])
    for name, make in {} if smoke else NETWORKS.items():
        yield Case(name, make())


def copies(case: Case) -> list[Arrays]:
    """So many sets of arrays that the device's cache has forgotten the first when the last has been updated."""
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
    """What makes the sides, all on the same memory."""
    made = cache(lambda: copies(case))
    single: dict[str, Maker] = {
        COPY: partial(_copy, made),
        CONTRACT: partial(_contracted, made),
        "CuPy": partial(_cupy, made),
        "optax, jitted, waited for": partial(_optax, made),
    }
    return {
        OURS: lambda: _in_turn([_ours(each) for each in made()]),
        **(single if len(case.shapes) == 1 else {}),
        **{f"torch {kind}": partial(_torch, made, kind) for kind in TORCH},
    }


def _in_turn(runs: list[Run]) -> Run:
    following = cycle(runs)
    return lambda: next(following)()


def _ours(arrays: Arrays) -> Run:
    opt = fm.Momentum([p for p, _, _ in arrays], lr=LR, momentum=MOMENTUM)
    grads = [g for _, _, g in arrays]
    return lambda: opt.step(grads)


def _copy(made: Callable[[], list[Arrays]]) -> Run:
    """As many bytes as an update moves: 2.5 arrays read, 2.5 written."""

    def one(p: Any, v: Any, g: Any) -> Run:
        half = p.size // 2
        pairs = [(p, g, p.size), (v, g, v.size), (p[:half], v[:half], half)]

        def run() -> None:
            for target, source, elements in pairs:
                driver.device_to_device(target, source, 4 * elements, stream=cuda.default_stream())

        return run

    return _in_turn([one(*each) for [each] in made()])


def _contracted(made: Callable[[], list[Arrays]]) -> Run | None:
    if config.ENABLE_CUDASIM:
        return None
    rule, dtype = fm.rules.pytorch, np.dtype(np.float32)
    kernel = kernels.compiled(kernels.make_kernel(rule, dtype, CONTRACTED))
    row = (dtype.type(LR), dtype.type(MOMENTUM), dtype.type(1))

    def one(*arrays: Any) -> Run:
        addresses, size = tuple(map(tables.address_of, arrays)), arrays[0].size
        blocks, head = -(-size // kernels.TILE), kernels.head_of(addresses, 4)
        return lambda: kernels.launch(kernel, blocks, cuda.default_stream(), addresses, size, head, row)

    return _in_turn([one(*each) for [each] in made()])


def _torch(made: Callable[[], list[Arrays]], kind: str) -> Run | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None

    def one(arrays: Arrays) -> Run:
        params = [torch.nn.Parameter(torch.as_tensor(p, device="cuda")) for p, _, _ in arrays]
        for param, (_, _, g) in zip(params, arrays):
            param.grad = torch.as_tensor(g, device="cuda")
        how = {"foreach": kind == "foreach", "fused": kind == "fused"}
        return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, **how).step

    return _in_turn([one(arrays) for arrays in made()])


def _cupy(made: Callable[[], list[Arrays]]) -> Run | None:
    try:
        import cupy
    except ImportError:
        return None
    kernel = cupy.ElementwiseKernel(
        "float32 g, float32 lr, float32 mu", "float32 p, float32 v", "v = mu * v + g; p = p - lr * v", "momentum"
    )

    def one(*arrays: Any) -> Run:
        p, v, g = map(cupy.asarray, arrays)
        return lambda: kernel(g, LR, MOMENTUM, p, v)

    return _in_turn([one(*each) for [each] in made()])


def _optax(made: Callable[[], list[Arrays]]) -> Run | None:
    """In a stream of JAX's own, so each call is waited for; on one set of arrays, which XLA owns."""
    try:
        import jax
    except ImportError:
        return None
    if jax.default_backend() != "gpu":
        return None
    side = optax_jitted(*(made()[0][0][i].copy_to_host() for i in (0, 2)))
    return side and side.run
