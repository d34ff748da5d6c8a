"""The same update by whom a user would pick instead; each is left out where it is not installed."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from benchmarks import native

LR, MOMENTUM = 1e-3, 0.9
OURS = "fastmomentum"


class Side(NamedTuple):
    """One contender: what runs an update, and where its parameters are afterwards, one array behind the other."""

    run: Callable[[], Any]
    params: Callable[[], list[Any]]


Maker = Callable[[], Side | None]
"""What makes a side, or None where its library is not installed."""


def arrays(size: int, dtype: Any = np.float32, shape: tuple[int, ...] | None = None) -> tuple[Any, Any, Any]:
    """Parameter, velocity and gradient, of ordinary numbers: none that a processor is slow with."""
    shape = shape or (size,)
    return np.full(shape, 1.5, dtype), np.zeros(shape, dtype), np.full(shape, 1e-3, dtype)


def one(size: int, dtype: Any, threads: int) -> dict[str, Maker]:
    """The sides for one array, on the same p and g where the library allows that; some have a velocity of their own.

    With arrays of its own for each side, one was up to 25 % slower than another at 10⁶ elements, in some runs this one
    and in others that: what the pages' places in the cache did, not the code.
    """
    made = cache(partial(arrays, size, dtype))  # by the first side that is made
    alone: dict[str, Maker] = {
        "NumPy, four lines": lambda: numpy_four_lines(*made()),
        "NumPy in place": lambda: numpy_in_place(*made()),
    }
    return {
        OURS: lambda: ours(made()[0], made()[2], threads),
        **(alone if threads == 1 else {}),
        "numexpr": lambda: numexpr_in_place(*made(), threads),
        **{f"torch {kind}": partial(torch_on, lambda: (made()[:1], made()[2:]), threads, kind) for kind in TORCH},
        "optax, jitted": lambda: optax_jitted(*made()[::2]),
        "the loop in C": lambda: loop_in_c(*made(), threads),
    }


def many(shapes: Sequence[tuple[int, ...]], threads: int) -> dict[str, Maker]:
    """The sides for many arrays of float32, on the same params and grads."""
    made = cache(lambda: [arrays(int(np.prod(shape)), np.float32, shape) for shape in shapes])
    both = cache(lambda: ([p for p, _, _ in made()], [g for _, _, g in made()]))
    alone: dict[str, Maker] = {"NumPy in place": lambda: one_by_one([numpy_in_place(*each) for each in made()])}
    return {
        OURS: lambda: ours(*both(), threads),
        **(alone if threads == 1 else {}),
        **{f"torch {kind}": partial(torch_on, both, threads, kind) for kind in TORCH},
    }


TORCH = ("for-loop", "foreach", "fused")
"""torch.optim.SGD's three implementations."""


def ours(params: Any, grads: Any, threads: int) -> Side:
    """Momentum.step, for one array or a list of them."""
    opt = fm.Momentum(params, lr=LR, momentum=MOMENTUM, threads=threads)
    return Side(lambda: opt.step(grads), lambda: params if isinstance(params, list) else [params])


def one_by_one(sides: list[Side]) -> Side:
    """The same for one array after the other."""

    def run() -> None:
        for side in sides:
            side.run()

    return Side(run, lambda: [p for side in sides for p in side.params()])


def numpy_in_place(p: Any, v: Any, g: Any) -> Side:
    """v ← μv + g; p ← p − lr·v by four passes over preallocated arrays: 44 bytes an element, or 48 (see README)."""
    lr, mu, scratch = p.dtype.type(LR), p.dtype.type(MOMENTUM), np.empty_like(p)
    multiply, add, subtract = np.multiply, np.add, np.subtract

    def update() -> None:
        multiply(v, mu, out=v)
        add(v, g, out=v)
        multiply(v, lr, out=scratch)
        subtract(p, scratch, out=p)

    return Side(update, lambda: [p])


def numpy_four_lines(p: Any, v: Any, g: Any) -> Side:
    """The formula as it is written, with new arrays each time."""
    lr, mu = p.dtype.type(LR), p.dtype.type(MOMENTUM)
    held = [p, v]

    def update() -> None:
        held[1] = mu * held[1] + g
        held[0] = held[0] - lr * held[1]

    return Side(update, lambda: [held[0]])


def numexpr_in_place(p: Any, v: Any, g: Any, threads: int) -> Side | None:
    """The formula in two expressions, each one pass."""
    try:
        import numexpr
    except ImportError:
        return None
    numexpr.set_num_threads(threads)
    names = {"p": p, "v": v, "g": g, "lr": p.dtype.type(LR), "mu": p.dtype.type(MOMENTUM)}

    def update() -> None:
        numexpr.evaluate("mu * v + g", names, out=v)
        numexpr.evaluate("p - lr * v", names, out=p)

    return Side(update, lambda: [p])


def torch_on(made: Callable[[], tuple[Sequence[Any], Sequence[Any]]], threads: int, kind: str) -> Side | None:
    """torch.optim.SGD.step of one of its three implementations, on the same memory."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    params, grads = made()
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    chosen = {"foreach": kind == "foreach", "fused": kind == "fused"}
    opt = torch.optim.SGD(tensors, lr=LR, momentum=MOMENTUM, **chosen)
    return Side(opt.step, lambda: list(params))


def optax_jitted(p: Any, g: Any) -> Side | None:
    """optax.sgd in one compiled function, which may write over what it is given; XLA takes all cores that it sees."""
    try:
        import jax
        import optax
    except ImportError:
        return None
    config: Any = jax.config
    config.update("jax_enable_x64", True)
    make: Any = optax.sgd(LR, MOMENTUM)

    def update(p: Any, state: Any, g: Any) -> Any:
        change, state = make.update(g, state, p)
        return optax.apply_updates(p, change), state

    step = jax.jit(update, donate_argnums=(0, 1))
    first = jax.numpy.array(p)
    held, grad = [first, make.init(first)], jax.numpy.array(g)

    def run() -> None:
        held[:] = step(held[0], held[1], grad)
        held[0].block_until_ready()

    return Side(run, lambda: [np.asarray(held[0])])


def loop_in_c(p: Any, v: Any, g: Any, threads: int) -> Side | None:
    """What the system's compiler makes of the same loop."""
    run = native.loop("update", p, v, g, threads, LR, MOMENTUM)
    return run and Side(run, lambda: [p])
