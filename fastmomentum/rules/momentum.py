"""Define the momentum rules, each as one plain function of scalars with its record.

The NumPy backend calls the function on whole arrays, the CPU and CUDA kernels contain it compiled, the theory calls it
on linear forms, and tests call it on ``fractions.Fraction``. The order of its operations is part of a rule's
definition, as it determines the bits.

Names in the formulas: p parameter, g gradient, v velocity, q previous position, lr learning rate, mu momentum μ (beta β
in the averaging forms), τ dampening, keep 1 − τ or 1 − β, mu_next or μ' the momentum of the next step, which is that of
this step unless it is given. All rules in this file are linear in p, state and g; :mod:`fastmomentum.rules.variants`
has more.
"""

from typing import Any

from fastmomentum.rules.base import Rule
from fastmomentum.rules.variants import keep_averaged

Out = tuple[Any, ...]


def keep_undamped(dampening: float) -> float:
    """Return 1 − τ."""
    return 1.0 - dampening


def _sgd(p: Any, g: Any, lr: Any) -> Out:
    return (p - lr * g,)


def _pytorch(p: Any, v: Any, g: Any, lr: Any, mu: Any, keep: Any) -> Out:
    v = mu * v + keep * g
    return p - lr * v, v


def _pytorch_nesterov(p: Any, v: Any, g: Any, lr: Any, mu: Any, mu_next: Any) -> Out:
    v = mu * v + g
    return p - lr * (g + mu_next * v), v


def _classical(p: Any, v: Any, g: Any, lr: Any, mu: Any) -> Out:
    v = mu * v + lr * g
    return p - v, v


def _classical_nesterov(p: Any, v: Any, g: Any, lr: Any, mu: Any, mu_next: Any) -> Out:
    v = mu * v + lr * g
    return p - (mu_next * v + lr * g), v


def _ema_nesterov(p: Any, v: Any, g: Any, lr: Any, beta: Any, keep: Any, beta_next: Any) -> Out:
    v = beta * v + keep * g
    return p - lr * (beta_next * v + keep * g), v


def _ahead_scaled(p: Any, v: Any, lr: Any, mu: Any) -> Any:
    return p - lr * mu * v


def _ahead_plain(p: Any, v: Any, lr: Any, mu: Any) -> Any:
    return p - mu * v


def _descend(p: Any, g: Any, lr: Any) -> Any:
    return p - lr * g


def _heavy_ball(x: Any, p: Any, q: Any, mu: Any) -> Out:
    return x + mu * (p - q), p


def _nesterov_positions(x: Any, p: Any, q: Any, mu: Any) -> Out:
    return x + mu * (x - q), x


sgd = Rule(_sgd, name="sgd", state=(), hyper=("lr",), formula="p ← p − lr·g")
"""Gradient descent. The rule has no state and takes no momentum."""

pytorch = Rule(
    _pytorch,
    name="pytorch",
    hyper=("lr", "momentum", "keep"),
    derived={"keep": keep_undamped},
    defaults={"dampening": 0.0},
    nesterov="pytorch_nesterov",
    first={"dampening": 0.0},
    at_zero_momentum="sgd",
    ahead=_ahead_scaled,
    formula="v ← μv + (1−τ)g; p ← p − lr·v",
)
"""Equivalent to torch.optim.SGD, optax.sgd and TensorFlow's MomentumOptimizer."""

pytorch_nesterov = Rule(
    _pytorch_nesterov,
    name="pytorch_nesterov",
    hyper=("lr", "momentum", "momentum_next"),
    defaults={"momentum_next": "momentum"},
    nesterov="pytorch_nesterov",
    at_zero_momentum="sgd",
    formula="v ← μv + g; p ← p − lr·(g + μ'v)",
)
"""Equivalent to torch.optim.SGD and optax.sgd with nesterov=True."""

classical = Rule(
    _classical,
    name="classical",
    nesterov="classical_nesterov",
    ahead=_ahead_plain,
    formula="v ← μv + lr·g; p ← p − v",
)
"""Equivalent to SGD of Keras and scikit-learn, and to Sutskever et al. 2013; their v has the opposite sign."""

classical_nesterov = Rule(
    _classical_nesterov,
    name="classical_nesterov",
    hyper=("lr", "momentum", "momentum_next"),
    defaults={"momentum_next": "momentum"},
    nesterov="classical_nesterov",
    formula="v ← μv + lr·g; p ← p − (μ'v + lr·g)",
)
"""Equivalent to SGD of Keras and scikit-learn with nesterov=True."""

ema = Rule(
    _pytorch,
    name="ema",
    hyper=("lr", "momentum", "keep"),
    derived={"keep": keep_averaged},
    nesterov="ema_nesterov",
    ahead=_ahead_scaled,
    formula="v ← βv + (1−β)g; p ← p − lr·v",
)
"""The exponential average of the gradients: the function of `pytorch` with keep = 1 − β."""

ema_nesterov = Rule(
    _ema_nesterov,
    name="ema_nesterov",
    hyper=("lr", "momentum", "keep", "momentum_next"),
    derived={"keep": keep_averaged},
    defaults={"momentum_next": "momentum"},
    nesterov="ema_nesterov",
    formula="v ← βv + (1−β)g; p ← p − lr·(β'v + (1−β)g)",
)
"""Nesterov's form of the exponential average."""

heavy_ball = Rule.positions(_descend, _heavy_ball, name="heavy_ball", formula="p⁺ = p − lr·g + μ(p − q); q ← p")
"""Polyak 1964.

In float32 far from the origin p − q loses digits: on ½(p − 1000)² with lr 1e-3 and momentum 0.9 heavy_ball oscillates
by ±0.031 for ever, while `classical` stops 0.0024 away. As q − p is the velocity, any other change of p between two
updates (a loaded file, a decay) changes the velocity."""

nesterov_positions = Rule.positions(
    _descend, _nesterov_positions, name="nesterov_positions", formula="x⁺ = p − lr·g; p⁺ = x⁺ + μ(x⁺ − q); q ← x⁺"
)
"""FISTA's form of Nesterov's method (Beck and Teboulle 2009), whose x_k is q here, and whose y_k is p."""
