"""The schedule-free optimisers, with the interface of the package schedulefree."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fastmomentum.torch.arguments import Number, check_at_least_zero, check_betas, check_options
from fastmomentum.torch.names import MEMORY
from fastmomentum.torch.optimizer import Optimizer

RENAMED = {"warmup_steps": "warmup", "weight_lr_power": "power"}
"""The names of settings in groups that differ from those of the rules."""


def check_holds_average(name: str, momentum: Any) -> None:
    """Check that momentum is so that the average of the points follows from the parameters.

    Raises
    ------
    ValueError
        If it does not.
    """
    if isinstance(momentum, int | float | torch.Tensor) and not 0.0 < momentum < 1.0:
        raise ValueError(
            f"{name}: expected a number in (0, 1), as the parameters would not hold the average; got {momentum}"
        )


class ScheduleFree(Optimizer):
    """Hold what the schedule-free optimisers share: the switch between training and evaluation."""

    def train(self) -> None:
        """Put the points at which gradients are taken into the parameters; call it before training goes on."""
        self._switch(True)

    def eval(self) -> None:
        """Put the average of the points into the parameters; call it before evaluation, and before saving a model."""
        self._switch(False)

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        for group in self.param_groups:
            for param in group["params"] if group["train_mode"] != train else ():
                state = self.state.get(param, {})
                beta = state.get(MEMORY, {}).get("last_momentum", 0.0)  # that of the group may be another one by now
                if beta:
                    param.lerp_(state["z"], 1.0 - beta if train else 1.0 - 1.0 / beta)
            group["train_mode"] = train

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one update of all parameters that have a gradient, as :meth:`Optimizer.step`.

        Raises
        ------
        RuntimeError
            If the parameters hold the average: after :meth:`eval`.
        """
        if not all([group["train_mode"] for group in self.param_groups]):
            raise RuntimeError(
                "step: expected a call of opt.train() after opt.eval(), as gradients are taken elsewhere"
            )
        return super().step(closure)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = {RENAMED.get(name, name): value for name, value in group.items() if name != "train_mode"}
        if "betas" in found:
            found["momentum"], found["beta2"] = found.pop("betas")
        return found


class SGDScheduleFree(ScheduleFree):
    """Schedule-free SGD: the average of the points takes the place of a schedule of lr.

    z ← z − lr_t·(g + λp); x ← (1−c)x + c·z; p ← (1−β)z + βx

    Parameters
    ----------
    params, lr, momentum, weight_decay, warmup_steps, r, weight_lr_power
        As for ``schedulefree.SGDScheduleFree``, with its defaults.
    **options
        As for :class:`Optimizer`.

    Notes
    -----
    Defazio et al. 2024, Equations 3 to 5. Call :meth:`eval` before you evaluate, and :meth:`train` before you go on.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.SGDScheduleFree([weight], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     weight.grad = torch.ones(1)
    ...     opt.step()
    >>> opt.eval()
    >>> weight.detach()
    tensor([0.2500])
    >>> opt.train()
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Any,
    ) -> None:
        check_options(self, options)
        check_at_least_zero(lr=lr, weight_decay=weight_decay)
        check_at_least_zero(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        check_holds_average("momentum", momentum)
        options |= {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        options |= {"r": r, "weight_lr_power": weight_lr_power, "train_mode": True}
        super().__init__(params, "schedule_free_sgd", **options)


class AdamWScheduleFree(ScheduleFree):
    """Schedule-free AdamW: the average of the points takes the place of a schedule of lr.

    s ← β₂s + (1−β₂)g²; as :class:`SGDScheduleFree`, with g/(√(s/(1−β₂^t)) + ε) in place of g

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, warmup_steps, r, weight_lr_power
        As for ``schedulefree.AdamWScheduleFree``, with its defaults.
    **options
        As for :class:`Optimizer`.

    Notes
    -----
    Defazio et al. 2024, Algorithm 1. Call :meth:`eval` before you evaluate, and :meth:`train` before you go on.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.AdamWScheduleFree([weight], lr=0.5)
    >>> weight.grad = torch.ones(1)
    >>> opt.step()
    >>> weight.detach()
    tensor([0.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 2.5e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Any,
    ) -> None:
        check_options(self, options)
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_at_least_zero(warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
        check_betas(betas)
        check_holds_average("betas[0]", betas[0])
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        options |= {"r": r, "weight_lr_power": weight_lr_power, "train_mode": True}
        super().__init__(params, "schedule_free_adamw", **options)
