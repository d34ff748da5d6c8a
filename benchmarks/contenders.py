"""Make the contenders: fastmomentum, and other implementations of the same update that are installed here."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from benchmarks import native
from benchmarks.native import Array, Dtype, Run

LR, MOMENTUM = 1e-3, 0.9
OURS = "fastmomentum"
TORCH_KINDS = ("for-loop", "foreach", "fused")
"""The three implementations in torch.optim.SGD."""


class Contender(NamedTuple):
    """Hold the function that does one update, and the function that returns the updated parameters as a list."""

    run: Run
    params: Callable[[], list[Array]]


Maker = Callable[[], Contender | None]
"""A function that makes a contender; it returns None if the library is not installed."""


def make_arrays(
    size: int, dtype: Dtype = np.float32, shape: tuple[int, ...] | None = None
) -> tuple[Array, Array, Array]:
    """Return a parameter, a velocity and a gradient whose updates have no subnormal numbers, which are slow."""
    shape = shape or (size,)
    return np.full(shape, 1.5, dtype), np.zeros(shape, dtype), np.full(shape, 1e-3, dtype)


def one_array_makers(size: int, dtype: Dtype, threads: int) -> dict[str, Maker]:
    """Return the makers of all contenders for one array.

    Contenders work on the same p and g if their libraries allow that; some allocate their own velocity. When each
    contender had its own arrays, one of them was up to 25 % slower than another at 10⁶ elements, and in the next run
    another one was: the cause was the place of the pages in the cache, not the code.
    """
    shared_arrays = cache(partial(make_arrays, size, dtype))  # allocated when the first contender is made
    single_threaded: dict[str, Maker] = {
        "NumPy, four lines": lambda: numpy_four_lines(*shared_arrays()),
        "NumPy in place": lambda: numpy_in_place(*shared_arrays()),
    }

    def param_and_grad() -> tuple[Array, Array]:
        p, _, g = shared_arrays()
        return p, g

    def as_lists() -> tuple[list[Array], list[Array]]:
        p, g = param_and_grad()
        return [p], [g]

    return {
        OURS: lambda: momentum_step(*param_and_grad(), threads),
        **(single_threaded if threads == 1 else {}),
        "numexpr": lambda: numexpr_in_place(*shared_arrays(), threads),
        **{f"torch {kind}": partial(torch_sgd, as_lists, threads, kind) for kind in TORCH_KINDS},
        "optax, jitted": lambda: optax_jitted(*param_and_grad()),
        "the loop in C": lambda: loop_in_c(*shared_arrays(), threads),
    }


def many_array_makers(shapes: Sequence[tuple[int, ...]], threads: int) -> dict[str, Maker]:
    """Return the makers of all contenders for many arrays of float32; all work on the same parameters and gradients."""
    shared_arrays = cache(lambda: [make_arrays(int(np.prod(shape)), np.float32, shape) for shape in shapes])
    params_and_grads = cache(lambda: ([p for p, _, _ in shared_arrays()], [g for _, _, g in shared_arrays()]))
    single_threaded: dict[str, Maker] = {
        "NumPy in place": lambda: in_sequence([numpy_in_place(*each) for each in shared_arrays()])
    }
    return {
        OURS: lambda: momentum_step(*params_and_grads(), threads),
        **(single_threaded if threads == 1 else {}),
        **{f"torch {kind}": partial(torch_sgd, params_and_grads, threads, kind) for kind in TORCH_KINDS},
    }


def momentum_step(params: Array | list[Array], grads: Array | list[Array], threads: int) -> Contender:
    """Return the contender that calls fm.Momentum.step, for one array or for a list of arrays."""
    opt = fm.Momentum(params, lr=LR, momentum=MOMENTUM, threads=threads)
    return Contender(lambda: opt.step(grads), lambda: params if isinstance(params, list) else [params])


def in_sequence(contenders: list[Contender]) -> Contender:
    """Return a contender that runs all of the given contenders, one after the other."""

    def run() -> None:
        for contender in contenders:
            contender.run()

    return Contender(run, lambda: [p for contender in contenders for p in contender.params()])


def numpy_in_place(p: Array, v: Array, g: Array) -> Contender:
    """Return the contender that makes four passes of NumPy over preallocated arrays.

    v ← μv + g; p ← p − lr·v

    The passes move 44 bytes per element in float32, or 48 (see benchmarks/README.md).
    """
    lr, mu, scratch = p.dtype.type(LR), p.dtype.type(MOMENTUM), np.empty_like(p)
    multiply, add, subtract = np.multiply, np.add, np.subtract

    def update() -> None:
        multiply(v, mu, out=v)
        add(v, g, out=v)
        multiply(v, lr, out=scratch)
        subtract(p, scratch, out=p)

    return Contender(update, lambda: [p])


def numpy_four_lines(p: Array, v: Array, g: Array) -> Contender:
    """Return the contender that computes the formula by NumPy and allocates new arrays in each update."""
    lr, mu = p.dtype.type(LR), p.dtype.type(MOMENTUM)
    current = [p, v]

    def update() -> None:
        current[1] = mu * current[1] + g
        current[0] = current[0] - lr * current[1]

    return Contender(update, lambda: [current[0]])


def numexpr_in_place(p: Array, v: Array, g: Array, threads: int) -> Contender | None:
    """Return the contender that makes two passes by numexpr, one for each line of the formula."""
    try:
        import numexpr
    except ImportError:
        return None
    numexpr.set_num_threads(threads)
    names = {"p": p, "v": v, "g": g, "lr": p.dtype.type(LR), "mu": p.dtype.type(MOMENTUM)}

    def update() -> None:
        numexpr.evaluate("mu * v + g", names, out=v)
        numexpr.evaluate("p - lr * v", names, out=p)

    return Contender(update, lambda: [p])


def torch_sgd(make: Callable[[], tuple[list[Array], list[Array]]], threads: int, kind: str) -> Contender | None:
    """Return the contender that calls one of the implementations in torch.optim.SGD, on the memory of the arrays."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    params, grads = make()
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    implementation = {"foreach": kind == "foreach", "fused": kind == "fused"}
    opt = torch.optim.SGD(tensors, lr=LR, momentum=MOMENTUM, **implementation)
    return Contender(opt.step, lambda: list(params))


def optax_jitted(p: Array, g: Array) -> Contender | None:
    """Return the contender that calls optax.sgd in one jitted function, which may overwrite its arguments.

    XLA uses all cores that the process may run on.
    """
    try:
        import jax
        import optax
    except ImportError:
        return None
    config: Any = jax.config
    config.update("jax_enable_x64", True)
    optimizer: Any = optax.sgd(LR, MOMENTUM)

    def update(p: Any, state: Any, g: Any) -> Any:
        change, state = optimizer.update(g, state, p)
        return optax.apply_updates(p, change), state

    step = jax.jit(update, donate_argnums=(0, 1))
    first = jax.numpy.array(p)
    current, grad = [first, optimizer.init(first)], jax.numpy.array(g)

    def run() -> None:
        current[:] = step(current[0], current[1], grad)
        current[0].block_until_ready()

    return Contender(run, lambda: [np.asarray(current[0])])


def loop_in_c(p: Array, v: Array, g: Array, threads: int) -> Contender | None:
    """Return the contender that runs the update as a loop in C, compiled by the system's compiler."""
    run = native.loop("update", p, v, g, threads, LR, MOMENTUM)
    return run and Contender(run, lambda: [p])
