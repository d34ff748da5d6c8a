"""The adaptive optimisers of torch.optim, and AdEMAMix."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from fastmomentum.rules import adaptive
from fastmomentum.rules.base import Rule
from fastmomentum.torch.optimizer import Optimizer

Number = float | torch.Tensor

IGNORED = ("foreach", "capturable", "differentiable")
"""The ignored arguments of most optimisers of torch."""


def check_at_least_zero(**values: Any) -> None:
    """Check numbers with the words of torch, which callers may look for.

    Raises
    ------
    ValueError
        If one is negative.
    """
    texts = {"lr": "learning rate", "eps": "epsilon value", "rho": "rho value", "alpha": "alpha value"}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        if not callable(value) and not value >= 0.0:
            raise ValueError(f"Invalid {texts.get(name, f'{name} value')}: {value}")


def check_betas(betas: Sequence[float]) -> None:
    """Check that the factors of averages are in [0, 1), with the words of torch.

    Raises
    ------
    ValueError
        If one is not.
    """
    for index, beta in enumerate(betas):
        if not callable(beta) and not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")


def chosen(groups: Sequence[Mapping[str, Any]], name: str, rules: Mapping[bool, Rule]) -> Rule:
    """Return the rule that a switch chooses, which must be the same in all groups.

    Raises
    ------
    ValueError
        If it differs.
    """
    values = {bool(group.get(name)) for group in groups}
    if len(values) > 1:
        raise ValueError(f"{name}: expected one value in all groups, as it decides on the state; got True and False")
    return rules[values.pop()]


def _with_betas(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with the names of the rule's hyper-parameters for betas and for the kind of weight decay."""
    found = dict(group)
    found["momentum"], found["beta2"], *_ = found.pop("betas")
    if found.get("decoupled_weight_decay"):
        found["decoupled_weight_decay"] = found.pop("weight_decay")
    else:
        found.pop("decoupled_weight_decay", None)
    return found


class Adam(Optimizer):
    """Adam, the drop-in for torch.optim.Adam.

    m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)g²; p ← p − lr/(1−β₁^t) · m/(√(s/(1−β₂^t)) + ε)

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay
        As for torch.optim.Adam, with its defaults. amsgrad must be the same in all groups.
    **options
        max_norm, skip_nonfinite, threads, clip_value, and the arguments that torch's implementations have, as for
        :class:`~fastmomentum.torch.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.

    Notes
    -----
    Kingma and Ba 2015, Algorithm 1; amsgrad as Reddi et al. 2018. Equivalent to torch.optim.Adam, with interchangeable
    state.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> opt = fastmomentum.torch.Adam([weight], lr=0.25)
    >>> weight.grad = torch.tensor([3.0, -2.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([ 0.7500, -0.7500])
    """

    ignored: ClassVar[tuple[str, ...]] = (*IGNORED, "fused")

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Any,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        options |= {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, adaptive.amsgrad if amsgrad else adaptive.adam, **options)

    @staticmethod
    def rule_of(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> Rule:
        """Return the rule of these groups."""
        return chosen(groups, "amsgrad", {False: adaptive.adam, True: adaptive.amsgrad})

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = _with_betas(group)
        found.pop("amsgrad", None)
        return found


class AdamW(Adam):
    """Adam with decoupled weight decay, the drop-in for torch.optim.AdamW.

    p ← p·(1 − lr·λ), then :class:`Adam`

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize
        As for torch.optim.AdamW, with its defaults.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Loshchilov and Hutter 2019, Algorithm 2. Equivalent to torch.optim.AdamW, with interchangeable state.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.AdamW([weight], lr=0.5, weight_decay=0.5)
    >>> weight.grad = torch.tensor([3.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.2500])
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)


class RAdam(Optimizer):
    """Rectified Adam, the drop-in for torch.optim.RAdam.

    :class:`Adam` times r_t where ρ_t > 5, else p ← p − lr/(1−β₁^t) · m

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, decoupled_weight_decay, maximize
        As for torch.optim.RAdam, with its defaults.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Liu et al. 2020, Algorithm 2. Equivalent to torch.optim.RAdam, with interchangeable state.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.RAdam([weight], lr=0.5)
    >>> weight.grad = torch.tensor([1.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.5000])
    """

    ignored: ClassVar[tuple[str, ...]] = IGNORED

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.radam, decoupled_weight_decay=decoupled_weight_decay, **options)

    translated = staticmethod(_with_betas)


class Adamax(Optimizer):
    """Adam by the largest gradient, the drop-in for torch.optim.Adamax.

    m ← β₁m + (1−β₁)g; u ← max(β₂u, |g| + ε); p ← p − lr/(1−β₁^t) · m/u

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, maximize
        As for torch.optim.Adamax, with its defaults.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Kingma and Ba 2015, Algorithm 2. Equivalent to torch.optim.Adamax, with interchangeable state.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.Adamax([weight], lr=0.5, eps=0.0)
    >>> weight.grad = torch.tensor([4.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.5000])
    """

    ignored: ClassVar[tuple[str, ...]] = IGNORED

    def __init__(
        self,
        params: Any,
        lr: Number = 2e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.adamax, **options)

    translated = staticmethod(_with_betas)


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
            total = torch.full_like(param.detach(), group["initial_accumulator_value"])
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
        check_at_least_zero(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)
        if not callable(rho) and rho > 1.0:
            raise ValueError(f"Invalid rho value: {rho}")
        options |= {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.adadelta, **options)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = dict(group)
        found["beta2"] = found.pop("rho")
        return found


class AdEMAMix(Optimizer):
    """AdEMAMix, which adds a slow average of gradients to Adam's.

    :class:`AdamW`, with m/(1−β₁^t) + α·(a slow average by β₃) in place of m/(1−β₁^t)

    Parameters
    ----------
    params
        As for every optimiser.
    lr : float
        Learning rate.
    betas : (float, float, float)
        β₁, β₂ and β₃.
    alpha : float
        The weight of the slow average.
    warmup : float
        The number of steps in which α and β₃ grow to their values, T of the paper; 0 for none.
    eps, weight_decay : float
        As for :class:`AdamW`, but without decay unless given.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Pagliardini, Ablin and Grangier 2025, Algorithm 1. State has the names of the authors' code: exp_avg_fast,
    exp_avg_slow, exp_avg_sq.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.AdEMAMix([weight], lr=0.5, alpha=0.0)
    >>> weight.grad = torch.tensor([4.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: Sequence[float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        warmup: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay, alpha=alpha, warmup=warmup)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "alpha": alpha, "warmup": warmup, "eps": eps}
        super().__init__(params, adaptive.ademamix, weight_decay=weight_decay, **options)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        found = dict(group)
        found["momentum"], found["beta2"], found["beta3"] = found.pop("betas")
        found["decoupled_weight_decay"] = found.pop("weight_decay")
        return found
