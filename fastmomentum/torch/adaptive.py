"""RMSprop, Adagrad and Adadelta."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from fastmomentum.rules import adaptive
from fastmomentum.rules.base import Rule
from fastmomentum.torch.arguments import IGNORED, Number, check_at_least_zero, check_options, chosen
from fastmomentum.torch.optimizer import Optimizer


class RMSprop(Optimizer):
    """RMSprop, the drop-in for torch.optim.RMSprop.

    s ← αs + (1−α)g²; v ← μv + g/(√s + ε); p ← p − lr·v

    Parameters
    ----------
    params, lr, alpha, eps, weight_decay, momentum, centered, maximize
        As for torch.optim.RMSprop, with its defaults. centered must be the same in all groups.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Tieleman and Hinton 2012 (lecture 6.5); centered as Graves 2013. Equivalent to torch.optim.RMSprop, with
    interchangeable state.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.RMSprop([weight], lr=0.5, alpha=0.75, eps=0.0)
    >>> weight.grad = torch.tensor([4.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.])
    """

    ignored: ClassVar[tuple[str, ...]] = IGNORED

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_options(self, options)
        check_at_least_zero(lr=lr, eps=eps, momentum=momentum, weight_decay=weight_decay, alpha=alpha)
        options |= {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        options |= {"centered": centered, "maximize": maximize}
        super().__init__(params, self.rule_of(adaptive.rmsprop, [options]), **options)

    @staticmethod
    def rule_of(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> Rule:
        """Return the rule of these groups."""
        if any([callable(group["momentum"]) or group["momentum"] > 0 for group in groups]):
            rules = {False: adaptive.rmsprop_momentum, True: adaptive.rmsprop_centered_momentum}
        else:
            rules = {False: adaptive.rmsprop, True: adaptive.rmsprop_centered}
        return chosen(groups, "centered", rules)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = dict(group)
        found["beta2"] = found.pop("alpha")
        found.pop("centered", None)
        return found


class Adagrad(Optimizer):
    """Adagrad, the drop-in for torch.optim.Adagrad.

    S ← S + g²; p ← p − lr/(1+(t−1)·lr_decay) · g/(√S + ε)

    Parameters
    ----------
    params, lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize
        As for torch.optim.Adagrad, with its defaults.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Duchi, Hazan and Singer 2011, Figure 1. Equivalent to torch.optim.Adagrad, with interchangeable state, which is made
    together with the optimiser, as in torch. Gradients must be dense.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.Adagrad([weight], lr=0.5)
    >>> weight.grad = torch.tensor([4.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_options(self, options)
        initial = initial_accumulator_value
        check_at_least_zero(
            lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, initial_accumulator_value=initial, eps=eps
        )
        options |= {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.adagrad, initial_accumulator_value=initial, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with settings of its own, and make its state."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            initial = group["initial_accumulator_value"]
            total = torch.full_like(param.detach(), complex(initial, initial) if param.is_complex() else initial)
            self.state[param] = {"step": torch.tensor(0.0), "sum": total}

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        return {name: value for name, value in group.items() if name != "initial_accumulator_value"}


class Adadelta(Optimizer):
    """Adadelta, the drop-in for torch.optim.Adadelta.

    s ← ρs + (1−ρ)g²; d = √(D + ε)/√(s + ε)·g; D ← ρD + (1−ρ)d²; p ← p − lr·d

    Parameters
    ----------
    params, lr, rho, eps, weight_decay, maximize
        As for torch.optim.Adadelta, with its defaults.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Zeiler 2012, Algorithm 1. Equivalent to torch.optim.Adadelta, with interchangeable state.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.Adadelta([weight], rho=0.0, eps=1.0)
    >>> weight.grad = torch.tensor([0.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([1.])
    """

    ignored: ClassVar[tuple[str, ...]] = IGNORED

    def __init__(
        self,
        params: Any,
        lr: Number = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_options(self, options)
        check_at_least_zero(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)
        if isinstance(rho, int | float) and rho > 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        options |= {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.adadelta, **options)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = dict(group)
        found["beta2"] = found.pop("rho")
        return found
