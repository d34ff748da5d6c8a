"""Adam and the optimisers that follow from it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastmomentum.rules import adaptive
from fastmomentum.rules.base import Rule
from fastmomentum.torch.arguments import (
    IGNORED,
    Number,
    check_at_least_zero,
    check_betas,
    check_options,
    chosen,
    with_betas,
)
from fastmomentum.torch.optimizer import Optimizer


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
        check_options(self, options)
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
        found = with_betas(group)
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
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_options(self, options)
        options |= {"maximize": maximize, "decoupled_weight_decay": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)

    @staticmethod
    def translated(group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the entries of a group with the names of the rule's hyper-parameters."""
        return Adam.translated({"decoupled_weight_decay": True} | dict(group))  # older states of torch lack the entry


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
        check_options(self, options)
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.radam, decoupled_weight_decay=decoupled_weight_decay, **options)

    translated = staticmethod(with_betas)


class NAdam(Optimizer):
    """Adam with Nesterov momentum, the drop-in for torch.optim.NAdam.

    :class:`Adam` with (1−μ_t)g/(1−Πμ_1…μ_t) + μ_(t+1)m/(1−Πμ_1…μ_(t+1)) in place of m/(1−β₁^t)

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize
        As for torch.optim.NAdam, with its defaults.
    **options
        As for :class:`Adam`.

    Notes
    -----
    Dozat 2016, Algorithm 8, with μ_t = β₁·(1 − 0.96^(t·momentum_decay)/2). Equivalent to torch.optim.NAdam, with
    interchangeable state; the product of all μ_t so far is kept in double precision, under "memory", and as torch has
    it.

    Examples
    --------
    >>> import torch, fastmomentum.torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = fastmomentum.torch.NAdam([weight], lr=0.5)
    >>> weight.grad = torch.tensor([1.0])
    >>> opt.step()
    >>> weight.detach()
    tensor([0.4718])
    """

    ignored: ClassVar[tuple[str, ...]] = IGNORED

    def __init__(
        self,
        params: Any,
        lr: Number = 2e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        check_options(self, options)
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        options |= {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, "nadam", **options)

    translated = staticmethod(with_betas)


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
        check_options(self, options)
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        options |= {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, adaptive.adamax, **options)

    translated = staticmethod(with_betas)


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
        check_options(self, options)
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
