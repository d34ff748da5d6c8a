"""The same update by whom a user would pick instead; each is left out where it is not installed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fastmomentum as fm
from benchmarks import native

Side = Callable[[], Any]

LR, MOMENTUM = 1e-3, 0.9
OURS = "fastmomentum"


def arrays(size: int, dtype: Any = np.float32, shape: tuple[int, ...] | None = None) -> tuple[Any, Any, Any]:
    """Parameter, velocity and gradient, of ordinary numbers: none that a processor is slow with."""
    shape = shape or (size,)
    return np.full(shape, 1.5, dtype), np.zeros(shape, dtype), np.full(shape, 1e-3, dtype)


def one(size: int, dtype: Any, threads: int) -> dict[str, Side]:
    """The sides for one array, on the same memory where the library allows that.

    With arrays of its own for each side, one was up to 25 % slower than another at 10⁶ elements, in some runs this one
    and in others that: what the pages' places in the cache did, not the code.
    """
    p, v, g = arrays(size, dtype)
    opt = fm.Momentum(p, lr=LR, momentum=MOMENTUM, threads=threads)
    sides: dict[str, Side | None] = {
        OURS: lambda: opt.step(g),
        "NumPy, four lines": _numpy_naive(p, v, g) if threads == 1 else None,
        "NumPy in place": numpy_in_place(p, v, g) if threads == 1 else None,
        "numexpr": _numexpr(p, v, g, threads),
        **{f"torch {kind}": torch([p], [g], threads, kind) for kind in ("for-loop", "foreach", "fused")},
        "optax, jitted": _optax(p, g) if threads > 1 else None,  # XLA takes all cores
        "the loop in C": native.loop("update", p, opt.velocity, g, threads, LR, MOMENTUM),
        **{f"ceiling: {name}": native.loop(name, p, v, g, threads, LR, 1.0) for name in ("copy", "scale", "triad")},
    }
    return {name: side for name, side in sides.items() if side is not None}


def many(shapes: Sequence[tuple[int, ...]], threads: int) -> dict[str, Side]:
    """The sides for many arrays of float32."""
    made = [arrays(int(np.prod(shape)), np.float32, shape) for shape in shapes]
    params, grads = [p for p, _, _ in made], [g for _, _, g in made]
    opt = fm.Momentum(params, lr=LR, momentum=MOMENTUM, threads=threads)
    loops = [numpy_in_place(*each) for each in made]
    sides: dict[str, Side | None] = {
        OURS: lambda: opt.step(grads),
        "NumPy in place": (lambda: [loop() for loop in loops]) if threads == 1 else None,
        **{f"torch {kind}": torch(params, grads, threads, kind) for kind in ("for-loop", "foreach", "fused")},
    }
    return {name: side for name, side in sides.items() if side is not None}


def numpy_in_place(p: Any, v: Any, g: Any) -> Side:
    """v ← μv + g; p ← p − lr·v by four passes over preallocated arrays: 44 bytes an element."""
    lr, mu, scratch = p.dtype.type(LR), p.dtype.type(MOMENTUM), np.empty_like(p)
    multiply, add, subtract = np.multiply, np.add, np.subtract

    def update() -> None:
        multiply(v, mu, out=v)
        add(v, g, out=v)
        multiply(v, lr, out=scratch)
        subtract(p, scratch, out=p)

    return update


def _numpy_naive(p: Any, v: Any, g: Any) -> Side:
    lr, mu = p.dtype.type(LR), p.dtype.type(MOMENTUM)
    held = [p, v]

    def update() -> None:
        held[1] = mu * held[1] + g
        held[0] = held[0] - lr * held[1]

    return update


def _numexpr(p: Any, v: Any, g: Any, threads: int) -> Side | None:
    try:
        import numexpr
    except ImportError:
        return None
    numexpr.set_num_threads(threads)
    names = {"p": p, "v": v, "g": g, "lr": p.dtype.type(LR), "mu": p.dtype.type(MOMENTUM)}

    def update() -> None:
        numexpr.evaluate("mu * v + g", names, out=v)
        numexpr.evaluate("p - lr * v", names, out=p)

    return update


def torch(params: Sequence[Any], grads: Sequence[Any], threads: int, kind: str) -> Side | None:
    """torch.optim.SGD.step of one of its three implementations, on the same memory."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(g)
    chosen = {"foreach": kind == "foreach", "fused": kind == "fused"}
    return torch.optim.SGD(tensors, lr=LR, momentum=MOMENTUM, **chosen).step


def _optax(p: Any, g: Any) -> Side | None:
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

    return run
