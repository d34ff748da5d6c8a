"""Check the arguments of torch's optimisers, and translate the entries of groups to the settings of rules."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch

from fastmomentum.advice import did_you_mean
from fastmomentum.rules.base import Rule

Number = float | torch.Tensor

IGNORED = ("foreach", "capturable", "differentiable")
"""The ignored arguments of most optimisers of torch."""


def check_at_least_zero(**values: Any) -> None:
    """Check numbers with the words of torch, which callers may look for; the rule checks all other values.

    Raises
    ------
    ValueError
        If one is negative.
    """
    texts = {"lr": "learning rate", "eps": "epsilon value", "rho": "rho value", "alpha": "alpha value"}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        if isinstance(value, int | float | torch.Tensor) and value < 0.0:
            raise ValueError(f"Invalid {texts.get(name, f'{name} value')}: {value}")


def check_betas(betas: Sequence[float]) -> None:
    """Check that the factors of averages are in [0, 1), with the words of torch.

    Raises
    ------
    ValueError
        If one is not.
    """
    for index, beta in enumerate(betas):
        if isinstance(beta, int | float | torch.Tensor) and not 0.0 <= beta < 1.0:
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


OPTIONS = ("max_norm", "skip_nonfinite", "threads", "clip_value", "clip_norm", "foreach", "fused", "capturable")
"""The arguments of all optimisers beside those of their signatures."""


def check_options(optimizer: object, options: Mapping[str, Any], *more: str) -> None:
    """Check the arguments that an optimiser takes beside those of its signature; `more` are further ones.

    Raises
    ------
    TypeError
        If there is no such argument.
    """
    taken = (*OPTIONS, "differentiable", *more)
    for name in options:
        if name not in taken:
            hint = did_you_mean(name, (*signature(type(optimizer)).parameters, *taken))
            raise TypeError(f"{name}: {type(optimizer).__name__} takes no such argument{hint}")


def with_betas(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with the names of the rule's hyper-parameters for betas and for the kind of weight decay."""
    found = dict(group)
    found["momentum"], found["beta2"], *_ = found.pop("betas")
    decay, is_decoupled = found["weight_decay"], found.pop("decoupled_weight_decay", False)
    found["weight_decay"], found["decoupled_weight_decay"] = (0.0, decay) if is_decoupled else (decay, 0.0)
    return found
