"""Optimisers with the names, arguments and defaults of torch.optim, or of the packages that users know them from."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastmomentum.torch.arguments import check_at_least_zero, check_options
from fastmomentum.torch.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, the drop-in for torch.optim.SGD.

    v ← μv + (1−τ)g; p ← p − lr·v

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov, maximize
        As for torch.optim.SGD, with its defaults.
    **options
        max_norm, skip_nonfinite, threads, clip_value, and the arguments that torch's implementations have, as for
        :class:`Optimizer`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.

    Notes
    -----
    Equivalent to torch.optim.SGD. Each operation is rounded once, as Python would do it; torch's compiled code
    contracts products and sums, so that its last bits differ.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> model = torch.nn.Linear(2, 1)
    >>> opt = fastmomentum.torch.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    >>> schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10)
    >>> _ = model(torch.ones(3, 2)).sum().backward()
    >>> opt.step()
    >>> schedule.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_options(self, options, "decoupled_weight_decay")
        check_at_least_zero(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        options |= {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, "pytorch", nesterov=nesterov, maximize=maximize, **options)


class Lion(Optimizer):
    """Lion, whose step is the sign of an interpolated momentum.

    p ← p − lr·(sign(β1·m + (1−β1)g) + λp); m ← β2·m + (1−β2)g

    Parameters
    ----------
    params, lr, betas, weight_decay
        As for ``lion_pytorch.Lion``, with its defaults; the decay is decoupled.
    **options
        As for :class:`Optimizer`.

    Notes
    -----
    Chen et al. 2023 (Symbolic Discovery of Optimization Algorithms), program 1. State and groups have the names of
    ``lion_pytorch``: ``exp_avg``, ``betas``, ``weight_decay``.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> opt = fastmomentum.torch.Lion([weight], lr=0.25)
    >>> weight.grad = torch.tensor([3.0, -2.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([ 0.7500, -0.7500])
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-4,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        check_options(self, options)
        super().__init__(params, "lion", lr=lr, betas=tuple(betas), weight_decay=weight_decay, **options)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = dict(group)
        found["momentum"], found["beta2"] = found.pop("betas")
        found["decoupled_weight_decay"] = found.pop("weight_decay")
        return found


class Signum(Optimizer):
    """SignSGD with momentum: the step is the sign of an averaged gradient.

    m ← βm + (1−β)g; p ← p − lr·sign(m)

    Parameters
    ----------
    params, lr, momentum
        As for ``pytorch_optimizer.SignSGD``, with its defaults.
    weight_decay : float
        Coupled decay, which is added to the gradient; the decoupled decay is the option ``decoupled_weight_decay``.
    **options
        As for :class:`Optimizer`.

    Notes
    -----
    Bernstein et al. 2018 (signSGD: compressed optimisation for non-convex problems), algorithm 2.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> opt = fastmomentum.torch.Signum([weight], lr=0.25)
    >>> weight.grad = torch.tensor([3.0, -2.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([ 0.7500, -0.7500])
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        check_options(self, options, "decoupled_weight_decay")
        super().__init__(params, "signum", lr=lr, momentum=momentum, weight_decay=weight_decay, **options)


class QHM(Optimizer):
    """Quasi-hyperbolic momentum, which averages the gradient and the velocity.

    v ← βv + (1−β)g; p ← p − lr·(ν·v + (1−ν)g)

    Parameters
    ----------
    params, lr, momentum, nu, weight_decay
        As for ``qhoptim.pyt.QHM``.
    **options
        As for :class:`Optimizer`.

    Notes
    -----
    Ma and Yarats 2019 (Quasi-hyperbolic momentum and Adam for deep learning), equations 3 and 4. The buffer has the
    name of ``qhoptim``: ``momentum_buffer``.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.QHM([weight], lr=1.0, momentum=0.5, nu=0.5)
    >>> weight.grad = torch.tensor([1.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.2500])
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor,
        momentum: float,
        nu: float = 0.7,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        check_options(self, options, "decoupled_weight_decay")
        options |= {"lr": lr, "momentum": momentum, "nu": nu, "weight_decay": weight_decay}
        super().__init__(params, "quasi_hyperbolic", **options)
